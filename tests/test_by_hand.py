"""Values worked out by hand where a small fault would change a verdict or a number and nothing else would tell."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from robustkit_attacks import losses
from torch import nn

from robustkit import evaluate
from robustkit.api import Outputs, ThreatModel
from robustkit.engine.judge import SURVIVED, VIOLATED, Judge
from robustkit.engine.plan import targets_for
from robustkit.models.oracle import Network
from robustkit.numerics import projection
from tests import toys

ALL = torch.arange(3)


class OneNaN(nn.Module):
    """Class 0, and no number for class 2, which argmax then takes for the largest."""

    def forward(self, x):
        one = torch.ones(len(x))
        return torch.stack([one, 0 * one, math.nan * one], 1)


class Fickle(nn.Module):
    """Says class 2 for so many calls, then class 1."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def forward(self, x):
        self.left -= 1
        said = 2 if self.left >= 0 else 1
        return torch.eye(3)[said].expand(len(x), 3)


def court(model, target=None):
    x, y = torch.full((3, 1, 2, 2), 0.4), torch.zeros(3, dtype=torch.int64)
    return Judge(Network(model, 4, torch.device("cpu")), ThreatModel("linf", 0.2), x, y, target, "bounded")


def test_a_logit_that_is_no_number_breaks_nothing_though_it_would_win():
    judge = court(OneNaN())
    assert not judge.submit(ALL, judge.x).any()
    assert judge.verdicts().outcome.tolist() == [VIOLATED] * 3


def test_a_break_is_confirmed_for_the_target_and_not_for_any_wrong_class():
    judge = court(Fickle(calls=1), target=torch.full((3,), 2))
    assert judge.submit(ALL, judge.x).all()
    judge.confirm_again()  # class 1 now: wrong, and not what was wanted
    assert judge.verdicts().outcome.tolist() == [VIOLATED] * 3
    steady = court(Fickle(calls=9), target=torch.full((3,), 1))
    assert not steady.submit(ALL, steady.x).any()
    assert steady.verdicts().outcome.tolist() == [SURVIVED] * 3


@pytest.mark.parametrize("eps", [0.49333657, 0.1, 8 / 255])
def test_what_is_inside_linf_stays_also_where_float32_rounds_eps_down(eps):
    x = torch.linspace(0, 1, 4096).view(1, 1, 64, 64)
    for adv in ((x.double() + eps).float(), (x.double() - eps).float()):
        adv = adv.clamp(0, 1)
        inside = (adv.double() - x).abs() <= eps
        assert inside.any()
        assert torch.equal(projection.onto_linf(x, adv, eps, 0.0, 1.0)[inside], adv[inside])
        assert ThreatModel("linf", eps).contains(x, projection.onto_linf(x, adv + 1e-3, eps, 0.0, 1.0)).all()


def test_l0_keeps_the_pixels_that_change_most_inside_the_box():
    x = torch.tensor([0.9, 0.5, 0.5, 0.5]).view(1, 1, 2, 2)
    adv = torch.tensor([3.0, 0.8, 0.5, 0.1]).view(1, 1, 2, 2)  # the first is clipped to a change of 0.1
    kept = projection.onto_l0(x, adv, 1, 0.0, 1.0)
    assert kept.flatten().tolist() == pytest.approx([0.9, 0.5, 0.5, 0.1])


def test_targets_depend_on_the_seed_and_are_never_the_label():
    y, indices = torch.arange(200) % 10, torch.arange(200)
    logits = torch.eye(10)[y].neg()  # the label is the least likely of all
    drawn = [targets_for("random", y, logits, indices, seed) for seed in (0, 1)]
    assert not torch.equal(*drawn)
    for target in (*drawn, targets_for("least-likely", y, logits, indices, 0)):
        assert (target != y).all()
    assert len(set(drawn[0].tolist())) == 10


def test_targeted_dlr_by_hand():
    logits = torch.tensor([[5.0, 3.0, 2.0, 0.0, -1.0]])
    loss = losses.make("dlr-targeted", torch.tensor([0]), None, torch.tensor([1]))
    assert float(loss(Outputs(logits))) == pytest.approx((3 - 5) / (5 - (2 + 0) / 2))  # −0.5


def test_dlr_by_hand():
    logits = torch.tensor([[5.0, 3.0, 2.0, 0.0, -1.0]])
    assert float(losses.make("dlr", torch.tensor([0]), None)(Outputs(logits))) == pytest.approx(-(5 - 3) / (5 - 2))
    assert float(losses.make("dlr", torch.tensor([1]), None)(Outputs(logits))) == pytest.approx(-(3 - 5) / (5 - 2))


def test_noise_belongs_to_an_attack_s_place():
    seen = {}

    @dataclass(frozen=True)
    class Listens(toys._Settings):
        loss: str = "ce"
        steps: int = 1

        def __call__(self, case):
            seen[self.loss, self.steps] = case.oracle.outputs(case.x).logits.numpy().copy()
            return case.x

    model = toys.Randomised(toys.Linear(), 1e-3)
    x = torch.rand(6, 1, 4, 4, generator=toys.seeded(3))
    y = toys.Linear()(x).argmax(1).detach()

    def listen(*attacks, seed=0):
        seen.clear()
        evaluate(model, (x, y), list(attacks), eps=0.05, draws=3, tile=8, seed=seed, doctor=False)
        return dict(seen)

    first = listen(Listens("ce"), Listens("dlr"), Listens("ce", 2))
    assert [len(values) for values in first.values()] == [6, 6, 6]
    assert not np.array_equal(first["ce", 1], first["dlr", 1])
    assert not np.array_equal(first["ce", 1], first["ce", 2])
    again, other = listen(Listens("ce", 9)), listen(Listens("ce"), seed=1)
    assert np.array_equal(again["ce", 9], first["ce", 1])
    assert not np.array_equal(other["ce", 1], first["ce", 1])
