"""Against ground truth: proved instances, bracketed robust accuracies, a published figure, a known masking case."""

import json
from collections import defaultdict

import numpy as np
import pytest
from robustkit_attacks.apgd import APGD

from benchmarks import kit
from robustkit import evaluate
from tests import needs, toys

pytestmark = needs.kit


def instances(status, quick):
    """The proved instances of a status as (model, eps) → indices; quick: a few of each model."""
    found = defaultdict(list)
    for entry in json.loads((kit.ROOT / "oracle/vnncomp_instances.json").read_text()):
        if entry["status"] == status:
            found[entry["model"], entry["eps"]].append(entry["index"])
    return {key: indices[: 4 if quick else None] for key, indices in found.items()}


def attacked(model, eps, indices, attack):
    x, y = kit.cifar10(indices)
    return evaluate(kit.model(name=model), (x, y), attack, eps=eps, tile=16)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_instance_proved_safe_is_broken(quick):
    attack = "(apgd:steps=30)+(apgd:loss=dlr-targeted,steps=30)+(square:queries=100)" if quick else "autoattack"
    for (model, eps), indices in instances("safe", quick).items():
        record = attacked(model, eps, indices, attack)
        assert record.counts["ROBUST"] == len(indices), (model, eps, record.counts)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_instance_with_a_known_counterexample_is_broken(quick):
    for (model, eps), indices in instances("unsafe", False).items():
        record = attacked(model, eps, indices, "apgd:loss=dlr-targeted" if quick else "autoattack")
        assert record.counts["ROBUST"] == 0, (model, eps, record.to_frame())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "most"), [("cifar10_cnn_a_adv", 0.505), ("cifar10_cnn_a_adv4", 0.495)])
def test_autoattack_lands_where_proofs_and_the_reference_say(model, most):
    indices = json.loads((kit.ROOT / "oracle/sdp200_indices.json").read_text())["cifar10"]
    record = evaluate(kit.model(name=model), kit.cifar10(indices), "autoattack", eps="2/255")
    assert 0.485 <= float(record.robust_accuracy) <= most, record.summary()


def test_the_targeted_apgd_alone_stays_above_the_proved_bound_and_near_it():
    indices = json.loads((kit.ROOT / "oracle/sdp200_indices.json").read_text())["cifar10"]
    attack = "apgd:loss=dlr-targeted,steps=40,targets=4"
    record = evaluate(kit.model(name="cifar10_cnn_a_adv"), kit.cifar10(indices), attack, eps="2/255")
    assert 0.485 <= float(record.robust_accuracy) <= 0.515, record.summary()


@pytest.mark.slow
def test_pgd_40_on_mnist_gives_the_figure_two_implementations_gave():
    attack = "pgd:steps=40,step=0.01,random_start=false"
    record = evaluate(kit.model(name="mnist_lenet5_adv"), kit.mnist(range(2000)), attack, eps=0.3)
    assert abs(float(record.robust_accuracy) - 0.915) <= 0.003, record.summary()


@pytest.mark.slow
def test_crossmax_looks_robust_to_a_direct_attack_and_falls_to_its_mean():
    models = [kit.model(name=f"cifar10_resnet{depth}_std") for depth in (20, 32, 44, 56)]
    ensemble, data = toys.CrossMaxMedian(models).eval(), kit.cifar10(range(100))
    direct = evaluate(ensemble, data, APGD(steps=30), eps="2/255")
    through_mean = evaluate(ensemble, data, toys.OnSurrogate(APGD(steps=30), "mean"), eps="2/255")
    assert float(direct.robust_accuracy) > 0.5, direct.summary()
    assert float(through_mean.robust_accuracy) < 0.15, through_mean.summary()
    assert not np.isnan(through_mean.samples["margin"]).any()


@pytest.mark.slow
def test_shifted_and_scaled_logits_and_float64_on_a_real_network():
    model, data = kit.model(name="cifar10_cnn_a_adv"), kit.cifar10(range(200))

    def statuses(module, attack):
        return evaluate(module, data, attack, eps="2/255").samples["status"]

    suite = "autoattack:queries=1000"
    plain = statuses(model, suite)
    assert (statuses(toys.Wrapped(model, shift=-50.0), suite) == plain).all()
    assert (statuses(toys.Wrapped(model, scale=1000.0), suite) != plain).sum() <= 1
    for free in ("apgd:loss=dlr", "pgd:loss=margin", "fab:minimise=false,targets=3", "square:queries=500"):
        assert (statuses(toys.Wrapped(model, scale=1000.0), free) == statuses(model, free)).all(), free
    assert (statuses(model.double(), suite) != plain).sum() <= 1
