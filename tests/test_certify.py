"""Randomised smoothing's certificate against its closed form on a linear model."""

import math

import pytest
import torch
from scipy.stats import beta, binom, norm
from torch import nn

from robustkit.certificates.smoothing import ABSTAINED, certify, lower_bound
from robustkit.errors import UsageError

SIGMA = 0.25


def linear(n=20):
    """A linear model of two classes, images, and each image's signed L2 distance to the boundary."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(48, 2)
    layer.weight.data = torch.randn(2, 48, generator=generator)
    x = torch.rand(n, 3, 4, 4, generator=generator)
    layer.bias.data = -layer.weight.data.sum(1) / 2
    module = nn.Sequential(nn.Flatten(), layer).eval()
    z = module(x).detach()
    return module, x, (z[:, 1] - z[:, 0]) / (layer.weight[1] - layer.weight[0]).norm().detach()


def test_on_a_linear_model_the_radius_approaches_the_distance_from_below():
    module, x, distance = linear()
    found = certify(module, x, sigma=SIGMA, draws=4000)
    decided = found.decision != ABSTAINED
    # P(the decision holds under noise) is Φ(distance/σ), so the radius in the limit of many draws is the distance,
    # and no count of 4,000 can certify more than σ·Φ⁻¹(alpha^(1/4000)).
    ceiling = SIGMA * norm.ppf(0.001 ** (1 / 4000))
    assert decided.sum() > 10
    assert torch.equal(found.decision[decided], (distance > 0).long()[decided])
    assert (found.radius <= distance.abs() + 1e-6).all()
    near = distance.abs() < 0.8 * ceiling
    assert near[decided].sum() > 5
    assert (found.radius[decided & near] > distance.abs()[decided & near] - 0.06).all()


def test_it_abstains_where_the_classes_are_even():
    module, x, distance = linear(1)
    layer = module[1]
    layer.bias.data[0] += distance[0] * (layer.weight[1] - layer.weight[0]).norm()
    found = certify(module, x, sigma=SIGMA, draws=500)
    assert found.decision.tolist() == [ABSTAINED]
    assert found.radius.tolist() == [0]


def test_the_bound_is_wrong_no_oftener_than_alpha():
    alpha, n, truth = 0.05, 60, 0.8
    wrong = sum(binom.pmf(k, n, truth) for k in range(n + 1) if lower_bound(k, n, alpha) > truth)
    assert 0.01 < wrong <= alpha
    assert lower_bound(0, n, alpha) == 0
    assert math.isclose(lower_bound(n, n, alpha), alpha ** (1 / n))


class Turncoat(nn.Module):
    """Decides for class 0 on so many copies, then for class 2, but for the first few of those."""

    def __init__(self, early, loyal=0):
        super().__init__()
        self.early, self.loyal, self.seen = early, loyal, 0

    def forward(self, x):
        number = torch.arange(self.seen, self.seen + len(x))
        self.seen += len(x)
        return torch.eye(3)[torch.where(number < self.early + self.loyal, 0, 2)]


def test_the_class_is_chosen_on_copies_that_do_not_bound_it():
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = certify(Turncoat(early=40).eval(), x, sigma=SIGMA, first=40, draws=300)
    assert found.decision.tolist() == [ABSTAINED]  # class 0, for which none of the 300 is, though all are for class 2
    found = certify(Turncoat(early=40, loyal=280).eval(), x, sigma=SIGMA, first=40, draws=300)
    assert found.decision.tolist() == [0]
    assert found.radius.tolist() == pytest.approx([SIGMA * norm.ppf(beta.ppf(0.001, 280, 21))])


def test_an_image_has_its_own_noise():
    module, x, _ = linear(4)
    together = certify(module, x, sigma=SIGMA, draws=300)
    alone = certify(module, x[2:3], sigma=SIGMA, draws=300, indices=torch.tensor([2]))
    assert together.radius[2] == alone.radius[0]


def test_what_has_no_finite_answer_or_is_being_trained_gets_no_certificate():
    module, x, _ = linear(1)
    with pytest.raises(UsageError, match="finite"):
        certify(nn.Sequential(module, Nan()).eval(), x, draws=10)
    with pytest.raises(UsageError, match="training"):
        certify(module.train(), x, draws=10)


class Nan(nn.Module):
    def forward(self, z):
        return z * torch.nan


@pytest.mark.parametrize("wrong", [{"sigma": 0}, {"draws": 0}, {"alpha": 1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    module, x, _ = linear(1)
    with pytest.raises(UsageError, match="certify"):
        certify(module, x, **wrong)
