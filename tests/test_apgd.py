import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustkit_attacks import apgd, apgd_l1
from robustkit_attacks.apgd import APGD
from scipy.optimize import linprog
from torch import nn

from robustkit.api import Expected, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms, projection
from robustkit.testing import attack_batch, conformance
from tests import toys

NORMS = ["linf", "l2", "l1"]
SHAPE = (3, 4, 4)


class Net(nn.Module):
    def __init__(self, classes=4, seed=3):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 16, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(seed + p.numel())) * 0.3

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


class Wavy(nn.Module):
    """A landscape of many hills: where an attack starts decides where it ends."""

    def __init__(self, classes=4):
        super().__init__()
        self.inner, self.outer = nn.Linear(48, 32), nn.Linear(32, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(p.numel())) * 2

    def forward(self, x):
        return self.outer(self.inner(x.flatten(1)).sin())


# One start misses a row in a hundred in l1, another one on another processor: AutoAttack takes five there.
STARTS = {"linf": 1, "l2": 1, "l1": 5}


def images(n, low=0.0, high=1.0, seed=0):
    return low + (high - low) * torch.rand(n, *SHAPE, generator=toys.seeded(seed))


def linear(classes=4, seed=0):
    """A linear model whose decisions are about even on images around 0.5."""
    model = toys.Linear(SHAPE, classes, seed)
    model.bias.data = -0.5 * model.weight.data.sum(1)
    return model


def radius(model, x, y, norm):
    """How far each row is from its nearest decision boundary if there is no box: margin over dual norm."""
    logits, w = model(x).detach(), model.weight.detach()
    away = w[y][:, None] - w[None]
    length = {"linf": away.abs().sum(2), "l2": away.norm(dim=2), "l1": away.abs().amax(2)}[norm]
    far = (logits.gather(1, y[:, None]) - logits) / length.clamp_min(1e-9)
    return far.scatter(1, y[:, None], torch.inf).amin(1)


def most(w, x, eps, norm):
    """The most that w·δ can be in the L1 or Linf ball and the box: a knapsack filled by value."""
    room = torch.where(w > 0, 1 - x, x).double()
    if norm == "linf":
        return (room.clamp_max(eps) * w.abs()).sum(-1)
    value, order = w.abs().double().sort(-1, descending=True)
    room = room.gather(-1, order)
    before = room.cumsum(-1) - room
    return (torch.minimum(room, (eps - before).clamp_min(0)) * value).sum(-1)


def slack(model, x, y, eps, norm):
    """By how much the best attack in ball and box passes the boundary, over all wrong classes (above 0: can be)."""
    logits, w, flat = model(x).detach(), model.weight.detach(), x.flatten(1)
    gains = [most(w[t] - w[y], flat, eps, norm) + logits[:, t] - logits.gather(1, y[:, None])[:, 0]
             for t in range(len(w))]  # fmt: skip
    return torch.stack(gains, 1).scatter(1, y[:, None], -torch.inf).amax(1)


def attacked(attack, model, x, y, norm, eps, **options):
    result = attack_batch(attack, model, x, y, ThreatModel(norm, eps), **options)
    assert not result.judge.reasons
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_linear_model_is_broken_exactly_where_margin_over_dual_norm_is_below_eps(norm, classes):
    model, x = linear(classes), images(160, 0.3, 0.7)
    y = model(x).argmax(1)
    far = radius(model, x, y, norm)
    eps = min(float(far.median()), 0.3)  # from the middle of the box no change of 0.3 meets it
    can, clear = far < eps, (far / eps - 1).abs() > 1e-3
    assert clear.sum() >= 150
    assert 40 <= can.sum() <= 120
    found = attacked(APGD("dlr-targeted", targets=classes - 1, steps=60, restarts=STARTS[norm]), model, x, y, norm, eps)
    assert torch.equal(found.broken[clear], can[clear])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l1", 0.3), ("l1", 0.5), ("l1", 0.8)])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_linear_model_is_broken_exactly_where_ball_and_box_allow_it(norm, eps, classes):
    model, x = linear(classes), images(160)
    ends = torch.rand(x.shape, generator=toys.seeded(8))
    x = torch.where(ends < 0.3, 0.0, torch.where(ends > 0.7, 1.0, x))
    y = model(x).argmax(1)
    gap = slack(model, x, y, eps, norm)
    can, clear = gap > 0, gap.abs() > 0.01 * eps * model.weight.abs().amax()
    assert clear.sum() >= 150
    assert 25 <= can.sum() <= 130
    attack = APGD("dlr-targeted", targets=classes - 1, radii=3 if norm == "l1" else 1)
    found = attacked(attack, model, x, y, norm, eps)
    assert torch.equal(found.broken[clear], can[clear])


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_knapsack_that_judges_here_is_what_a_linear_program_finds(norm):
    w, x = torch.randn(12, 7, generator=toys.seeded(1)), torch.rand(12, 7, generator=toys.seeded(2))
    for eps in (0.1, 0.5, 2.0):
        for i in range(len(w)):
            v, a = w[i].double().numpy(), x[i].double().numpy()
            up, down = (np.minimum(1 - a, eps), np.minimum(a, eps)) if norm == "linf" else (1 - a, a)
            ball = (np.ones((1, 14)), [eps]) if norm == "l1" else (None, None)
            found = linprog(np.r_[-v, v], *ball, bounds=[(0, limit) for limit in np.r_[up, down]])
            assert most(w[i], x[i], eps, norm).item() == pytest.approx(-found.fun, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted", "margin", "ce-rescaled"])
def test_every_loss_works_with_two_classes(loss, norm):
    model, x = linear(2), images(60, 0.3, 0.7)
    y = model(x).argmax(1)
    far = radius(model, x, y, norm)
    eps = min(float(far.median()), 0.3)
    clear = (far / eps - 1).abs() > 1e-2
    found = attacked(APGD(loss, steps=60, restarts=STARTS[norm]), model, x, y, norm, eps)
    if (norm, loss) == ("l1", "ce-rescaled"):  # of two classes it only knows which leads, so no point is best
        assert not found.broken[clear & (far > eps)].any()
    else:
        assert torch.equal(found.broken[clear], (far < eps)[clear])


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_attack_ends_in_its_target_and_misses_what_is_out_of_reach(norm):
    model, x = linear(), images(80, 0.3, 0.7)
    y = model(x).argmax(1)
    target = (y + 1 + torch.arange(80) % 3) % 4
    eps = {"linf": 0.2, "l2": 1.2, "l1": 6.0}[norm]
    for loss in ("ce", "dlr-targeted", "margin"):
        found = attacked(APGD(loss, steps=50), model, x, y, norm, eps, target=target)
        decided = model(found.verdicts.adv).argmax(1)
        assert found.broken.sum() > 20
        assert torch.equal(decided[found.broken], target[found.broken])
        small = attacked(APGD(loss, steps=20), model, x, y, norm, 1e-5, target=target)
        assert not small.broken.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_black_and_white_images_are_broken_where_their_one_side_of_the_box_allows_it(norm, end):
    model, x = linear(5), torch.full((40, *SHAPE), end)
    y = torch.arange(40) % 5
    model.bias.data -= model(x[:1])[0].detach()  # no class leads
    model.bias.data += 0.2 * torch.randn(5, generator=toys.seeded(4))
    y[:] = model(x).argmax(1)
    eps = {"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm]
    found = attacked(APGD("dlr-targeted", targets=4, steps=40), model, x, y, norm, eps)
    assert found.broken.all()
    assert ((found.verdicts.adv >= 0) & (found.verdicts.adv <= 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_never_break_fewer(norm, monkeypatch):
    monkeypatch.setattr(conformance, "key_of", lambda *_: (1, 2))  # the draws, whatever the settings
    model, x = Wavy(), images(120)
    y = model(x).argmax(1)
    eps = {"linf": 0.2, "l2": 1.0, "l1": 0.2}[norm]
    broken = [attacked(APGD(steps=1, restarts=k), model, x, y, norm, eps).broken for k in (1, 2, 5, 12)]
    for fewer, more in itertools.pairwise(broken):
        assert not (fewer & ~more).any()
    assert 0 < broken[0].sum() < broken[-1].sum()


ATTACKS = [
    ("linf", 0.04, APGD(steps=24, restarts=2)),
    ("linf", 0.04, APGD("dlr-targeted", steps=13, targets=2)),
    ("l2", 0.3, APGD(steps=24, restarts=2)),
    ("l2", 0.3, Expected(APGD("dlr", steps=11), 3)),
    ("l1", 1.4, APGD(steps=24, restarts=2)),
    ("l1", 1.4, APGD("dlr-targeted", steps=21, targets=2, radii=3)),
]


@pytest.mark.parametrize(("norm", "eps", "attack"), ATTACKS)
def test_a_sample_ends_bit_for_bit_alike_alone_in_a_few_and_among_all(norm, eps, attack):
    model, x = Net(), images(19)
    y = model(x).argmax(1)
    together = attacked(attack, model, x, y, norm, eps, tile=4)
    assert 0 < together.broken.sum() < len(x)
    for some in (*(torch.tensor([i]) for i in range(len(x))), torch.tensor([17, 3, 11]), torch.arange(19).flip(0)):
        apart = attacked(attack, model, x[some], y[some], norm, eps, indices=some, tile=4)
        assert torch.equal(apart.verdicts.adv, together.verdicts.adv[some])
        assert torch.equal(apart.broken, together.broken[some])
        assert torch.equal(apart.forwards, together.forwards[some])


@pytest.mark.parametrize(("norm", "eps", "attack"), ATTACKS)
def test_samples_that_leave_early_change_nothing_for_those_that_stay(norm, eps, attack):
    model, x = Net(), images(40)
    y = model(x).argmax(1)
    together = attacked(attack, model, x, y, norm, eps, tile=8)
    stay = (~together.broken).nonzero()[:, 0]
    assert 5 < len(stay) < 35
    assert together.backwards[together.broken].double().mean() < 0.8 * together.backwards[stay].double().mean()
    alone = attacked(attack, model, x[stay], y[stay], norm, eps, indices=stay, tile=8)
    assert torch.equal(alone.verdicts.adv, together.verdicts.adv[stay])
    assert torch.equal(alone.backwards, together.backwards[stay])


@pytest.mark.parametrize(("norm", "eps", "attack"), ATTACKS)
def test_what_is_never_broken_takes_the_passes_that_cost_tells(norm, eps, attack):
    model = linear()
    model.bias.data[0] = 1e3
    x, y = images(5), torch.zeros(5, dtype=torch.int64)
    found = attacked(attack, model, x, y, norm, eps)
    assert not found.broken.any()
    forwards, backwards = attack.cost(4)
    assert found.backwards.tolist() == [backwards] * 5
    assert (found.forwards <= forwards).all()


def test_the_step_may_halve_after_22_steps_then_19_and_so_on_down_to_6(monkeypatch):
    intervals = []
    original = apgd.adapted
    monkeypatch.setattr(apgd, "adapted", lambda state, k: (intervals.append(k), original(state, k))[1])
    model, x = linear(2), images(2, 0.3, 0.7)
    attacked(APGD(steps=100), model, x, model(x).argmax(1), "linf", 1e-4)
    assert intervals == [22, 19, 16, 13, 10, 7, 6, 6]
    intervals.clear()
    attacked(APGD(steps=3), model, x, model(x).argmax(1), "l2", 1e-4)
    assert intervals == [1, 1, 1]


@pytest.mark.parametrize(("radii", "steps", "times"), [(1, 100, 25), (3, 100, 100), (1, 20, 20), (2, 100, 72)])
def test_in_l1_the_sparsity_follows_every_25th_part_of_a_stage(monkeypatch, radii, steps, times):
    calls = []
    original = apgd_l1._adapted
    monkeypatch.setattr(apgd_l1, "_adapted", lambda case, state: (calls.append(case), original(case, state))[1])
    model, x = linear(2), images(2, 0.3, 0.7)
    attacked(APGD(steps=steps, radii=radii), model, x, model(x).argmax(1), "l1", 1e-4)
    assert len(calls) == times


def test_the_radii_shrink_to_eps_and_their_steps_add_up():
    assert apgd_l1.stages(100, 3) == [(3, 30), (2, 30), (1, 40)]
    assert apgd_l1.stages(100, 1) == [(1, 100)]
    assert apgd_l1.stages(1, 3) == [(1, 1)]
    for steps in range(1, 60):
        for radii in range(1, 6):
            assert sum(length for _, length in apgd_l1.stages(steps, radii)) == steps
            assert all(length > 0 for _, length in apgd_l1.stages(steps, radii))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 48), st.integers(0, 10**6))
def test_a_sparse_step_has_length_one_and_moves_the_largest_entries_by_the_same_amount(keep, seed):
    grad = torch.randn(3, *SHAPE, generator=toys.seeded(seed))
    inside = torch.full_like(grad, 0.5)
    step = apgd_l1.sparse(ThreatModel("l1", 1.0), inside, grad, torch.tensor([keep, 1, 48]))
    moved = step.flatten(1).ne(0)
    assert moved.sum(1).tolist() == [keep, 1, 48]
    assert torch.allclose(norms.length(step, "l1"), torch.ones(3))
    size = grad[0].abs().flatten()
    assert size[moved[0]].amin() >= size[~moved[0]].amax() if keep < 48 else True
    assert torch.equal(step.sign()[step != 0], grad.sign()[step != 0])


def test_a_sparse_step_keeps_equals_and_does_not_move_without_a_gradient():
    grad, inside = torch.zeros(2, 1, 1, 5), torch.full((2, 1, 1, 5), 0.5)
    grad[0, 0, 0] = torch.tensor([1.0, -2.0, 2.0, 2.0, 0.5])
    step = apgd_l1.sparse(ThreatModel("l1", 1.0), inside, grad, torch.tensor([2, 2]))
    assert step[0, 0, 0].tolist() == pytest.approx([0, -1 / 3, 1 / 3, 1 / 3, 0])
    assert not step[1].any()


def test_entries_that_the_box_holds_do_not_use_up_a_sparse_step():
    adv = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.2]).view(1, 1, 1, 6)
    grad = torch.tensor([9.0, -8.0, 3.0, 2.0, 1.5, 1.0]).view(1, 1, 1, 6)  # the first two point out of the box
    step = apgd_l1.sparse(ThreatModel("l1", 1.0), adv, grad, torch.tensor([2]))
    assert step.flatten().tolist() == [0.5, -0.5, 0.5, 0.5, 0.0, 0.0]


def test_the_projection_of_a_sparse_change_is_that_of_the_whole_row_and_its_own():
    counts = [0, 1, 63, 64, 65, 200, 500, 1025, 2000, 3072, 3]
    x = torch.rand(11, 3, 32, 32, generator=toys.seeded(1))
    change = torch.randn(x.shape, generator=toys.seeded(2))
    order = torch.rand(11, 3072, generator=toys.seeded(3)).argsort(1).argsort(1).view_as(x)
    adv = x + torch.where(order < torch.tensor(counts).view(-1, 1, 1, 1), change, 0.0)
    adv[10].view(-1)[order[10].flatten().argmin()] = torch.nan
    for eps in (0.01, 4.0, 300.0):
        threat = ThreatModel("l1", eps)
        found = threat.project(x, adv)
        whole = projection.nearest_in_l1(x.flatten(1), adv.flatten(1), eps, 0.0, 1.0).view_as(x)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-7, equal_nan=True)
        assert threat.contains(x, found)[:10].all()
        assert torch.equal(threat.project(x, found)[:10], found[:10])
        assert torch.equal(found[:10][adv[:10] == x[:10]], x[:10][adv[:10] == x[:10]])
        for some in (*([i] for i in range(10)), [9, 2, 4], [3, 10, 5]):
            apart = threat.project(x[some], adv[some])
            torch.testing.assert_close(apart, found[some], rtol=0, atol=0, equal_nan=True)


def test_what_breaks_only_in_a_larger_radius_is_not_a_break():
    model, x = linear(), images(80, 0.3, 0.7)
    y = model(x).argmax(1)
    far = radius(model, x, y, "l1")
    eps = 0.15
    between = (far > 1.02 * eps) & (far < 2.5 * eps)
    found = attacked(APGD(steps=40, radii=3), model, x, y, "l1", eps)
    assert between.sum() > 5
    assert not found.broken[between].any()
    assert (norms.length(found.verdicts.adv.double() - x.double(), "l1") <= eps * (1 + 1e-6) + 1e-7).all()


def test_a_nan_in_one_image_s_gradient_leaves_the_others_alone():
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def forward(self, x):
            sick = (x[:, 0, 0, 0] == 0.5).float()[:, None]
            return self.inner(x) + sick * (x.flatten(1).sum(1, keepdim=True) - x.flatten(1).sum(1, keepdim=True)).sqrt()

    x = images(6)
    x[2, 0, 0, 0] = 0.5
    y = Net()(x).argmax(1)
    others = torch.tensor([0, 1, 3, 4, 5])
    for norm, eps in (("linf", 0.02), ("l2", 0.1), ("l1", 0.5)):
        attack, threat = APGD(steps=10), ThreatModel(norm, eps)
        sick = attack_batch(attack, Poisoned(), x, y, threat)
        well = attack_batch(attack, Poisoned(), x[others], y[others], threat, indices=others)
        assert torch.equal(sick.verdicts.adv[others], well.verdicts.adv)


@pytest.mark.parametrize("setting", ["steps", "restarts", "targets", "radii"])
def test_settings_below_one_are_refused(setting):
    with pytest.raises(UsageError, match="must be positive"):
        APGD(**{setting: 0})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_several_radii_are_refused_outside_l1(norm):
    model, x = linear(), images(2)
    with pytest.raises(UsageError, match=f"several radii are for l1, not {norm}"):
        attacked(APGD(radii=3), model, x, model(x).argmax(1), norm, 0.1)


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
def test_a_target_must_overtake_every_class_not_only_the_true_one(loss):
    # Raising z_target − z_y alone goes to (0.7, 0.7), where the third class leads.
    weight = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    linear = nn.Linear(2, 4)
    linear.weight.data, linear.bias.data = weight, torch.tensor([1.0, 0.0, 0.0, -5.0])
    module, x = nn.Sequential(nn.Flatten(), linear), torch.full((3, 1, 1, 2), 0.2)
    y, target = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    result = attack_batch(APGD(loss=loss), module, x, y, ThreatModel("linf", 0.5), target=target)
    assert result.broken.all()
