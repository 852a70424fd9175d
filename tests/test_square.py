import pytest
import torch
from robustkit_attacks.square import Square
from torch import Tensor, nn

from robustkit.api import Norm, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms
from robustkit.testing import Attacked, attack_batch

BUDGETS: dict[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 2.0}


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Watched(nn.Module):
    """Equal logits but for the first class, so that nothing is ever accepted; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3)


class Net(nn.Module):
    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.fc = nn.Linear(6 * height * width, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def images(n: int, *shape: int, low: float = 0.3, high: float = 0.7, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def linear(classes: int, *shape: int, seed: int = 0, scale: float = 0.2) -> Linear:
    """A linear model whose decisions are about even on `images`."""
    weight = scale * torch.randn(classes, torch.Size(shape).numel(), generator=torch.Generator().manual_seed(seed))
    return Linear(weight, -0.5 * weight.sum(1))


def used_budget(module: Linear, x: Tensor, y: Tensor, eps: float, norm: Norm) -> Tensor:
    """By how much eps falls short, as a factor, of what breaks each row if no box binds (below 1: can be)."""
    z = module(x)
    reach = module.weight[None] - module.weight[y][:, None]
    dual = {"linf": reach.abs().sum(2), "l2": reach.norm(dim=2), "l1": reach.abs().amax(2)}[norm]
    gap = (z.gather(1, y[:, None]) - z) / (eps * dual)
    return gap.scatter(1, y[:, None], torch.inf).amin(1).detach()


def attacked(attack: Square, module: nn.Module, x: Tensor, y: Tensor, norm: Norm, **options) -> Attacked:
    result = attack_batch(attack, module, x, y, ThreatModel(norm, BUDGETS[norm]), **options)
    assert not result.judge.reasons
    return result


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 8, 12), (2, 12, 5), (1, 1, 1), (3, 2, 7)])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.97, 1.0)])
def test_every_submission_stays_inside_the_ball_and_the_box(norm, shape, ends):
    x = images(7, *shape, low=ends[0], high=ends[1])
    x[0], x[1] = 0.0, 1.0
    module = Net(*shape)
    result = attacked(Square(queries=150), module, x, module(x).argmax(1), norm)
    distance = norms.length(result.verdicts.adv.double() - x.double(), norm)
    assert (distance <= BUDGETS[norm] * (1 + 1e-6) + 1e-7).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_query_stays_inside_and_spends_most_of_the_budget(norm):
    x = images(3, 3, 10, 8)
    module = Watched()
    attacked(Square(queries=100), module, x, torch.zeros(3, dtype=torch.int64), norm, tile=3)
    queries = module.seen[1:-1]  # the first call counts the classes, the last is the judge's
    assert len(queries) == 101
    for adv in queries:
        distance = norms.length(adv.double() - x.double(), norm)
        assert (distance <= BUDGETS[norm] * (1 + 1e-6) + 1e-7).all()
        assert (distance > 0.99 * BUDGETS[norm]).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_rejected_is_put_back(norm):
    x = images(3, 2, 10, 8)
    module = Watched()
    attacked(Square(queries=60), module, x, torch.zeros(3, dtype=torch.int64), norm, tile=3)
    first, *others, final = module.seen[1:]
    assert torch.equal(final, first)
    assert any(not torch.equal(other, first) for other in others)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_result_of_a_row_does_not_depend_on_the_others(norm):
    shape = (3, 8, 9)
    module, x = Net(*shape), images(9, *shape, low=0.0, high=1.0)
    y = module(x).argmax(1)
    attack, threat = Square(queries=120, restarts=2), ThreatModel(norm, {"linf": 0.2, "l2": 2.0, "l1": 10.0}[norm])
    together = attack_batch(attack, module, x, y, threat, tile=4)
    assert 0 < together.broken.sum() < len(x)
    subset = torch.tensor([7, 2, 3])
    alike = [torch.tensor([i]) for i in range(len(x))] + [subset]
    for some in alike:
        apart = attack_batch(attack, module, x[some], y[some], threat, indices=some, tile=4)
        assert torch.equal(apart.verdicts.adv, together.verdicts.adv[some])
        assert torch.equal(apart.forwards, together.forwards[some])


def test_samples_get_windows_of_their_own():
    x = torch.full((2, 1, 9, 9), 0.5)
    module = Watched()
    attacked(Square(queries=20), module, x, torch.zeros(2, dtype=torch.int64), "linf", tile=2)
    assert all(not torch.equal(*adv) for adv in module.seen[1:-1])


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 6, 4)])
def test_single_pixel_windows_land_evenly_up_to_the_last_row_and_column(shape):
    x, queries = torch.full((40, *shape), 0.5), 500
    module = Watched()
    assert Square(p=0.01).side(1, "linf", *shape[1:]) == 1
    attacked(Square(queries=queries, p=0.01), module, x, torch.zeros(40, dtype=torch.int64), "linf", tile=40)
    first, *others, _ = module.seen[1:]
    changed = torch.stack([adv != first for adv in others])
    assert (changed.flatten(2).sum(2) <= 1).all()
    counts = changed.sum((0, 1, 2)).double().flatten()
    # A window shows where its sign is not the stripe's: half of the time.
    expected = 40 * queries / 2 / counts.numel()
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_large_windows_reach_the_last_row_and_column_too():
    x = torch.full((60, 1, 8, 12), 0.5)
    module = Watched()
    assert Square().side(1, "linf", 8, 12) == 8
    assert Square().side(60, "linf", 8, 12) == 4
    attacked(Square(queries=60), module, x, torch.zeros(60, dtype=torch.int64), "linf", tile=60)
    first, *others, _ = module.seen[1:]
    changed = torch.stack([adv != first for adv in others[11:50]])[:, :, 0]  # windows of 6×6
    for edge in (changed[:, :, 0], changed[:, :, -1], changed[:, :, :, 0], changed[:, :, :, -1]):
        share = edge.any(-1).double().mean()
        assert share > 0.04


def test_the_area_of_windows_halves_on_a_schedule_for_10000_queries():
    attack = Square()
    sides = [attack.side(i, "linf", 32, 32) for i in (1, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 5000)]
    assert sides == [29, 29, 20, 20, 14, 14, 10, 7, 5, 4, 3, 3]
    rescaled = Square(queries=1000, rescale=True)
    assert [rescaled.side(i, "linf", 32, 32) for i in (1, 2, 1000)] == [29, 20, 1]
    assert Square().side(1, "linf", 1, 12) == 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_robust_row_takes_exactly_the_declared_number_of_forwards(norm):
    x, attack = images(2, 1, 5, 5), Square(queries=70, restarts=2)
    result = attacked(attack, Watched(), x, torch.zeros(2, dtype=torch.int64), norm)
    assert attack.cost(3) == (142, 0)
    assert result.forwards.tolist() == [142, 142]
    assert result.backwards.tolist() == [0, 0]


def test_a_broken_row_leaves_early():
    module, x = linear(2, 1, 6, 6, scale=1.0), images(64, 1, 6, 6)
    y = module(x).argmax(1)
    result = attacked(Square(queries=2000), module, x, y, "linf")
    easy = used_budget(module, x, y, BUDGETS["linf"], "linf") < 0.3
    assert easy.any()
    assert (result.forwards[result.broken] <= 2000).all()
    assert (result.forwards[easy] < 200).all()


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_linf_breaks_all_that_can_be_broken_of_a_linear_model_with_two_classes(shift):
    module, x = linear(2, 1, 6, 6), images(120, 1, 6, 6)
    module.bias.data += shift
    y, eps = module(x).argmax(1), 0.02
    used = used_budget(module, x, y, eps, "linf")
    clear = (used - 1).abs() > 0.01
    result = attack_batch(Square(queries=1500), module, x, y, ThreatModel("linf", eps))
    assert 20 < (used < 1).sum() < 100
    assert torch.equal(result.broken[clear], (used < 1)[clear])


@pytest.mark.parametrize(("norm", "reached"), [("linf", 0.95), ("l2", 0.8), ("l1", 0.8)])
def test_of_a_linear_model_nearly_all_that_can_be_broken_is_and_nothing_else(norm, reached):
    module, x = linear(4, 1, 6, 6), images(120, 1, 6, 6)
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.2}[norm]
    y = module(x).argmax(1)
    used = used_budget(module, x, y, eps, norm)
    result = attack_batch(Square(queries=1500), module, x, y, ThreatModel(norm, eps))
    assert 20 < (used < 1).sum() < 110
    assert not result.broken[used > 1.001].any()
    assert result.broken[used < 0.95].double().mean() >= reached


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_targeted_search_ends_in_the_target(norm):
    module, x = Net(3, 8, 8), images(12, 3, 8, 8)
    y = module(x).argmax(1)
    target = (y + 1) % 4
    threat = ThreatModel(norm, {"linf": 0.3, "l2": 4.0, "l1": 40.0}[norm])
    result = attack_batch(Square(queries=300), module, x, y, threat, target=target)
    assert result.broken.double().mean() > 0.7
    assert torch.equal(module(result.verdicts.adv).argmax(1)[result.broken], target[result.broken])


def test_a_model_that_says_nan_breaks_nothing_and_stops_nothing():
    class Sick(Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return torch.where(x[:, 0, 0, :1] > 0.5, torch.nan, z)

    base, x = linear(2, 1, 6, 6), images(40, 1, 6, 6)
    x[:, 0, 0, 0] = 0.48
    module = Sick(base.weight.data, base.bias.data)
    y = module(x).argmax(1)
    used = used_budget(base, x, y, BUDGETS["linf"], "linf")
    result = attack_batch(Square(queries=800), module, x, y, ThreatModel("linf", BUDGETS["linf"]))
    assert result.broken[used < 0.7].all()


@pytest.mark.parametrize("settings", [{"queries": 0}, {"restarts": 0}, {"p": 0.0}, {"p": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match="square"):
        Square(**settings)
