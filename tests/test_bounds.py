"""Bounds of networks against the truth: all corners of tiny images, points of balls, closed forms, what is broken."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit import spec
from robustkit.certificates import bounds, ladder, regions, tracing
from robustkit.certificates.graph import NotCertifiableError
from robustkit.errors import UsageError
from robustkit.models.sources.normalized import normalized

SHAPE = (1, 3, 3)
NORMS = ("linf", "l2", "l1")
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5)))


class Residual(nn.Module):
    """Everything that can be bounded, on 3×3 images."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1, bias=False)
        self.activation, self.fc = activation, nn.Linear(8 * 4, 4)
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.bn1(self.conv1(x)))
        b = self.activation(self.conv2(a) + self.conv3(a))
        c = torch.cat([self.pool(b), F.avg_pool2d(a, 2, 1)], 1)
        return self.fc(c.flatten(1))


def networks(seed: int) -> list[nn.Module]:
    """Random networks of every kind, with what they do to their images first or without."""
    torch.manual_seed(seed)
    kinds = [nn.ReLU(), nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh(), nn.ReLU6()]
    found: list[nn.Module] = []
    for kind in (kinds[seed % 5], kinds[(seed + 1) % 5]):
        one = Residual(kind)
        for part in one.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.weight.data.normal_()
            elif isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.data.mul_(3)
        found.append(one.eval())
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    found.append(mlp.eval())
    return [*found, *(normalized(one, [0.4], [0.2]) for one in found)]


def points(x: Tensor, norm: str, eps: float) -> Tensor:
    """Images of ball and box: in Linf every corner; in L1 every vertex; else the sphere; and some inside."""
    radius, n = spec.limit(eps), x.numel()
    if norm == "linf":
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)))
    elif norm == "l1":
        signs = torch.cat([torch.eye(n), -torch.eye(n), F.normalize(torch.randn(200, n), p=1)])
    else:
        signs = F.normalize(torch.randn(2000, n))
    inside = signs[:50] * torch.rand(50, 1)
    return (x.flatten() + radius * torch.cat([signs, inside])).clamp(0, 1).view(-1, *x.shape)


def margins_of(network: nn.Module, x: Tensor, y: int) -> Tensor:
    logits = network(x)
    others = torch.cat([logits[:, :y], logits[:, y + 1 :]], 1)
    return logits[:, y : y + 1] - others


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_point_of_a_region_lies_below_its_bound(seed: int, norm: str) -> None:
    for network in networks(seed):
        x = torch.rand(2, *SHAPE)
        x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.5])  # pixels at the ends of the box
        traced = tracing.trace(network, x)
        with torch.no_grad():
            y = network(x).argmax(1)
            for eps in (0.05, 0.3):
                region = regions.region(x, norm, eps)
                known = bounds.intervals(traced, region)
                found = {
                    "ibp": bounds.margins(known, y, stop_at_boxes=True),
                    "crown over ibp": bounds.margins(known, y),
                    "crown": bounds.margins(bounds.crown(traced, region), y),
                }
                for i in range(len(x)):
                    truth = margins_of(network, points(x[i], norm, eps), int(y[i])).amin(0)
                    for name, bound in found.items():
                        slack = 1e-5 * (1 + bound.size[i])
                        assert (bound.low[i] <= truth + slack).all(), (name, norm, eps, type(network).__name__)
                best = ladder.prove(traced, region, y, "alpha-crown")
                for i in range(len(x)):
                    truth = margins_of(network, points(x[i], norm, eps), int(y[i])).amin()
                    assert best.margin[i] <= truth + best.threshold[i]
                    assert not best.proved[i] or truth > 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("norm", ["linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l2", "l1"))])
def test_where_every_image_breaks_nothing_is_proved(norm: str, seed: int) -> None:
    eps = {"linf": 0.6, "l2": 1.5, "l1": 4.0}[norm]
    broken = 0
    for network in networks(seed)[1:]:
        x = torch.rand(8, *SHAPE)
        traced = tracing.trace(network, x)
        with torch.no_grad():
            y = network(x).argmax(1)
            proofs = ladder.prove(traced, regions.region(x, norm, eps), y, "alpha-crown")
            for i in range(len(x)):
                breaks = bool((margins_of(network, points(x[i], norm, eps), int(y[i])) <= 0).any())
                broken += breaks
                assert not (breaks and proofs.proved[i])
    assert broken >= 20  # or nothing was asked


def test_an_affine_network_is_bounded_exactly() -> None:
    torch.manual_seed(0)
    network = normalized(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), [0.5], [0.25]).eval()
    x = 0.3 + 0.4 * torch.rand(4, *SHAPE)  # far from the ends of the box
    traced, y = tracing.trace(network, x), torch.tensor([0, 1, 2, 0])
    weight = network.network[1].weight / 0.25
    for norm, dual in (("linf", 1.0), ("l2", 2.0), ("l1", torch.inf)):
        found = bounds.margins(bounds.intervals(traced, regions.region(x, norm, 0.1)), y).low
        for i in range(4):
            others = [k for k in range(3) if k != y[i]]
            slopes = weight[y[i]] - weight[others]
            wanted = margins_of(network, x[i : i + 1], int(y[i]))[0] - spec.limit(0.1) * slopes.norm(dual, dim=1)
            assert torch.allclose(found[i], wanted, atol=2e-5)


def test_the_box_counts_in_l2_and_l1() -> None:
    """At the corner of the box a step outward costs nothing, and a ball that holds the box is the box."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False)).eval()
    network[1].weight.data = torch.stack([torch.zeros(9), torch.ones(9)])
    x = torch.zeros(1, *SHAPE)
    traced = tracing.trace(network, x)
    for norm, eps, wanted in (("l2", 1.0, -3.0), ("l1", 2.0, -2.0), ("l2", 100.0, -9.0), ("l1", 100.0, -9.0)):
        found = bounds.margins(bounds.intervals(traced, regions.region(x, norm, eps)), torch.tensor([0]))
        assert found.low.item() == pytest.approx(wanted, abs=1e-3)
        other = bounds.margins(bounds.intervals(traced, regions.region(x, norm, eps)), torch.tensor([1]))
        assert other.low.item() == pytest.approx(0.0, abs=1e-5)


def test_a_higher_rung_proves_no_less_and_each_sample_by_itself() -> None:
    torch.manual_seed(1)
    network = normalized(networks(0)[2], [0.4], [0.5])
    x = torch.rand(24, *SHAPE)
    traced = tracing.trace(network, x)
    with torch.no_grad():
        y = network(x).argmax(1)
    region = regions.region(x, "linf", 0.08)
    proved = [ladder.prove(traced, region, y, method).proved for method in ladder.METHODS]
    counts = [int(each.sum()) for each in proved]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]  # the rungs differ here
    for lower, higher in itertools.pairwise(proved):
        assert (lower <= higher).all()
    alone = [ladder.prove(traced, region.at(torch.tensor([i])), y[i : i + 1], "crown") for i in range(24)]
    whole = ladder.prove(traced, region, y, "crown")
    assert torch.allclose(torch.cat([one.margin for one in alone]), whole.margin, atol=1e-4)


def test_what_cannot_be_bounded_is_named() -> None:
    x = torch.rand(4, *SHAPE)
    softmax = nn.Sequential(nn.Flatten(), nn.Linear(9, 3), nn.Softmax(1)).eval()
    with pytest.raises(NotCertifiableError, match=r"not certifiable: Softmax at 2$"):
        tracing.trace(softmax, x)

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.max() > 0.5 else 2 * x.flatten(1)

    with pytest.raises(NotCertifiableError, match="cannot be traced"):
        tracing.trace(Branching().eval(), x)

    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0, keepdim=True)).flatten(1)

    with pytest.raises(NotCertifiableError, match="mean"):
        tracing.trace(Mixing().eval(), x)
    with pytest.raises(NotCertifiableError, match="training mode"):
        tracing.trace(softmax.train(), x)
    with pytest.raises(UsageError, match="linf, l2, l1, not l0"):
        regions.region(x, "l0", 1)
    with pytest.raises(UsageError, match="finite eps"):
        regions.region(x, "l2", torch.inf)


def test_a_layer_beyond_the_budget_keeps_its_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks(0)[0]
    x = torch.rand(2, *SHAPE)
    traced, region = tracing.trace(network, x), regions.region(x, "linf", 0.1)
    with torch.no_grad():
        whole = bounds.crown(traced, region)
        monkeypatch.setattr(bounds, "BUDGET", 0.0)
        kept = bounds.crown(traced, region)
        plain = bounds.intervals(traced, region)
    assert (whole.work > plain.work).all()
    for place, box in kept.boxes.items():
        assert torch.equal(box.low, plain.boxes[place].low)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA"))])  # fmt: skip
def test_float32_is_within_the_margin_of_float64(device: str) -> None:
    for network in networks(3)[:3]:
        network = network.to(device)
        x = torch.rand(6, *SHAPE, device=device)
        with torch.no_grad():
            y = network(x).argmax(1)
            found = []
            for dtype in (torch.float32, torch.float64):
                known = bounds.crown(tracing.trace(network, x, dtype), regions.region(x, "linf", 0.05, dtype))
                found.append(bounds.margins(known, y))
        differ = (found[0].low.double() - found[1].low).abs() / (1 + found[1].size)
        assert differ.max() < 0.2 * ladder.SHARE
