import pytest
import torch
from robustkit_attacks.cw import CW
from torch import Tensor, nn

from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.testing import attack_batch

L2 = ThreatModel("l2", 0.5)


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 7 * 5, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def images(n: int, *shape: int, low: float = 0.3, high: float = 0.7) -> Tensor:
    return low + (high - low) * torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def linear(classes: int, size: int) -> Linear:
    """A linear model whose decisions are about even on `images`."""
    weight = torch.randn(classes, size, generator=torch.Generator().manual_seed(1))
    return Linear(weight, -0.5 * weight.sum(1))


def nearest(module: Linear, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """Distance to the nearest decision boundary, where the box does not bind, in the norm that `dual` is dual to."""
    z = module(x)
    reach = (module.weight[None] - module.weight[y][:, None]).norm(p=dual, dim=2)
    return ((z.gather(1, y[:, None]) - z) / reach).scatter(1, y[:, None], torch.inf).amin(1).detach()


@pytest.mark.parametrize("classes", [2, 5, 10, 30])
def test_on_a_linear_model_the_distance_is_within_3_percent_of_the_least(classes):
    module, x = linear(classes, 48), images(40, 3, 4, 4)
    y = module(x).argmax(1)
    result = attack_batch(CW(), module, x, y, L2)
    assert not result.judge.reasons
    least = nearest(module, x, y, 2)
    assert (least < 0.3).all()  # else the box might bind
    assert result.judge.fooled.all()
    ratio = result.verdicts.distance / least
    assert (ratio > 0.9999).all()
    assert (ratio < 1.03).all()


def test_shifting_all_logits_far_below_zero_changes_nothing():
    module, x = linear(5, 48), images(12, 3, 4, 4)
    y = module(x).argmax(1)
    plain = attack_batch(CW(steps=200), module, x, y, L2)
    module.bias.data -= 50
    shifted = attack_batch(CW(steps=200), module, x, y, L2)
    assert plain.judge.fooled.all()
    assert shifted.judge.fooled.all()
    assert torch.allclose(plain.verdicts.distance, shifted.verdicts.distance, rtol=0.02)


def test_pixels_that_are_exactly_0_or_1_can_move():
    module, x = linear(3, 48), images(6, 3, 4, 4).round()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    y = module(x).argmax(1)
    result = attack_batch(CW(), module, x, y, L2)
    assert result.judge.fooled.all()
    moved = (result.verdicts.adv - x).abs() > 0.01
    assert (moved.flatten(1).sum(1) > 5).all()


def test_the_nearest_may_lie_beyond_eps_and_is_reported_but_does_not_count_as_a_break():
    module, x = linear(2, 48), images(20, 3, 4, 4)
    y = module(x).argmax(1)
    eps = nearest(module, x, y, 2).median().item()
    result = attack_batch(CW(steps=200), module, x, y, ThreatModel("l2", eps))
    beyond = result.verdicts.distance > eps * 1.001
    assert beyond.any()
    assert result.judge.fooled.all()
    assert not result.broken[beyond].any()
    assert result.broken[~beyond].all()
    assert not result.judge.violated.any()


def test_confidence_demands_a_lead():
    module, x = linear(3, 48), images(8, 3, 4, 4)
    y = module(x).argmax(1)
    result = attack_batch(CW(steps=300, confidence=1.0), module, x, y, L2)
    z = module(result.verdicts.adv)
    lead = z.scatter(1, y[:, None], -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]
    assert result.judge.fooled.all()
    assert (lead > 0.99).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_targeted_search_ends_in_the_target(norm):
    module, x = Net(), images(10, 3, 7, 5)
    y = module(x).argmax(1)
    target = (y + 2) % 4
    threat = ThreatModel(norm, {"l2": 3.0, "linf": 0.25}[norm])
    result = attack_batch(CW(steps=100), module, x, y, threat, target=target)
    assert result.broken.all()
    assert torch.equal(module(result.verdicts.adv).argmax(1), target)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("minimise", [True, False])
def test_the_result_of_a_row_does_not_depend_on_the_others(norm, minimise):
    module, x = Net(), images(9, 3, 7, 5, low=0.0, high=1.0)
    x[0] = x[0].round()
    y = module(x).argmax(1)
    attack = CW(steps=30, searches=5, c=0.1, lr=0.03, minimise=minimise)
    threat = ThreatModel(norm, {"l2": 0.4, "linf": 0.03}[norm])
    together = attack_batch(attack, module, x, y, threat, tile=4)
    assert 0 < together.broken.sum() < len(x)
    for some in [torch.tensor([i]) for i in range(len(x))] + [torch.tensor([7, 2, 3])]:
        apart = attack_batch(attack, module, x[some], y[some], threat, indices=some, tile=4)
        assert torch.equal(apart.verdicts.adv, together.verdicts.adv[some])
        assert torch.equal(apart.forwards, together.forwards[some])
        assert torch.equal(apart.backwards, together.backwards[some])


def test_without_minimising_a_row_leaves_at_its_first_confirmed_break_within_eps():
    module, x = Net(), images(10, 3, 7, 5)
    y = module(x).argmax(1)
    threat = ThreatModel("l2", 1.0)
    far = attack_batch(CW(steps=100), module, x, y, threat)
    soon = attack_batch(CW(steps=100, minimise=False), module, x, y, threat)
    assert far.broken.all()
    assert soon.broken.all()
    assert (soon.verdicts.distance <= 1.0).all()
    assert (far.verdicts.distance <= soon.verdicts.distance).all()
    assert (soon.backwards < far.backwards).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_row_takes_more_passes_than_declared(norm):
    module, x = linear(3, 48), images(6, 3, 4, 4)
    y = module(x).argmax(1)
    attack = CW(steps=25, searches=3)
    forwards, backwards = attack.cost(3)
    result = attack_batch(attack, module, x, y, ThreatModel(norm, 1e-4))
    assert (result.forwards <= forwards).all()
    assert (result.backwards <= backwards).all()
    if norm == "linf":
        assert result.forwards.tolist() == [26] * 6


def test_a_row_that_stalls_stops_before_the_others():
    module, x = linear(2, 48), images(6, 3, 4, 4)
    y = module(x).argmax(1)
    attack = CW(steps=400)
    result = attack_batch(attack, module, x, y, L2)
    assert (result.backwards < 0.9 * attack.cost(2)[1]).all()
    assert len(result.backwards.unique()) > 1


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_in_linf_exactly_what_can_be_broken_of_a_linear_model_is_broken(shift):
    module, x = linear(2, 48), images(60, 3, 4, 4)
    y = module(x).argmax(1)
    eps = nearest(module, x, y, 1).median().item()
    module.bias.data += shift
    can = nearest(module, x, y, 1) < eps
    clear = (nearest(module, x, y, 1) / eps - 1).abs() > 0.002
    result = attack_batch(CW(steps=40), module, x, y, ThreatModel("linf", eps))
    assert not result.judge.reasons
    assert clear.sum() > 50
    assert torch.equal(result.broken[clear], can[clear])


def test_in_linf_nothing_is_returned_beyond_eps():
    module, x = Net(), images(8, 3, 7, 5, low=0.0, high=1.0)
    y = module(x).argmax(1)
    threat = ThreatModel("linf", 0.01)
    result = attack_batch(CW(steps=50), module, x, y, threat)
    assert threat.contains(x, result.verdicts.adv).all()


def test_in_linf_a_broken_row_leaves_early():
    module, x = Net(), images(8, 3, 7, 5)
    y = module(x).argmax(1)
    result = attack_batch(CW(steps=200), module, x, y, ThreatModel("linf", 0.3))
    assert result.broken.all()
    assert (result.forwards <= 65).all()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"searches": 0}, {"lr": 0.0}, {"c": -1.0}, {"confidence": -0.1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match="cw"):
        CW(**settings)
