"""Each loss by its formula, in float64 and a row at a time, for two to five classes, with a target and without."""

import math

import pytest
import torch
from robustkit_attacks import losses

from robustkit.api import Outputs
from robustkit.errors import UsageError
from tests import toys

Y, TARGET = 1, 0


def logits(classes, n=6):
    return 3 * torch.randn(n, classes, generator=toys.seeded(classes)).double()


def value(name, z, target=None, aim=None):
    def of(label):
        return None if label is None else torch.full((len(z),), label)

    return losses.make(name, of(Y), of(target), of(aim))(Outputs(z)).tolist()


def others(z, label):
    return [v for k, v in enumerate(z) if k != label]


def cross_entropy(z, label):
    return math.log(sum(math.exp(v) for v in z)) - z[label]


def lead(z, target):
    return max(others(z, Y)) - z[Y] if target is None else z[target] - max(others(z, target))


def gap(z):
    top = sorted(z, reverse=True)
    return top[0] - (top[2] + top[3]) / 2 if len(top) > 3 else 1.0


def dlr(z, target):
    top = sorted(z, reverse=True)
    if target is not None:
        return lead(z, target) / gap(z)
    return lead(z, None) / (top[0] - top[2] if len(top) > 2 else 1.0)


def towards(z, aim):
    return max(others(z, Y)) - z[Y] if aim is None else z[aim] - z[Y]


FORMULAS = {
    "ce": lambda z, t: cross_entropy(z, Y) if t is None else -cross_entropy(z, t),
    "ce-rescaled": lambda z, t: FORMULAS["ce"]([v / (max(z) - min(z)) for v in z], t),
    "ce-float64": lambda z, t: math.log(cross_entropy(z, Y)) if t is None else -cross_entropy(z, t),
    "margin": lead,
    "dlr": dlr,
    "margin-targeted": lambda z, t: towards(z, None) if t is None else lead(z, t),
    "dlr-targeted": lambda z, t: towards(z, None) / gap(z) if t is None else dlr(z, t),
}


def test_every_loss_has_its_formula_here():
    assert set(FORMULAS) == set(losses._LOSSES)
    with pytest.raises(UsageError, match=r"no loss called 'hinge'; there are: ce, margin"):
        losses.make("hinge", torch.tensor([0]), None)


@pytest.mark.parametrize("target", [None, TARGET])
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_is_its_formula(name, classes, target):
    z = logits(classes)
    assert value(name, z, target) == pytest.approx([FORMULAS[name](row, target) for row in z.tolist()], rel=1e-9)


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_towards_a_class_is_that_class_against_the_true_one(classes):
    z = logits(classes)
    for aim in {0, classes - 1}:
        leads = [towards(row, aim) for row in z.tolist()]
        assert value("margin-targeted", z, aim=aim) == pytest.approx(leads)
        units = [gap(row) for row in z.tolist()]
        assert value("dlr-targeted", z, aim=aim) == pytest.approx([a / b for a, b in zip(leads, units, strict=True)])


def test_a_sure_model_still_has_a_loss_and_a_gradient():
    for sure in (20.0, 29.0, 31.0, 200.0, 1e6):
        z = torch.tensor([[0.0, sure, -1.0, -3.0]], requires_grad=True)  # float32, as models answer
        loss = losses.make("ce-float64", torch.tensor([1]), None)(Outputs(z))
        lead = math.log(math.exp(0) + math.exp(-1) + math.exp(-3)) - sure
        assert float(loss.detach()) == pytest.approx(math.log(math.log1p(math.exp(lead))) if sure < 500 else lead)
        (slope,) = torch.autograd.grad(loss.sum(), z)
        assert slope[0].tolist() == pytest.approx([0.705, -1, 0.259, 0.035], abs=2e-3)
    near = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)  # all but at its target, where float32 knows no slope
    loss = losses.make("ce-float64", torch.tensor([1]), torch.tensor([0]))(Outputs(near))
    assert float(loss.detach()) == pytest.approx(-2 * math.exp(-20))
    (slope,) = torch.autograd.grad(loss.sum(), near)
    assert slope[0].tolist() == pytest.approx([2 * math.exp(-20), -math.exp(-20), -math.exp(-20)])
    saturated = torch.tensor([[0.0, 1e4, -1e4]], requires_grad=True)
    (slope,) = torch.autograd.grad(losses.make("ce-rescaled", torch.tensor([1]), None)(Outputs(saturated)).sum(),
                                   saturated)  # fmt: skip
    share = [math.exp(v) / (1 + math.exp(0.5) + math.exp(-0.5)) for v in (0, 0.5, -0.5)]
    assert (2e4 * slope[0]).tolist() == pytest.approx([share[0], share[1] - 1, share[2]], abs=1e-3)


def test_the_class_aimed_at_does_not_change_with_the_point_unless_none_was_given():
    z = torch.tensor([[0.0, 5.0, 3.0, 1.0]], requires_grad=True).double()
    for aim, slope in ((None, [0, -1, 1, 0]), (3, [0, -1, 0, 1])):
        given = None if aim is None else torch.tensor([aim])
        loss = losses.make("margin-targeted", torch.tensor([1]), None, given)(Outputs(z))
        assert torch.autograd.grad(loss.sum(), z)[0][0].tolist() == slope
