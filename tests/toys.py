"""Toy models whose behaviour is known, and attacks that cheat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from robustkit.api import Case


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits W·x + b with weights from a seed."""

    def __init__(self, shape=(1, 4, 4), classes=5, seed=0, scale=1.0, shift=0.0):
        super().__init__()
        size = int(torch.tensor(shape).prod())
        self.weight = nn.Parameter(torch.randn(classes, size, generator=seeded(seed)) * scale)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.shift = shift

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias + self.shift


class Wrapped(nn.Module):
    """Another model with its logits scaled and shifted."""

    def __init__(self, inner, scale=1.0, shift=0.0):
        super().__init__()
        self.inner, self.scale, self.shift = inner, scale, shift

    def forward(self, x):
        return self.inner(x) * self.scale + self.shift


class HardLabels(nn.Module):
    """One-hot decisions: no gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)


class Detached(nn.Module):
    """Scores without a graph: no gradient, but margins."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.detach()).detach()


class Randomised(nn.Module):
    """Adds noise to the image at each call, from the global generator."""

    def __init__(self, inner, sigma=0.1):
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, x):
        return self.inner(x + self.sigma * torch.randn_like(x))


class SharedBackbone(nn.Module):
    """An ensemble of heads on one backbone: its mean logits, each head's, and the heads as members."""

    def __init__(self, shape=(1, 4, 4), classes=5, heads=3):
        super().__init__()
        size = int(torch.tensor(shape).prod())
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.ReLU())
            self.heads = nn.ModuleList(nn.Linear(24, classes) for _ in range(heads))

    def forward_with_members(self, x):
        features = self.backbone(x)
        members = torch.stack([head(features) for head in self.heads])
        return members.mean(0), members

    def forward(self, x):
        return self.forward_with_members(x)[0]

    def members(self):
        return [nn.Sequential(self.backbone, head) for head in self.heads]


class CrossMaxMedian(nn.Module):
    """CrossMax aggregation (arXiv:2408.05446): logits less their max per member, less their max per class, median."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def logits(self, x):
        return torch.stack([model(x) for model in self.models])

    def forward(self, x):
        z = self.logits(x)
        z = z - z.amax(2, keepdim=True)
        z = z - z.amax(0, keepdim=True)
        return z.median(0).values

    def surrogates(self):
        return {"mean": _Mean(self)}


class _Mean(nn.Module):
    def __init__(self, ensemble):
        super().__init__()
        self.models = ensemble.models

    def forward(self, x):
        return torch.stack([model(x) for model in self.models]).mean(0)


@dataclass(frozen=True)
class _Settings:
    norms: ClassVar = frozenset({"linf", "l2"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"

    def cost(self, classes):
        return 1, 1


@dataclass(frozen=True)
class Lazy(_Settings):
    """Returns what it was given."""

    def __call__(self, case: Case):
        return case.x


def _far(case):
    """A point on the other side of the image range: misclassified as a rule, and far out of the ball."""
    return 1 - case.x


@dataclass(frozen=True)
class LeavesBall(_Settings):
    def __call__(self, case):
        return _far(case)


@dataclass(frozen=True)
class LeavesBox(_Settings):
    def __call__(self, case):
        return case.x - case.threat.eps - 1e-3


@dataclass(frozen=True)
class ReturnsNaN(_Settings):
    def __call__(self, case):
        return torch.full_like(case.x, torch.nan)


@dataclass(frozen=True)
class ChangesShape(_Settings):
    def __call__(self, case):
        return case.x[:, :, :-1]


@dataclass(frozen=True)
class DropsRows(_Settings):
    def __call__(self, case):
        return case.x[1:]


@dataclass(frozen=True)
class MovesCentre(_Settings):
    """Takes each round's result for the next round's original."""

    def __call__(self, case):
        x = case.x
        for _ in range(20):
            x = case.threat.project(x, x + case.threat.eps * (_far(case) - x).sign())
        return x


@dataclass(frozen=True)
class Relabels(_Settings):
    """Lies about success: makes every label wrong, in place."""

    def __call__(self, case):
        case.y.copy_((case.y + 1) % case.oracle.classes)
        return case.x


@dataclass(frozen=True)
class MovesOriginal(_Settings):
    """Re-centres the ball in place."""

    def __call__(self, case):
        case.x.copy_(_far(case))
        return case.x


@dataclass(frozen=True)
class BreaksModel(_Settings):
    """Makes the model wrong instead of the image, past autograd's notice."""

    def __call__(self, case):
        for parameter in case.oracle.module.parameters():
            parameter.data.neg_()
        case.submit(case.x)
        return case.x


@dataclass(frozen=True)
class BreaksModelForAMoment(_Settings):
    """Makes the model wrong while the judge looks, and right again."""

    def __call__(self, case):
        for _ in range(2):
            for parameter in case.oracle.module.parameters():
                parameter.data.neg_()
            case.submit(case.x)
        return case.x + 2  # and out of the box, so that no sample merely survives


@dataclass(frozen=True)
class HidesItsRows(_Settings):
    """Overwrites which samples it was lent, then crashes."""

    def __call__(self, case):
        case.rows.zero_()
        case.draws.indices.zero_()
        raise RuntimeError("on purpose")


@dataclass(frozen=True)
class Exits(_Settings):
    def __call__(self, case):
        raise SystemExit(0)


@dataclass(frozen=True)
class TrainsModel(_Settings):
    """Leaves the model in training mode."""

    def __call__(self, case):
        case.oracle.module.train()
        return case.x


@dataclass(frozen=True)
class Raises(_Settings):
    def __call__(self, case):
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class ReturnsNothing(_Settings):
    def __call__(self, case):
        return None


@dataclass(frozen=True)
class RunsOutOfMemory(_Settings):
    """On every batch that holds the sample whose first pixel is the brightest."""

    def __call__(self, case):
        if (case.rows == 0).any():
            raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")
        return case.x


CHEATERS = [
    LeavesBall(), LeavesBox(), ReturnsNaN(), ChangesShape(), DropsRows(), MovesCentre(), Relabels(), MovesOriginal(),
    BreaksModel(), BreaksModelForAMoment(), TrainsModel(), HidesItsRows(), Exits(), Raises(), ReturnsNothing(),
    RunsOutOfMemory(),
]  # fmt: skip


@dataclass(frozen=True)
class OnSurrogate:
    """Another attack, on a stand-in that the model declares, judged on the model."""

    attack: object
    name: str

    norms: ClassVar = frozenset({"linf", "l2"})
    goal: ClassVar = "bounded"
    access: ClassVar = "transfer"

    def __call__(self, case):
        from dataclasses import replace

        return self.attack(replace(case, oracle=case.oracle.surrogates[self.name]))

    def cost(self, classes):
        return self.attack.cost(classes)
