"""What tests of attacks need: a case to attack without the engine, and the conformance suite for anyone's plugin."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkit.api import Attack, Case, Images, Labels, ThreatModel
from robustkit.engine.judge import BROKEN, Judge, Verdicts
from robustkit.oracle import Counts, ModelOracle, Network
from robustkit.streams import SampleDraws, key_of


class Attacked(NamedTuple):
    """The result of one attack on one batch."""

    broken: Tensor
    verdicts: Verdicts
    judge: Judge
    forwards: Tensor
    backwards: Tensor


def attack_batch(
    attack: Attack,
    module: nn.Module,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    *,
    target: Labels | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    tile: int = 32,
) -> Attacked:
    """Run one attack on one batch as the engine does, judged, without shards or a journal."""
    indices = torch.arange(len(x)) if indices is None else indices
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    network = Network(module, tile, x.device, dtype)
    classes = int(network.logits(x[:1]).shape[1])
    counts = Counts(len(x), x.device)
    judge = Judge(network, threat, x, y, target, attack.goal)
    lent = judge.lent()
    oracle = ModelOracle(network, counts, torch.arange(len(x)), classes)
    draws = SampleDraws(key_of(seed, attack), indices)
    case = Case(oracle, *lent, threat, draws, judge.submit, torch.arange(len(x)))
    judge.submit(case.rows, attack(case))
    verdicts = judge.verdicts()
    return Attacked(verdicts.outcome == BROKEN, verdicts, judge, counts.forwards, counts.backwards)
