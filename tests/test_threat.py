import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from robustkit.api import NORMS, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics.projection import inner_limit, shrinkage
from robustkit.numerics.streams import SampleDraws, key_of

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCALES = {"linf": 0.1, "l2": 0.7, "l1": 3.0, "l0": 2.0}
KINDS = ["noise", "small", "sparse", "constant", "outside", "same"]


@st.composite
def attacked(draw, norms=NORMS):
    """A threat model, originals and candidates of one kind of change, of any size up to 3×6×5."""
    norm = draw(st.sampled_from(norms))
    eps = SCALES[norm] * draw(st.sampled_from([1e-3, 0.2, 1.0, 1.7, 6.0]))
    threat = ThreatModel(norm, max(eps, 1.0) if norm == "l0" else eps)
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = torch.rand(shape, generator=generator)
    ends = torch.rand(shape, generator=generator)
    x = torch.where(ends < 0.15, 0.0, torch.where(ends > 0.85, 1.0, x))
    noise = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(KINDS))
    change = {
        "noise": 0.3 * noise,
        "small": 1e-3 * noise,
        "sparse": noise * (torch.rand(shape, generator=generator) < 0.2),
        "constant": torch.full(shape, draw(st.floats(-1, 1, width=32))),
        "outside": 5 * noise,
        "same": torch.zeros(shape),
    }[kind]
    if kind == "constant":
        x = torch.full(shape, draw(st.floats(0, 1, width=32)))
    return threat, x, x + change


def photos(n: int = 2, side: int = 224) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    shape = (n, 3, side, side)
    return torch.rand(shape, generator=generator), 0.3 * torch.randn(shape, generator=generator)


@QUICK
@given(attacked())
def test_what_is_projected_is_contained_and_stays_when_projected_again(case):
    threat, x, adv = case
    once = threat.project(x, adv)
    assert once.dtype == x.dtype
    assert threat.contains(x, once).all()
    assert (threat.distance(x, once) <= inner_limit(threat.eps)).all()
    assert torch.equal(threat.project(x, once), once)


@QUICK
@given(attacked())
def test_what_is_inside_stays_bit_for_bit(case):
    threat, x, adv = case
    inside = threat.in_box(adv) & (threat.distance(x, adv) <= threat.eps)
    assert torch.equal(threat.project(x, adv)[inside], adv[inside])


@QUICK
@given(attacked())
def test_no_entry_moves_outward(case):
    threat, x, adv = case
    found, clipped = threat.project(x, adv), threat.clip(adv)
    assert (torch.minimum(x, clipped) <= found).all()
    assert (found <= torch.maximum(x, clipped)).all()


@QUICK
@given(attacked(), st.data())
def test_a_row_is_projected_the_same_alone_and_among_others(case, data):
    threat, x, adv = case
    together = threat.project(x, adv)
    some = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=5)))
    assert torch.equal(threat.project(x[some], adv[some]), together[some])
    assert torch.equal(threat.project(x[:1], adv[:1]), together[:1])


def nearest(x: np.ndarray, adv: np.ndarray, threat: ThreatModel) -> np.ndarray:
    """The nearest point of ball ∩ box by a general solver; L1 through positive and negative parts."""
    d, n = adv - x, len(x)
    if threat.norm == "l2":
        start, bounds = np.zeros(n), list(zip(-x, 1 - x, strict=True))
        ball = {"type": "ineq", "fun": lambda c: threat.eps**2 - c @ c, "jac": lambda c: -2 * c}
        found = minimize(
            lambda c: ((c - d) ** 2).sum(), start, jac=lambda c: 2 * (c - d), bounds=bounds, constraints=ball,
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return x + found.x
    bounds = [(0, up) for up in 1 - x] + [(0, down) for down in x]
    ball = {"type": "ineq", "fun": lambda c: threat.eps - c.sum(), "jac": lambda c: -np.ones(2 * n)}

    def gap(c: np.ndarray) -> np.ndarray:
        return c[:n] - c[n:] - d

    found = minimize(
        lambda c: (gap(c) ** 2).sum(), np.zeros(2 * n), jac=lambda c: np.concatenate([2 * gap(c), -2 * gap(c)]),
        bounds=bounds, constraints=ball, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return x + found.x[:n] - found.x[n:]


@pytest.mark.parametrize("eps", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_projection_is_the_nearest_point_that_a_general_solver_finds(norm, eps):
    generator = torch.Generator().manual_seed(3)
    threat = ThreatModel(norm, eps)
    for scale in (0.2, 0.6, 3.0):
        x = torch.rand(4, 1, 2, 3, generator=generator)
        if norm == "l2":  # the ball, then the box: the nearest where the box does not bind
            x, scale = 0.3 + 0.4 * x, min(scale, 0.1)
        adv = x + scale * torch.randn(x.shape, generator=generator)
        found = threat.project(x, adv)
        for i in range(len(x)):
            a, b, c = (t[i].double().numpy().ravel() for t in (x, adv, found))
            best = nearest(a, b, threat)
            assert ((c - b) ** 2).sum() <= ((best - b) ** 2).sum() + 1e-6
            if norm == "l1" or ((best > 1e-3) & (best < 1 - 1e-3)).all():
                assert np.allclose(c, best, atol=2e-5)


@QUICK
@given(attacked(norms=["l1"]), st.integers(0, 10**6))
def test_no_random_point_of_the_l1_ball_and_box_is_nearer(case, seed):
    threat, x, adv = case
    found = threat.project(x, adv)
    others = threat.sample(x, SampleDraws(key_of(seed, "others"), torch.arange(len(x))))
    mixed = found + 0.01 * (others - found)
    for other in (others, mixed):
        gaps = [(adv.double() - image.double()).square().flatten(1).sum(1) for image in (found, other)]
        assert (gaps[0] <= gaps[1] * (1 + 1e-6) + 1e-6).all()


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1e-6, 0.01, 0.3, 1.0, 5.0]), st.booleans())
def test_the_l1_shrinkage_spends_exactly_eps_or_nothing(seed, width, eps, tied):
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(3, width, generator=generator, dtype=torch.float64) * 2
    room = torch.rand(3, width, generator=generator, dtype=torch.float64)
    if tied:
        size, room = (size * 3).round() / 3, (room * 2).round() / 2
    shrink = shrinkage(size, room, eps)
    spent = torch.minimum((size - shrink[:, None]).clamp_min(0), room).sum(1)
    everything = torch.minimum(size, room).sum(1)
    assert torch.allclose(spent, everything.clamp_max(eps), rtol=1e-9, atol=1e-13)
    assert (shrink[everything <= eps] == 0).all()


def test_l0_keeps_the_pixels_with_the_largest_changes_and_of_equals_the_first():
    x = torch.full((1, 2, 1, 4), 0.5)
    delta = torch.tensor([[0.3, 0.0, 0.2, 0.4], [0.0, 0.3, 0.3, 0.0]]).view(1, 2, 1, 4)  # L2: .3, .3, .36, .4
    found = ThreatModel("l0", 3).project(x, x + delta)
    assert found[0].ne(0.5).any(0).flatten().tolist() == [True, False, True, True]
    assert torch.equal(found[:, :, :, 2], (x + delta)[:, :, :, 2])


def test_l0_counts_the_channels_of_a_pixel_once():
    x = torch.zeros(1, 3, 2, 2)
    adv = x.clone()
    adv[0, :, 0, 1] = 0.7
    assert ThreatModel("l0", 1).distance(x, adv).tolist() == [1.0]
    assert ThreatModel("l0", 1).contains(x, adv).all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 1, 8, 8), (1, 3, 32, 32)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5), ("l1", 2.0), ("l0", 5), ("l0", 2000)])
def test_a_random_start_is_contained_and_moves(norm, eps, shape):
    threat = ThreatModel(norm, eps)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    x[:, :, 0] = 0.0
    draws = SampleDraws(key_of(0, norm), torch.arange(len(x)))
    start = threat.sample(x, draws)
    assert start.dtype == x.dtype
    assert threat.contains(x, start).all()
    assert (threat.distance(x, start) > 0).all()
    assert torch.equal(start, threat.sample(x, draws))
    assert not torch.equal(start, threat.sample(x, draws.at(1)))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5), ("l1", 2.0), ("l0", 5)])
def test_a_random_start_belongs_to_its_sample(norm, eps):
    threat = ThreatModel(norm, eps)
    x = torch.rand(7, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    draws = SampleDraws(key_of(0, norm), torch.arange(7))
    together = threat.sample(x, draws)
    for i in range(7):
        row = torch.tensor([i])
        assert torch.equal(threat.sample(x[row], draws.select(row)), together[row])
    some = torch.tensor([5, 2, 3])
    assert torch.equal(threat.sample(x[some], draws.select(some)), together[some])


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_random_starts_fill_the_ball_evenly(norm):
    # In the middle of the box the box never binds, and the share of the ball within radius r is r^D.
    threat = ThreatModel(norm, 0.4)
    x = torch.full((4000, 1, 1, 2), 0.5)
    far = threat.distance(x, threat.sample(x, SampleDraws(key_of(0, norm), torch.arange(4000)))) / 0.4
    for radius in (0.3, 0.5, 0.8):
        assert abs((far <= radius).double().mean().item() - radius**2) < 0.03


@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 3.0), ("l1", 60.0), ("l0", 500)])
def test_large_photos_are_projected_inside_and_rows_do_not_depend_on_each_other(norm, eps):
    threat = ThreatModel(norm, eps)
    x, noise = photos()
    found = threat.project(x, x + noise)
    assert threat.contains(x, found).all()
    assert torch.equal(threat.project(x, found), found)
    assert torch.equal(threat.project(x[1:], (x + noise)[1:]), found[1:])
    assert (threat.distance(x, found) >= eps * (1 - 1e-2)).all()  # the budget is used


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l2", 2.0), ("l1", 12.0), ("l1", 300.0)])
def test_rounding_of_equal_pixels_never_adds_up_to_a_violation(norm, eps):
    # Every pixel rounds the same way here: 150 528 errors of 3e-8 are far beyond the judge's slack.
    threat = ThreatModel(norm, eps)
    for value in (0.1, 0.37, 0.52, 0.6):
        x = torch.full((1, 3, 224, 224), value)
        found = threat.project(x, x + 0.3)
        assert threat.contains(x, found).all()
        assert torch.equal(threat.project(x, found), found)


@pytest.mark.parametrize("high", [16.0, 255.0])
def test_in_a_larger_box_pixels_round_more_and_still_add_up_to_no_violation(high):
    threat = ThreatModel("l2", 0.5, 0.0, high)
    for value in (0.37 * high, 0.6 * high):
        x = torch.full((1, 3, 64, 64), value)
        found = threat.project(x, x + 0.3)
        assert threat.contains(x, found).all()
        assert (threat.distance(x, found) > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_single_and_an_empty_batch_can_be_projected(norm):
    threat = ThreatModel(norm, 1.0)
    x = torch.rand(3, 1, 2, 2)
    empty = x[:0]
    assert threat.contains(empty, empty).shape == (0,)
    assert threat.project(x[:1], x[:1] + 1).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_contained(norm, value):
    threat = ThreatModel(norm, 1.0)
    x = torch.full((2, 1, 2, 2), 0.5)
    adv = x.clone()
    adv[0, 0, 1, 1] = value
    assert threat.contains(x, adv).tolist() == [False, True]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [-1e-7, 1.0000001])
def test_what_is_outside_the_box_is_not_contained_however_near(norm, value):
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    adv = torch.full_like(x, value)
    assert not ThreatModel(norm, 1.0).contains(x, adv).any()


def test_an_image_with_nan_leaves_the_other_rows_as_they_are():
    x = torch.rand(3, 1, 4, 4)
    adv = x + 0.5
    bad = adv.clone()
    bad[1, 0, 0, 0] = math.nan
    for norm in NORMS:
        threat = ThreatModel(norm, 1.0)
        assert torch.equal(threat.project(x, bad)[[0, 2]], threat.project(x, adv)[[0, 2]])
        assert norm == "l0" or not threat.contains(x, threat.project(x, bad))[1]


def test_distances_are_float64_and_taken_of_float64_differences():
    x = torch.zeros(1, 3, 224, 224)
    adv = torch.full_like(x, 0.1)
    n, value = x.numel(), float(torch.tensor(0.1))
    expected = {"linf": value, "l2": value * math.sqrt(n), "l1": value * n, "l0": n / 3}
    for norm, distance in expected.items():
        found = ThreatModel(norm, 1.0).distance(x, adv)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(distance, rel=1e-13)
    tiny = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 1e-9)  # float32 would lose the 1e-9
    assert ThreatModel("linf", 1.0).distance(*tiny).item() < 1.0


def test_the_rule_of_containment_is_eps_and_a_little_slack():
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    threat = ThreatModel("linf", 0.25)
    assert threat.limit == 0.25 * (1 + 1e-6) + 1e-7
    assert threat.contains(x, x + threat.limit).all()
    assert not threat.contains(x, x + threat.limit + 1e-12).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("l3", 0.1), "unknown norm 'l3'"),
        (("linf", 0.0), "positive number such as 8/255"),
        (("l2", -1.0), "positive number"),
        (("l2", math.nan), "positive number"),
        (("l1", math.inf), "positive number"),
        (("linf", 8.0), "8 of 255 levels is 8/255"),
        (("l0", 0.03), "l0 eps counts whole pixels"),
        (("l2", 0.5, 1.0, 0.0), r"the box \[1.0, 0.0\] is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_advice(arguments, said):
    with pytest.raises(UsageError, match=said):
        ThreatModel(*arguments)
