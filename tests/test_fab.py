import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustkit_attacks import hyperplane
from robustkit_attacks.fab import FAB
from scipy.optimize import linprog, minimize
from torch import nn

from benchmarks import kit
from robustkit.api import Case, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms
from robustkit.testing import attack_batch
from tests import needs

NORMS = ["linf", "l2", "l1"]
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shortest_by_scipy(p, w, gap, norm):
    """The length of the shortest d with w·d = gap and p + d in [0,1], by a solver that knows nothing of its form."""
    p, w, n = np.asarray(p, float), np.asarray(w, float), len(p)
    room = list(zip(-p, 1 - p, strict=True))
    if norm == "linf":  # least t with -t ≤ d ≤ t
        sides = np.vstack([np.c_[np.eye(n), -np.ones(n)], np.c_[-np.eye(n), -np.ones(n)]])
        found = linprog(np.r_[np.zeros(n), 1], sides, np.zeros(2 * n), [np.r_[w, 0]], [gap], [*room, (0, None)])
        return found.fun if found.success else None
    feasible = linprog(np.r_[np.ones(2 * n)], None, None, [np.r_[w, -w]], [gap],
                       [(0, 1 - x) for x in p] + [(0, x) for x in p])  # fmt: skip
    if norm == "l1" or not feasible.success:
        return feasible.fun if feasible.success else None
    start = feasible.x[:n] - feasible.x[n:]
    plane = {"type": "eq", "fun": lambda d: (d @ w - gap) / abs(w).max(), "jac": lambda d: w / abs(w).max()}
    found = minimize(lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=room, constraints=[plane], method="SLSQP",
                     options={"ftol": 1e-12, "maxiter": 500})  # fmt: skip
    return np.sqrt(found.fun)


def reach(p, w, gap):
    """The most that can be gained towards gap inside the box."""
    return (w.abs() * torch.where((w > 0) == (gap[:, None] > 0), 1 - p, p)).sum(1)


def problems(n, size, seed, share):
    """Points with entries at 0 and 1, normals with zeros, gaps that need `share` of what can be gained."""
    g = seeded(seed)
    p = (torch.rand(n, size, generator=g) * 1.6 - 0.3).clamp(0, 1)
    w = torch.randn(n, size, generator=g) * (torch.rand(n, size, generator=g) > 0.2)
    sign = torch.randn(n, generator=g).sign()
    return p, w, sign * share * reach(p, w, sign)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9, 0.999])
@pytest.mark.parametrize("norm", NORMS)
def test_no_solver_finds_a_shorter_way_to_the_hyperplane(norm, share):
    p, w, gap = problems(12, 7, 3, share)
    d = hyperplane.shortest(p, w, gap, norm)
    assert ((p + d >= 0) & (p + d <= 1)).all()
    torch.testing.assert_close((w * d).sum(1), gap, rtol=1e-5, atol=1e-6)
    for i in range(len(p)):
        best = shortest_by_scipy(p[i], w[i], float(gap[i]), norm)
        assert norms.length(d[i : i + 1], norm).item() == pytest.approx(best, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_every_entry_goes_to_its_side_of_the_box(norm):
    p, w, gap = problems(12, 7, 4, 1.2)
    assert all(shortest_by_scipy(p[i], w[i], float(gap[i]), norm) is None for i in range(len(p)))
    moved = p + hyperplane.shortest(p, w, gap, norm)
    wanted = torch.where((w > 0) == (gap[:, None] > 0), 1.0, 0.0)
    torch.testing.assert_close(moved, torch.where(w == 0, p, wanted))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_projections_end_in_the_box_and_on_the_plane_and_each_is_the_shortest_in_its_norm(data):
    size = data.draw(st.integers(1, 9))
    entries = lambda low, high: st.lists(st.floats(low, high, width=32), min_size=size, max_size=size)  # noqa: E731
    p = torch.tensor([data.draw(entries(0, 1))])
    w = torch.tensor([data.draw(entries(-8, 8))])
    gap = torch.tensor([data.draw(st.floats(-20, 20, width=32))])
    found = {norm: hyperplane.shortest(p, w, gap, norm) for norm in NORMS}
    limit = reach(p, w, gap)
    for norm, d in found.items():
        assert ((p + d >= 0) & (p + d <= 1)).all()
        assert (d[w == 0] == 0).all()
        gained = (w * d).sum(1)
        if gap.abs() <= limit:
            torch.testing.assert_close(gained, gap, rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(gained, limit * gap.sign(), rtol=1e-5, atol=1e-6)
        if gap.abs() < 0.99 * limit:  # at the very rim of what can be reached, rounding decides
            assert all(
                norms.length(d, norm) <= norms.length(other, norm) * (1 + 1e-4) + 1e-6 for other in found.values()
            )


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_where_the_normal_is_zero_or_not_finite_or_the_gap_is_none(norm):
    p, w, gap = problems(5, 6, 5, 0.3)
    alone = hyperplane.shortest(p[:1], w[:1], gap[:1], norm)
    w[1], w[2, 3], gap[3], gap[4] = 0, torch.nan, torch.inf, 0
    d = hyperplane.shortest(p, w, gap, norm)
    assert torch.equal(d[1:], torch.zeros_like(d[1:]))
    assert torch.equal(d[:1], alone)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("power", [-100, 90])
def test_the_scale_of_the_normal_does_not_matter(norm, power):
    p, w, gap = problems(6, 50, 6, 0.3)
    scaled = hyperplane.shortest(p, w * 2.0**power, gap * 2.0**power, norm)
    assert torch.equal(scaled, hyperplane.shortest(p, w, gap, norm))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [7, 3072, 150528])
def test_a_row_alone_is_projected_as_in_a_batch(norm, size):
    p, w, gap = problems(5, size, 7, 0.3)
    gap *= torch.tensor([1.0, 0.01, 2.5, 3.2, 0.5])  # rows that need few Newton steps and many, and one out of reach
    together = hyperplane.shortest(p, w, gap, norm)
    for i in range(len(p)):
        assert torch.equal(hyperplane.shortest(p[i : i + 1], w[i : i + 1], gap[i : i + 1], norm)[0], together[i])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99999])
def test_newton_arrives_even_where_rooms_and_slopes_span_many_magnitudes(norm, share):
    spans = torch.tensor([[20.0, 20.0], [60.0, 60.0], [60.0, 30.0], [100.0, 110.0]])
    place = torch.linspace(0, 1, 3000)
    p, w = 2 ** (-spans[:, :1] * place), -(2 ** (spans[:, 1:] * place))
    gap = -share * reach(p, w, -torch.ones(len(p)))
    gained = (w.double() * hyperplane.shortest(p, w, gap, norm)).sum(1)
    torch.testing.assert_close(gained, gap.double(), rtol=2e-5, atol=0)


def test_a_norm_without_a_projection_is_refused():
    with pytest.raises(UsageError, match="linf, l2, l1"):
        hyperplane.shortest(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), "l0")


def linear(classes, shape=(3, 2, 2), seed=0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(network[1].weight.shape, generator=seeded(seed)))
        network[1].bias.zero_()
    return network.requires_grad_(False).eval()


def small(layers, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers)).requires_grad_(False).eval()


def mlp(seed=1, classes=6):
    return small([nn.Flatten, lambda: nn.Linear(48, 40), nn.ReLU, lambda: nn.Linear(40, classes)], seed)


def images(n, shape=(3, 4, 4), seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(n, *shape, generator=seeded(seed))


def optimum(network, x, y, norm):
    """The distance to the nearest other class of a linear network, by scipy."""
    weight, z = network[1].weight, network(x)
    ways = []
    for i in range(len(x)):
        others = [j for j in range(z.shape[1]) if j != y[i]]
        lengths = [
            shortest_by_scipy(x[i].flatten(), weight[j] - weight[y[i]], float(z[i, y[i]] - z[i, j]), norm)
            for j in others
        ]
        ways.append(min((found for found in lengths if found is not None), default=np.inf))
    return torch.tensor(ways)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_on_linear_networks_it_comes_within_five_percent_of_the_optimum(norm, classes, targeted):
    network, x = linear(classes, seed=classes), images(12, (3, 2, 2), low=0.1, high=0.9)
    y = network(x).argmax(1)
    best = optimum(network, x, y, norm)
    found = attack_batch(FAB(classes - 1, targeted, steps=60), network, x, y, ThreatModel(norm, 0.1)).verdicts
    reachable = best < torch.inf
    assert reachable.sum() >= 6
    ratio = found.distance[reachable] / best[reachable]
    assert (ratio >= 1 - 1e-5).all()
    # The untargeted form takes the class that is nearest without a box; in L1 the box is nearly always in the way.
    assert (ratio <= 1.05).double().mean() >= (0.75 if norm == "l1" and not targeted else 1)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_in_the_way_the_distance_is_the_closed_form(norm):
    network, x = linear(4, (3, 8, 8), seed=3), images(16, (3, 8, 8), low=0.45, high=0.55)
    y = network(x).argmax(1)
    z, weight, dual = network(x), network[1].weight, {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    apart = (z.gather(1, y[:, None]) - z) / (weight[y][:, None] - weight).norm(dual, dim=2)
    best = apart.scatter(1, y[:, None], torch.inf).amin(1)
    free = best < 0.4
    assert free.sum() >= 8
    found = attack_batch(FAB(3, steps=40), network, x, y, ThreatModel(norm, 0.1)).verdicts
    torch.testing.assert_close(found.distance[free], best[free].double(), rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("attack", [
    FAB(3, steps=12, restarts=2), FAB(3, steps=12, restarts=2, minimise=False), FAB(targeted=False, steps=12),
    FAB(targeted=False, steps=12, minimise=False),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_alone_is_attacked_as_in_a_batch(norm, attack):
    network, x = mlp(), images(9)
    y = network(x).argmax(1)
    threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm])
    together = attack_batch(attack, network, x, y, threat)
    for i in range(len(x)):
        alone = attack_batch(attack, network, x[i : i + 1], y[i : i + 1], threat, indices=torch.tensor([i]))
        assert torch.equal(alone.verdicts.adv[0], together.verdicts.adv[i])
        assert torch.equal(alone.verdicts.outcome[0], together.verdicts.outcome[i])
        assert (alone.forwards[0], alone.backwards[0]) == (together.forwards[i], together.backwards[i])


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_leaving_early_breaks_exactly_the_same_samples(norm, targeted):
    network, x = mlp(), images(80)
    y = network(x).argmax(1)
    threat = ThreatModel(norm, {"linf": 0.06, "l2": 0.35, "l1": 0.8}[norm])
    nearest, early = (
        attack_batch(FAB(5, targeted, steps=25, restarts=2, minimise=minimise), network, x, y, threat)
        for minimise in (True, False)
    )
    assert 10 <= nearest.broken.sum() <= 70
    assert torch.equal(early.broken, nearest.broken)
    assert (early.forwards <= nearest.forwards).all()
    assert early.forwards[early.broken].double().mean() < 0.5 * nearest.forwards[early.broken].double().mean()
    assert not early.judge.violated.any()
    assert not nearest.judge.violated.any()


@pytest.mark.parametrize("norm", NORMS)
def test_saturated_images_move(norm):
    network = mlp(classes=3)
    x = images(20, seed=2).round()
    y = network(x).argmax(1)
    found = attack_batch(FAB(2, steps=30), network, x, y, ThreatModel(norm, 0.1)).verdicts
    assert found.distance.isfinite().all()
    assert (found.margin <= 0).all()


@pytest.mark.parametrize("attack", [FAB(steps=60), FAB(targeted=False, steps=60)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_evaluation_reaches_the_target_and_nothing_else(norm, attack):
    network, x = linear(5, (3, 4, 4), seed=2), images(24, low=0.2, high=0.8)
    y = network(x).argmax(1)
    target = (y + 1 + torch.arange(24) % 4) % 5
    threat = ThreatModel(norm, {"linf": 0.5, "l2": 4.0, "l1": 30.0}[norm])
    found = attack_batch(attack, network, x, y, threat, target=target)
    assert torch.equal(network(found.verdicts.adv).argmax(1), target)
    assert found.broken.all()
    assert (found.forwards <= 1 + 2 * 60).all()


@pytest.mark.parametrize("minimise", [True, False])
def test_what_is_misclassified_already_is_returned_as_it_is(minimise):
    network, x = mlp(), images(6)
    y = network(x).argmax(1)
    y[::2] = (y[::2] + 1) % 6
    found = attack_batch(FAB(3, steps=3, minimise=minimise), network, x, y, ThreatModel("linf", 0.05))
    assert torch.equal(found.verdicts.adv[::2], x[::2])
    assert found.broken[::2].all()
    everything = attack_batch(FAB(3, steps=3, minimise=minimise), network, x, (network(x).argmax(1) + 1) % 6,
                              ThreatModel("linf", 0.05))  # fmt: skip
    assert torch.equal(everything.verdicts.adv, x)


def test_what_is_not_fooled_is_returned_as_it_was():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)) * 0 + 1, x.sum((1, 2, 3)) * 0], 1)

    x = images(3)
    seen = []

    def spy(case: Case):
        seen.append(FAB(1, steps=4)(case))
        return seen[0]

    spy.goal = "minimal"
    found = attack_batch(spy, Sure(), x, torch.zeros(3, dtype=torch.int64), ThreatModel("linf", 0.1))
    assert torch.equal(seen[0], x)
    assert not found.broken.any()


@pytest.mark.parametrize("attack", [
    FAB(), FAB(2, steps=7, restarts=3), FAB(targeted=False, steps=5, restarts=2), FAB(9, False, steps=1),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_cost_is_what_a_sample_that_holds_out_takes(attack, classes):
    network, x = mlp(classes=classes), images(2)
    y = network(x).argmax(1)
    small = FAB(attack.targets, attack.targeted, min(attack.steps, 3), attack.restarts)
    found = attack_batch(small, network, x, y, ThreatModel("l2", 1e-6))
    assert (found.forwards[0], found.backwards[0]) == small.cost(classes)


class Wavy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = [torch.randn(*shape, generator=seeded(i)) for i, shape in enumerate([(48, 32), (32, 6)])]

    def forward(self, x):
        return (3 * x.flatten(1) @ self.weights[0]).sin() @ self.weights[1]


def test_restarts_help_and_are_repeatable():
    network, x = Wavy(), images(20)
    y = network(x).argmax(1)
    threat = ThreatModel("l2", 0.3)
    once, more, again = (
        attack_batch(FAB(1, steps=25, restarts=n), network, x, y, threat).verdicts.distance for n in (1, 5, 5)
    )
    assert once.isfinite().all()
    assert (more <= once).all()
    assert (more < once).any()
    assert torch.equal(more, again)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"targets": 0}])
def test_settings_that_would_do_nothing_are_refused(settings):
    with pytest.raises(UsageError, match="at least 1"):
        FAB(**settings)


def by_reference(network, x, y, norm, eps, steps, targets):
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    with torch.random.fork_rng():
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        attack = fab_pt.FABAttack_PT(
            network, norm=name, n_iter=steps, eps=eps, targeted=True, n_target_classes=targets, device="cpu"
        )
        adv = attack.perturb(x, y)
    near = norms.length(adv.double() - x.double(), norm) <= eps * (1 + 1e-6) + 1e-7
    return near & (network(adv).argmax(1) != y)


@pytest.mark.parametrize("norm", NORMS)
def test_it_breaks_what_the_reference_implementation_breaks(norm):
    layers = [lambda: nn.Conv2d(3, 8, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(8, 8, 3, stride=2), nn.ReLU,
              nn.Flatten, lambda: nn.Linear(72, 10)]  # fmt: skip
    network, x = small(layers, 5), images(100, (3, 8, 8))
    y = network(x).argmax(1)
    eps = {"linf": 0.04, "l2": 0.4, "l1": 2.0}[norm]
    reference = by_reference(network, x, y, norm, eps, 20, 3)
    assert 20 <= reference.sum() <= 80
    found = attack_batch(FAB(3, steps=20, minimise=False), network, x, y, ThreatModel(norm, eps))
    assert (found.broken != reference).sum() <= 2


@pytest.mark.slow
@needs.kit
@pytest.mark.parametrize(("norm", "eps"), [("linf", 2 / 255), ("l2", 0.25)])
def test_it_breaks_what_the_reference_implementation_breaks_on_cifar10(norm, eps):
    network = kit.model("cifar10_cnn_a_adv")
    x, y = kit.cifar10(range(200))
    right = network(x).argmax(1) == y
    x, y = x[right], y[right]
    reference = by_reference(network, x, y, norm, eps, 100, 9)
    found = attack_batch(FAB(minimise=False), network, x, y, ThreatModel(norm, eps), tile=256)
    assert (found.broken != reference).sum() <= 2
