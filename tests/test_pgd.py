import itertools

import pytest
import torch
from robustkit_attacks.pgd import PGD

from robustkit.api import Expected, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms
from robustkit.testing import attack_batch, conformance
from tests import toys
from tests.test_apgd import NORMS, Net, Wavy, attacked, images, linear, radius, slack

ONE_ENTRY = 1 / 48  # in L1 with the box out of reach, all of eps belongs to the entry of largest gradient


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_linear_model_of_two_classes_is_broken_exactly_where_margin_over_dual_norm_is_below_eps(norm, loss):
    model, x = linear(2), images(160, 0.3, 0.7)
    y = model(x).argmax(1)
    far = radius(model, x, y, norm)
    eps = min(float(far.median()), 0.3)
    # The way a random start leaves of the L2 ball shrinks by e^-2.5 in all: 0.3 % of the length is not used.
    can, clear = far < eps, (far / eps - 1).abs() > (1e-2 if norm == "l2" else 1e-3)
    assert clear.sum() >= 150
    assert 40 <= can.sum() <= 120
    for random_start in (True, False):
        attack = PGD(loss=loss, random_start=random_start, density=ONE_ENTRY)
        assert torch.equal(attacked(attack, model, x, y, norm, eps).broken[clear], can[clear])


@pytest.mark.parametrize("norm", NORMS)
def test_with_several_classes_and_restarts_next_to_nothing_is_missed_and_nothing_invented(norm):
    model, x = linear(5), images(160, 0.3, 0.7)
    y = model(x).argmax(1)
    far = radius(model, x, y, norm)
    eps = min(float(far.median()), 0.3)
    can = far < eps
    assert 20 <= can.sum() <= 140
    found = attacked(PGD(loss="margin", restarts=5, density=ONE_ENTRY), model, x, y, norm, eps)
    assert not found.broken[far > eps * 1.001].any()
    assert (can & ~found.broken).sum() <= 2


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_what_ball_and_box_forbid_is_not_broken_and_most_of_what_they_allow_is(norm):
    model, x = linear(2), images(160)
    ends = torch.rand(x.shape, generator=toys.seeded(8))
    x = torch.where(ends < 0.3, 0.0, torch.where(ends > 0.7, 1.0, x))
    y = model(x).argmax(1)
    eps = {"linf": 0.04, "l1": 0.8}[norm]
    gap = slack(model, x, y, eps, norm)
    found = attacked(PGD(restarts=2, density=ONE_ENTRY), model, x, y, norm, eps)
    assert not found.broken[gap < 0].any()
    assert found.broken[gap > 0].double().mean() > 0.97


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_attack_ends_in_its_target(norm):
    model, x = linear(), images(80, 0.3, 0.7)
    y = model(x).argmax(1)
    target = (y + 1 + torch.arange(80) % 3) % 4
    eps = {"linf": 0.2, "l2": 1.2, "l1": 6.0}[norm]
    for loss in ("ce", "dlr-targeted", "margin"):
        found = attacked(PGD(loss=loss, steps=30), model, x, y, norm, eps, target=target)
        assert found.broken.sum() > 20
        assert torch.equal(model(found.verdicts.adv).argmax(1)[found.broken], target[found.broken])
        assert not attacked(PGD(loss=loss, steps=5), model, x, y, norm, 1e-5, target=target).broken.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_black_and_white_images_can_be_broken(norm, end):
    model, x = linear(5), torch.full((40, 3, 4, 4), end)
    model.bias.data -= model(x[:1])[0].detach()
    model.bias.data += 0.2 * torch.randn(5, generator=toys.seeded(4))
    eps = {"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm]
    found = attacked(PGD(), model, x, model(x).argmax(1), norm, eps)
    assert found.broken.all()
    assert ((found.verdicts.adv >= 0) & (found.verdicts.adv <= 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_never_break_fewer(norm, monkeypatch):
    monkeypatch.setattr(conformance, "key_of", lambda *_: (1, 2))  # the draws, whatever the settings
    model, x = Wavy(), images(120)
    y = model(x).argmax(1)
    eps = {"linf": 0.2, "l2": 1.0, "l1": 0.2}[norm]
    broken = [attacked(PGD(steps=2, restarts=k), model, x, y, norm, eps).broken for k in (1, 2, 5)]
    for fewer, more in itertools.pairwise(broken):
        assert not (fewer & ~more).any()
    assert 0 < broken[0].sum() < broken[-1].sum()


ATTACKS = [
    ("linf", 0.04, PGD(steps=12, restarts=2)),
    ("l2", 0.3, PGD(steps=12, restarts=2, loss="dlr")),
    ("l1", 1.4, PGD(steps=12, restarts=2)),
    ("l1", 1.4, Expected(PGD(steps=12, density=0.3, step=0.4), 2)),
]


@pytest.mark.parametrize(("norm", "eps", "attack"), ATTACKS)
def test_a_sample_ends_bit_for_bit_alike_alone_in_a_few_and_among_all(norm, eps, attack):
    model, x = Net(), images(19)
    y = model(x).argmax(1)
    together = attacked(attack, model, x, y, norm, eps, tile=4)
    assert 0 < together.broken.sum() < len(x)
    stay = (~together.broken).nonzero()[:, 0]
    for some in (*(torch.tensor([i]) for i in range(len(x))), torch.tensor([17, 3, 11]), stay):
        apart = attacked(attack, model, x[some], y[some], norm, eps, indices=some, tile=4)
        assert torch.equal(apart.verdicts.adv, together.verdicts.adv[some])
        assert torch.equal(apart.backwards, together.backwards[some])


def test_a_step_in_l1_moves_the_share_of_entries_that_density_tells():
    model, x = linear(2), images(6, 0.4, 0.6)
    y = model(x).argmax(1)
    for density, moved in ((0.05, 3), (0.25, 12), (1.0, 48)):
        attack = PGD(steps=1, step=0.1, random_start=False, density=density)
        found = attack_batch(attack, model, x, y, ThreatModel("l1", 0.5))
        change = found.verdicts.adv - x
        assert (change != 0).flatten(1).sum(1).tolist() == [moved] * 6
        assert torch.allclose(norms.length(change, "l1"), torch.tensor(0.1), atol=1e-5)
        assert torch.allclose(change.abs().amax(), torch.tensor(0.1 / moved), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_random_start_nothing_is_random(norm):
    model, x = Net(), images(10)
    y = model(x).argmax(1)
    eps = {"linf": 0.03, "l2": 0.2, "l1": 1.0}[norm]
    one, two = (attacked(PGD(steps=5, random_start=False), model, x, y, norm, eps, seed=seed) for seed in (0, 1))
    assert torch.equal(one.verdicts.adv, two.verdicts.adv)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"step": 0.0}, {"density": 0.0}, {"density": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match=r"positive|share of the entries"):
        PGD(**settings)
