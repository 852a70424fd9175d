"""The doctor on real networks: wrong inputs are caught on some of them, and none that is fed right raises an alarm."""

import pytest
import torch

from benchmarks import kit
from robustkit.doctor import diagnose
from robustkit.doctor.settings import COLOUR, GREY
from robustkit.models.sources import load_model
from tests import needs
from tests.test_doctor import Fed, kinds, the

IMAGENET, HALF = COLOUR[:2]


def kit_model(name):
    model, _ = load_model(f"python/benchmarks.kit.model:name={name}")
    return model


def kit_images(name, n=256):
    return (kit.cifar10 if kit.manifest()[name]["dataset"] == "cifar10" else kit.mnist)(range(n))


NETWORKS = sorted(kit.manifest()) if needs.kit.args[0] is False else []


@needs.kit
@pytest.mark.parametrize("name", NETWORKS)
def test_no_false_alarm_on_a_network_that_is_fed_right(name):
    found = diagnose(kit_model(name), *kit_images(name))
    assert found.healthy, found.findings


@pytest.mark.slow
@needs.kit
@pytest.mark.parametrize("name", NETWORKS)
def test_no_false_alarm_on_1000_images_either(name):
    found = diagnose(kit_model(name), *kit_images(name, 1000))
    assert found.healthy, found.findings


def normalised_by(mean_std, name):
    return kit.Normalised(kit.model(name).network, mean_std.mean, mean_std.std).eval()


def fed(change):
    return lambda name: Fed(kit.model(name), change)


@pytest.mark.slow
@needs.kit
def test_statistics_that_cost_seven_points_are_found_though_the_first_images_do_not_show_it():
    found = diagnose(normalised_by(HALF, "cifar10_resnet20_std"), *kit_images("cifar10_resnet20_std", 1000))
    assert "84.60 %" in the(found, "normalisation")
    assert "91.60 %" in the(found, "normalisation")
    assert "use mean=" in the(found, "normalisation")


KIT_FAULTS = {
    "none": (lambda name: kit.model(name).network, "normalisation"),
    "twice": (lambda name: kit.Normalised(kit.model(name), *(kit.manifest()[name][k] for k in ("mean", "std"))),
              "normalisation"),
    "half": (lambda name: normalised_by(GREY[1] if name.startswith("mnist") else HALF, name), "normalisation"),
    "imagenet": (lambda name: normalised_by(IMAGENET, name), "normalisation"),
    "wants 0–255": (fed(lambda x: x / 255), "normalisation"),
    "gets 0–255": (fed(lambda x: x * 255), "normalisation"),
    "bgr": (fed(lambda x: x.flip(1)), "normalisation"),
    "transposed": (fed(lambda x: x.transpose(2, 3)), "normalisation"),
    "softmax": (lambda name: Fed(kit.model(name), outputs=lambda z: z.softmax(1)), "model-outputs"),
}  # fmt: skip
CAUGHT = [
    *((fault, "cifar10_resnet20_std") for fault in ("twice", "wants 0–255", "softmax")),
    *((fault, "cifar10_sri_resnet_a_adv4") for fault in KIT_FAULTS if fault != "imagenet"),
    *((fault, "cifar10_vit_ibp_3_3_8") for fault in KIT_FAULTS if fault != "imagenet"),
    *((fault, "cifar10_kw_base_2px") for fault in KIT_FAULTS if fault != "imagenet"),
    *((fault, "cifar10_marabou_small") for fault in KIT_FAULTS if fault not in ("none", "twice")),  # it wants neither
    *((fault, "mnist_conv_small_std") for fault in ("half", "wants 0–255", "transposed", "softmax")),
]


@needs.kit
@pytest.mark.parametrize(("fault", "name"), CAUGHT)
def test_a_wrong_input_of_a_real_network_is_found(fault, name):
    make, kind = KIT_FAULTS[fault]
    x, y = kit_images(name)
    model = make(name).eval()
    found = diagnose(model, x, y)
    assert kinds(found) == [kind]
    if kind == "normalisation":  # and the setting that is recommended does mend it
        as_meant = int((kit.model(name)(x).argmax(1) == y).sum())
        assert max(trial.right.k for trial in found.trials) >= as_meant - 13
        assert any(trial.clear and trial.setting in the(found) for trial in found.trials)


@pytest.mark.slow
@needs.kit
@pytest.mark.parametrize("name", NETWORKS)
def test_clean_accuracy_through_a_python_spec_is_that_of_the_manifest(name):
    model = kit_model(name)
    x, y = kit_images(name, 2000)
    with torch.no_grad():
        right = sum(int((model(x[i : i + 200]).argmax(1) == y[i : i + 200]).sum()) for i in range(0, 2000, 200))
    (measured,) = [
        entry["value"]
        for entry in kit.manifest()[name]["measured"]
        if entry["metric"] == "clean" and entry["N"] == "first 2000 test images"
    ]
    print(f"{name}: {right / 20:.2f} %, manifest {measured:.2f} %")
    assert right / 20 == pytest.approx(measured, abs=0.3)
