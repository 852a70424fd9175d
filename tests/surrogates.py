"""What the tests of transfer attacks share: a small ensemble, an attack without the engine, and the presets."""

from typing import NamedTuple

import torch
from robustkit_attacks.transfer import presets
from torch import nn

from robustkit import plugins
from robustkit.api import Case
from robustkit.engine.judge import Judge
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.numerics.streams import SampleDraws
from tests import toys

PRESETS = [
    name for name, found in plugins.table("attacks").items() if found.entry.path.startswith(f"{presets.__name__}:")
]
# Few steps and copies, of the same parts.
QUICK = {
    "vmi": "vmi:steps=2,gradient=(vmi:samples=3)",
    "pgn": "pgn:steps=2,gradient=(pgn:samples=2)",
    "admix": "admix:steps=2,input=(admix:mixes=2,scales=2)",
    "ssa": "ssa:steps=2,input=(ssa:copies=3)",
    "sia": "sia:steps=2,input=(sia:copies=3)",
    "bsr": "bsr:steps=2,input=(bsr:copies=3)",
    "svre": "svre:steps=2,ensemble=(svre:rounds=2)",
    "smer": "smer:steps=2,ensemble=(smer:rounds=2)",
    "vmi-cwa": "vmi-cwa:steps=2,neighbours=2",
    "ssa-cwa": "ssa-cwa:steps=2,input=(ssa:copies=2)",
}


def quick(name):
    return QUICK.get(name, f"{name}:steps=3")


class Ensemble(nn.Module):
    """Mean logits of its members."""

    def __init__(self, *models):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.requires_grad_(False).eval()

    def forward(self, x):
        return sum(model(x) for model in self.models) / len(self.models)

    def members(self):
        return list(self.models)


def linear_pair(shape=(2, 4, 5), classes=4):
    return Ensemble(toys.Linear(shape, classes, seed=1, scale=0.6), toys.Linear(shape, classes, seed=2, scale=0.6))


def conv_net(seed, channels=3, classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, classes)
        )  # fmt: skip


def images(n, shape, seed=3):
    return torch.rand(n, *shape, generator=toys.seeded(seed))


class Done(NamedTuple):
    adv: torch.Tensor
    forwards: torch.Tensor
    backwards: torch.Tensor


def case_of(module, x, y, threat, *, target=None, indices=None, tile=8):
    """A case without the engine, and its counters."""
    rows = torch.arange(len(x))
    network = Network(module, tile, x.device, x.dtype)
    judge, counts = Judge(network, threat, x, y, target, "bounded"), Counts(len(x), x.device)
    classes = int(network.logits(x[:1]).shape[1])
    draws = SampleDraws((5, 7), rows if indices is None else indices)
    return Case(ModelOracle(network, counts, rows, classes), x, y, target, threat, draws, judge.submit, rows), counts


def run(attack, module, x, y, threat, **options):
    case, counts = case_of(module, x, y, threat, **options)
    return Done(attack(case), counts.forwards, counts.backwards)
