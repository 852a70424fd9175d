"""Bounds of real networks against what is known of them: competition instances, and what an attack breaks."""

import pytest
import torch

import robustkit
from benchmarks import kit
from robustkit.certificates import ladder, regions, tracing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not kit.ROOT.is_dir(), reason="needs the kit")]


def test_no_unsafe_instance_is_proved_and_safe_ones_are() -> None:
    from benchmarks.certificates import instances

    found = instances("crown", most=16)
    assert not sum(count for (_, status, proved), count in found.items() if status == "unsafe" and proved)
    assert sum(count for (_, status, _), count in found.items() if status == "unsafe") == 12
    assert sum(count for (_, status, proved), count in found.items() if status == "safe" and proved) > 0
    # The transformer is refused by the first thing in it that has no bounds, which stands before the softmax.
    assert [name for name in found if "vit" in name[0]] == [
        ("cifar10_vit_ibp_3_3_8: not certifiable: a product of two features at network.layers.0.q", "any", False)
    ]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 2 / 255), ("l2", 0.1), ("l1", 0.1)])
def test_every_proved_image_stands_under_attack(norm: str, eps: float) -> None:
    network = kit.model("cifar10_kw_base_2px")
    x, y = kit.cifar10(range(64))
    record = robustkit.evaluate(
        network, (x, y), "apgd:steps=50", norm=norm, eps=eps, certify="crown:order=last", doctor=False
    )  # fmt: skip
    traced = tracing.trace(network, x)
    proofs = ladder.prove(traced, regions.region(x, norm, eps), y, "crown")  # of the broken ones, too
    broken = torch.from_numpy(record.samples["status"] != "ROBUST")
    assert proofs.proved.sum() > 20
    assert not (proofs.proved & broken).any()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 16 / 255), ("l2", 4.0), ("l1", 60.0)])
@pytest.mark.parametrize("name", ["cifar10_cnn_a_adv", "cifar10_marabou_small"])  # with normalisation and without
def test_where_the_attack_breaks_every_image_nothing_is_proved(name: str, norm: str, eps: float) -> None:
    network = kit.model(name)
    x, y = kit.cifar10(range(16))
    record = robustkit.evaluate(
        network, (x, y), "apgd:loss=margin,steps=50", norm=norm, eps=eps, certify="crown:order=last", doctor=False
    )  # fmt: skip
    assert record.counts["ROBUST"] == 0
    proofs = ladder.prove(tracing.trace(network, x), regions.region(x, norm, eps), y, "ibp")
    assert not proofs.proved.any()
    again = ladder.prove(tracing.trace(network, x), regions.region(x[:4], norm, eps), y[:4], "crown")
    assert not again.proved.any()
