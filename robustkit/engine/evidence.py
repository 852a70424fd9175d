"""Whether a run's number says anything: signs among its facts, and a cheap look at a tile of what still stands.

The look costs a dozen passes of one tile. A step against the gradient of the margin has to lower the margin; and where
the run's attacks broke next to nothing, neither may random noise, one such step, or one on a stand-in.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Images, Labels, Oracle
from robustkit.engine.shard import Bench
from robustkit.errors import NoGradientError
from robustkit.models.oracle import Counts, ModelOracle
from robustkit.numerics import norms, rows
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records import evidence
from robustkit.records.evidence import MASKED, MISLED, OTHERS, Sign
from robustkit.records.run import CAUTION, ESCALATE, INSUFFICIENT, RunRecord
from robustkit.records.schema import BROKE, BROKEN, WRONG

NOISE = 8  # random images of the ball
STAND_INS = 4  # the most stand-ins that are tried
STEPPED = ("linf", "l2")  # norms in which one step says something
SIZES = (0.25, 1.0)  # of such a step, in eps: what rounds its input moves by the larger one only
IDLE = 0.25  # the most of what was right that attacks which broke next to nothing have broken


def flags(bench: Bench, record: RunRecord) -> list[Mapping[str, Any]]:
    """What a finished record must say of its attacks, whether anybody asked for an audit or not; mostly nothing."""
    idle = [{"kind": evidence.IDLE, "message": text} for text in evidence.idle(record)]
    return [*idle, *_doubts(bench, record)]


def _doubts(bench: Bench, record: RunRecord) -> list[Mapping[str, Any]]:
    """Why what stands may only be hidden, or was never attacked."""
    if not record.unproved.any():
        return []
    flows = bench.opened.subject.facts.differentiable
    if k := evidence.not_attacked(record):
        names, blocked = " and ".join(record.job["attacks"]), "its stand-ins" if flows else "the model"
        text = (
            f"no gradient flows through {blocked}, so {names} could not run: {k} of {record.n} samples stand "
            f"unattacked; {evidence.advice(record, flows=flows)}"
        )
        return [{"kind": INSUFFICIENT, "message": text}]
    seen = [*evidence.signs(record), *([] if bench.draws else _look(bench, record))]
    found: list[Mapping[str, Any]] = list(_walked_on(bench, record))
    return [*found, {"kind": MASKED, "message": evidence.message(record, seen, flows=flows)}] if seen else found


def _walked_on(bench: Bench, record: RunRecord) -> Iterator[Mapping[str, Any]]:
    """Findings of attacks that ought to break nothing where gradients tell the truth (`api.CohortAttack`).

    Only of a run that nothing but a suite with a `caution` attacked: behind another the number is settled.
    """
    if all(flag["kind"] != CAUTION for flag in record.flags):
        return
    rows = record.attacks
    for named in bench.attacks:
        what = getattr(named.attack, "if_it_breaks", "")
        k = int(((rows["attack"] == named.name) & (rows["outcome"] == BROKE)).sum())
        if what and k:
            text = (
                f"{what}, broke {k} more: gradients did not tell all of this model, and its number is an upper bound "
                "not yet settled; let autoattack run on what stands: --then autoattack"
            )
            yield {"kind": ESCALATE, "message": text}


class _Tile(NamedTuple):
    """Some samples that stand, and all that is asked about them."""

    bench: Bench
    indices: Tensor
    x: Images
    y: Labels
    target: Labels | None

    def broken(self, candidates: Sequence[Images]) -> int:
        """How many of the samples the judge finds broken by any of the candidates."""
        judge = self.bench.judge(self.x, self.y, self.target, "bounded", "evidence")
        for adv in candidates:
            judge.submit(torch.arange(len(self.x), device=self.x.device), adv)
        return int(judge.broken.sum())

    def stepped(self, oracle: Oracle, size: float) -> Images | None:
        """The images a step of `size` eps away, against the gradient of the margin; None where none flows."""
        try:
            grad = oracle.gradient(self.x, lambda outputs: -rows.margin(outputs.logits, self.y, self.target)).grad
        except NoGradientError:
            return None
        threat = self.bench.threat
        return threat.project(self.x, self.x + size * threat.eps * norms.steepest(grad, threat.norm))

    def noise(self) -> list[Images]:
        """Random images of the ball, every second one in Linf a corner."""
        threat, found = self.bench.threat, []
        for number in range(NOISE):
            draws = SampleDraws(key_of(self.bench.seed, "evidence", number), self.indices)
            corner = (draws.uniform(self.x.shape[1:]) - 0.5).sign()
            inside = threat.norm != "linf" or number % 2 == 0
            found.append(threat.sample(self.x, draws) if inside else threat.clip(self.x + threat.eps * corner))
        return found


def _look(bench: Bench, record: RunRecord) -> Iterator[Sign]:
    """What a few passes show of a tile of the samples that stand; not of a randomised model, of which none decides."""
    standing = np.flatnonzero(record.unproved)[: bench.opened.subject.reference.tile]
    samples, device = bench.opened.samples.at(standing.tolist()), bench.opened.device
    x, y = (t.to(device) for t in samples.batch(0, len(samples)))
    target = torch.from_numpy(record.samples["target"][standing]).to(device) if bench.target else None
    tile = _Tile(bench, torch.tensor(samples.indices, device=device), x, y, target)
    tries: dict[str, Sequence[Images]] = {"random noise": tile.noise()}
    if bench.threat.norm in STEPPED:
        oracle = _oracle(bench, len(x))
        steps = [adv for size in SIZES if (adv := tile.stepped(oracle, size)) is not None]
        if steps and not np.isnan(record.attacks["flat"]).all():  # no attack is misled that follows no gradient
            yield from _misled(tile, steps)
        tries["one step along the margin's gradient"] = steps[-1:]
        for name, one in _stand_ins(oracle):
            adv = tile.stepped(one, 1.0)
            tries[f"one step along the gradient of its {name}"] = [] if adv is None else [adv]
    right = record.n - record.counts[WRONG] - record.carried
    if record.counts[BROKEN] - record.carried > IDLE * right:
        return
    for name, candidates in tries.items():
        k = tile.broken(candidates)
        if evidence.exceeds(k, len(x), OTHERS):
            yield Sign(k, len(x), f"{name} breaks {k} of {len(x)} samples that stand")


def _misled(tile: _Tile, steps: Sequence[Images]) -> Iterator[Sign]:
    """Samples whose margin no step against its gradient lowers, though the step moved them."""
    network = tile.bench.network()

    def margin(x: Images) -> Tensor:
        return rows.margin(network.logits(x), tile.y, tile.target)

    before, n = margin(tile.x), len(tile.x)
    moved = rows.flat(steps[-1] != tile.x).any(1)
    k = int((moved & torch.stack([margin(adv) >= before for adv in steps]).all(0)).sum())
    if evidence.exceeds(k, n, MISLED):
        yield Sign(k, n, f"a step against the gradient of the margin does not lower the margin on {k} of {n} samples")


def _oracle(bench: Bench, n: int) -> ModelOracle:
    facts, device = bench.opened.subject.facts, bench.opened.device
    counts = Counts(n, device)
    return ModelOracle(
        bench.network(), counts, torch.arange(n, device=device), facts.classes, differentiable=facts.differentiable
    )


def _stand_ins(oracle: ModelOracle) -> list[tuple[str, Oracle]]:
    """The first stand-ins that the model declares, or else its members, with names."""
    declared = [(f"stand-in {name}", one) for name, one in oracle.surrogates.items()]
    return (declared or [(f"member {number}", one) for number, one in enumerate(oracle.members)])[:STAND_INS]
