import math

import pytest
import torch

from robustkit import api, spec
from robustkit.api import ThreatModel
from robustkit.audit import run as audit
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from tests.toys import seeded

SHAPE = (3, 5, 4)
SMOOTH = [norm for norm in norms.NORMS if norms.NORMS[norm].dual]


def noise(n: int, seed: int = 0):
    return torch.randn(n, *SHAPE, generator=seeded(seed), dtype=torch.float64)


def test_every_table_has_the_same_norms():
    assert tuple(spec.NORMS) == tuple(norms.NORMS) == api.NORMS
    assert {geometry.dual for geometry in norms.NORMS.values()} <= {*norms.NORMS, ""}


@pytest.mark.parametrize("norm", api.NORMS)
def test_what_is_told_of_a_norm_makes_a_threat_model(norm):
    told = spec.NORMS[norm]
    assert ThreatModel(norm, spec.number(told.eps)).limit > 0
    for eps in (told.least, told.most):
        if 0 < eps < math.inf:
            ThreatModel(norm, eps)
    if told.least:
        with pytest.raises(UsageError, match=f"{norm} eps counts {told.unit}"):
            ThreatModel(norm, math.nextafter(told.least, 0))
    if told.most < math.inf:
        with pytest.raises(UsageError, match=f"{norm} eps 3 is wider than the whole range"):
            ThreatModel(norm, 3.0, low=-1.0, high=1.0)
        ThreatModel(norm, 2.0, low=-1.0, high=1.0)


@pytest.mark.parametrize("norm", SMOOTH)
def test_no_step_of_length_1_gains_more_than_the_steepest_which_gains_the_dual_length(norm):
    grad, dual = noise(4), norms.NORMS[norm].dual
    step = norms.steepest(grad, norm)
    torch.testing.assert_close(norms.length(step, norm), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(rows.dot(grad, step), norms.length(grad, dual))
    others = torch.cat([noise(200, seed=1), *(norms.steepest(grad, other) for other in SMOOTH if other != norm)])
    gains = norms.unit(others, norm).flatten(1) @ grad.flatten(1).T
    assert (gains.amax(0) < rows.dot(grad, step)).all()
    assert norms.NORMS[dual].dual == norm


@pytest.mark.parametrize("norm", SMOOTH)
def test_a_zero_gradient_has_a_zero_step_and_spoils_no_other(norm):
    grad = noise(3)
    grad[1] = 0
    step = norms.steepest(grad, norm)
    assert not step[1].any()
    assert torch.equal(step[[0, 2]], norms.steepest(grad[[0, 2]], norm))


def test_a_norm_without_a_dual_has_no_steepest_step_and_no_audit():
    for norm in set(norms.NORMS) - set(SMOOTH):
        with pytest.raises(ValueError, match=f"{norm} has no steepest step"):
            norms.steepest(noise(1), norm)
        with pytest.raises(UsageError, match=f"no {norm} form"):
            audit.check_norm(norm)
    assert audit.NORMS == ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", api.NORMS)
def test_a_ball_as_wide_as_the_box_holds_it_and_none_smaller_does(norm):
    widest = norms.widest(SHAPE, norm)
    assert widest == {"linf": 1.0, "l2": math.sqrt(60), "l1": 60.0, "l0": 20.0}[norm]
    black, white = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    assert ThreatModel(norm, widest).contains(black, white).all()
    assert not ThreatModel(norm, 0.99 * widest).contains(black, white).any()
    x, adv = (torch.rand(50, *SHAPE, generator=seeded(seed)) for seed in (4, 5))
    assert ThreatModel(norm, widest).contains(x, adv).all()
