"""One run: shards of samples; for each the clean pass, then each attack on what stands, the judge after each.

The journal holds the facts of each (shard, attack) and grows batch by batch; what it holds is not computed again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit import events
from robustkit.api import Case, Goal, ThreatModel
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED, Judge
from robustkit.engine.plan import Named, Samples, targets_for
from robustkit.engine.voting import VotingJudge, clean, clean_by_vote
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.examination import Subject, restore
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records import schema
from robustkit.records.folder import RunFolder
from robustkit.stats import Proportion

CLEAN = 0
TELL_EVERY_S = 0.25
Facts = dict[str, np.ndarray]
_ATTACK_FACTS = tuple(column.name for column in schema.ATTACK_FACTS)


class Carried(NamedTuple):
    """How a sample was broken at a smaller eps."""

    broken_by: str
    distance: float
    eps: float


@dataclass
class Run:
    """All that one run needs; `execute` gives the facts of each shard and attack.

    `draws` is 0 unless the model is randomised: then so many vote on a candidate, and one tile is attacked at a time,
    for the noise belongs to a tile.
    """

    subject: Subject
    search: Network
    samples: Samples
    attacks: Sequence[Named]
    threat: ThreatModel
    target: str
    seed: int
    quantize: str
    keep_adversarial: bool
    in_flight: int
    shard_size: int
    folder: RunFolder | None
    tell: Callable[[events.Event], None]
    weights: Mapping[str, Tensor]
    carried: Mapping[int, "Carried"]
    draws: int = 0
    errors: list[dict[str, object]] = field(default_factory=list)
    done: dict[tuple[int, int], Facts] = field(default_factory=dict)
    progress: dict[int, "_Progress"] = field(default_factory=dict)

    def execute(self) -> None:
        """Fill `done`; continues from the journal."""
        n = len(self.samples.indices)
        shards = range((n + self.shard_size - 1) // self.shard_size)
        correct = 0
        for shard in shards:
            start, stop = shard * self.shard_size, min(n, (shard + 1) * self.shard_size)
            x, y = (t.to(self.subject.reference.device) for t in self.samples.batch(start, stop))
            clean = self._part(shard, CLEAN) or self._clean(shard, start, x, y)
            self.done[shard, CLEAN] = clean
            correct += int(clean["correct"].sum())
            self.tell(events.CleanDone(Proportion(correct, stop)))
            standing = torch.tensor(clean["correct"], device=x.device)  # a copy: the facts stay as they are
            for position, index in enumerate(self.samples.indices[start:stop]):
                if index in self.carried:
                    standing[position] = False
            target = torch.from_numpy(clean["target"]).to(x.device) if self.target else None
            for step, named in enumerate(self.attacks, start=1):
                facts = self._attack(shard, step, named, start, x, y, target, standing)
                self.done[shard, step] = facts
                broken = torch.from_numpy(facts["position"][facts["outcome"] == BROKEN]).to(x.device)
                standing[broken] = False

    def _part(self, shard: int, step: int) -> Facts | None:
        return self.folder.read_part(shard, step) if self.folder else None

    def _save(self, shard: int, step: int, facts: Facts) -> None:
        if self.folder:
            self.folder.write_part(shard, step, facts)

    def _clean(self, shard: int, start: int, x: Tensor, y: Tensor) -> Facts:
        if self.draws:
            seen = clean_by_vote(lambda draw: self._network("clean", start, draw), self.draws, x, y)
        else:
            seen = clean(self.subject.reference, x, y)
        if not seen.sound.all():
            bad = int((~seen.sound).nonzero()[0, 0])
            raise UsageError(f"the model's outputs on clean sample {self.samples.indices[start + bad]} are not finite")
        target = targets_for(self.target, y, seen.logits, self._indices(start, len(x), x.device), self.seed)
        facts = {
            "correct": seen.correct.cpu().numpy(),
            "prediction": seen.prediction.cpu().numpy(),
            "margin": seen.margin.cpu().numpy(),
            "target": (torch.full_like(y, -1) if target is None else target).cpu().numpy(),
            **({"draws": np.array(seen.draws, dtype=np.str_)} if self.draws else {}),
        }
        self._save(shard, CLEAN, facts)
        return facts

    def _judge(self, x: Tensor, y: Tensor, target: Tensor | None, goal: Goal, *key: object) -> Judge:
        if self.draws:
            return VotingJudge(self._network(*key, "judge"), self.threat, x, y, target, goal, self.draws)
        return Judge(self._network(*key, "judge"), self.threat, x, y, target, goal)

    def _network(self, *key: object) -> Network:
        """The reference network; of a randomised one, with noise of its own for this key."""
        reference = self.subject.reference
        return reference if reference.noise is None else reference.seeded(self.seed, *key)

    def _indices(self, start: int, n: int, device: torch.device) -> Tensor:
        return torch.tensor(self.samples.indices[start : start + n], dtype=torch.int64, device=device)

    def _attack(
        self, shard: int, step: int, named: Named, start: int, x: Tensor, y: Tensor, target: Tensor | None,
        standing: Tensor,
    ) -> Facts:  # fmt: skip
        """The facts of one attack on the samples of a shard that still stand, from the journal or computed."""
        facts = self._known(shard, step, standing)
        pending = standing.clone()
        pending[torch.from_numpy(facts["position"]).to(x.device)] = False
        positions = pending.nonzero()[:, 0]
        progress = self.progress.setdefault(step, _Progress(self, named))
        progress.shard(len(x), int(standing.sum()), len(positions), facts)
        while len(positions):
            now, rest = positions[: self.in_flight], positions[self.in_flight :]
            began = time.perf_counter()
            try:
                fresh = self._batch(named, self._indices(start, len(x), x.device)[now], x[now], y[now], now,
                                    None if target is None else target[now], progress)  # fmt: skip
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                tile = self.subject.reference.tile
                if not out_of_memory(error):
                    raise
                if len(now) <= tile:
                    raise RobustkitError(
                        f"out of memory with one tile of {tile} samples; choose a smaller tile"
                    ) from error
                self.in_flight = max(1, min(self.in_flight, len(now)) // 2 // tile) * tile
                continue
            fresh["seconds"] = np.array([time.perf_counter() - began])
            facts = _merged(facts, fresh)
            self._save(shard, step, facts)
            progress.batch_done(fresh)
            positions = rest
        progress.shard_done()
        return facts

    def _known(self, shard: int, step: int, standing: Tensor) -> Facts:
        """What the journal has, less what a continued run must compute again or no longer needs."""
        facts = self._part(shard, step)
        if facts is None:
            return _no_facts()
        usable = (facts["outcome"] != VIOLATED) & standing.cpu().numpy()[facts["position"]]
        known = {name: values[usable] if name in _ATTACK_FACTS else values for name, values in facts.items()}
        if "adv" in facts:
            kept = np.isin(facts["adv_position"], known["position"])
            known["adv"], known["adv_position"] = facts["adv"][kept], facts["adv_position"][kept]
        return known

    def _batch(
        self, named: Named, indices: Tensor, x: Tensor, y: Tensor, positions: Tensor, target: Tensor | None,
        progress: "_Progress",
    ) -> Facts:  # fmt: skip
        """Attack one batch and judge what comes back: a crash, a cheat or a lie of the attack is a fact about it."""
        name, attack = named
        first = int(indices[0])
        judge = self._judge(x, y, target, attack.goal, name, first)
        counts = Counts(len(x), x.device)
        counts.on_call = progress.guard.watching(lambda: progress.tell(counts, judge))
        everyone = torch.arange(len(x), device=x.device)
        search = self.search if self.search.noise is None else self.search.seeded(self.seed, name, first)
        facts = self.subject.facts
        watch = judge.saw if isinstance(judge, VotingJudge) else None
        # What an attack is lent is a copy: nothing that it writes to is read again.
        oracle = ModelOracle(
            search, counts, everyone.clone(), facts.classes, facts.randomised, facts.differentiable, watch=watch
        )
        lent = judge.lent()
        draws = SampleDraws(key_of(self.seed, name), indices.clone())
        try:
            adv = attack(Case(oracle, *lent, replace(self.threat), draws, judge.submit, everyone.clone()))
            judge.submit(everyone[~judge.broken] if attack.goal == "bounded" else everyone,
                         _rows(adv, ~judge.broken) if attack.goal == "bounded" else adv)  # fmt: skip
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # the one deliberate catch-all: a crash is a fact about the attack
            progress.guard.raise_callers()
            if out_of_memory(error) and len(x) > self.subject.reference.tile:
                raise
            judge.violate(everyone, f"{type(error).__name__}: {first_line(error)}")
        finally:
            counts.on_call = None  # it leads back to the counts and the judge: a ring that would keep their images
        if not judge.unchanged(*lent):
            judge.violate(everyone, "changed the images or labels it was lent")
        if not self.subject.untouched(self.weights):
            judge.revoke("changed the model")
            restore(self.subject.reference.module, self.weights)
        elif isinstance(judge, VotingJudge):
            judge.settle(lambda draw: self._network("vote", name, first, draw))
        else:
            judge.confirm_again()
        for reason, samples in judge.reasons.items():
            open_rows = samples[~judge.broken[samples]]
            if len(open_rows):
                self._note(name, reason, sorted(set(indices[open_rows].tolist())))
        verdicts = judge.verdicts()
        found = {
            "position": positions.cpu().numpy(),
            "outcome": verdicts.outcome.cpu().numpy(),
            "distance": verdicts.distance.cpu().numpy(),
            "margin": verdicts.margin.cpu().numpy(),
            "decision": verdicts.decision.cpu().numpy(),
            "forwards": counts.forwards.cpu().numpy(),
            "backwards": counts.backwards.cpu().numpy(),
            "quantized": self._quantized(judge, name, first).cpu().numpy(),
        }
        if isinstance(judge, VotingJudge):
            found["draws"] = np.array(judge.patterns(), dtype=np.str_)
            found["ever"] = judge.ever.cpu().numpy()
        if self.keep_adversarial:
            found["adv"] = verdicts.adv[judge.broken].cpu().numpy()
            found["adv_position"] = positions[judge.broken].cpu().numpy()
        return found

    def _quantized(self, judge: Judge, name: str, first: int) -> Tensor:
        """The outcome after rounding each adversarial to the asked grid; an image that leaves the ball is no break."""
        outcome = torch.full_like(judge.y, SURVIVED)
        at = judge.broken.nonzero()[:, 0]
        if self.quantize and len(at):
            rounded = (judge.adv[at] * 255).round() / 255
            target = None if judge.target is None else judge.target[at]
            again = self._judge(judge.x[at], judge.y[at], target, "minimal", "rounded", name, first)
            again.submit(torch.arange(len(at), device=at.device), rounded)
            if isinstance(again, VotingJudge):
                again.settle(lambda draw: self._network("rounded vote", name, first, draw))
            outcome[at[again.broken]] = BROKEN
        return outcome

    def _note(self, attack: str, message: str, indices: list[int]) -> None:
        for known in self.errors:
            if known["attack"] == attack and known["message"] == message:
                known["indices"] = sorted({*known["indices"], *indices})  # type: ignore[misc]
                return
        self.errors.append({"attack": attack, "message": message, "indices": sorted(indices)})


class _Progress:
    """Turns the passes of one attack, over all shards, into events a few times a second.

    Its robust accuracy is an estimate until the last shard: it counts as robust what still stands in the shards so far.
    """

    def __init__(self, run: Run, named: Named) -> None:
        self.run, self.named = run, named
        self.most = max(1, sum(named.attack.cost(run.subject.facts.classes)))
        self.broken = self.queries = self.robust = self.seen = 0
        self.seconds = self.told = 0.0
        self.total = self.finished = 0.0
        self.began = time.perf_counter()
        self.guard = events.Guard()

    def shard(self, size: int, standing: int, pending: int, facts: Facts) -> None:
        """A shard begins, some of it known from the journal."""
        known = int((facts["outcome"] == BROKEN).sum())
        self.seen += size
        self.robust += standing - known
        self.broken += known
        self.queries += int(facts["forwards"].sum() + facts["backwards"].sum())
        self.total, self.finished = max(1, pending), 0
        self.began = time.perf_counter()
        self._emit(0, 0, 0)

    def tell(self, counts: Counts, judge: Judge) -> None:
        """A batch is at work."""
        now = time.perf_counter()
        if now - self.told < TELL_EVERY_S:
            return
        passes = counts.forwards + counts.backwards
        broken = int(judge.broken.sum())
        # A broken sample is finished; the others are as far as the busiest of them.
        ahead = broken + (len(passes) - broken) * min(1.0, float(passes.max()) / self.most)
        self._emit(ahead, broken, int(passes.sum()))

    def batch_done(self, facts: Facts) -> None:
        """A batch is judged."""
        broken = int((facts["outcome"] == BROKEN).sum())
        self.finished += len(facts["position"])
        self.broken, self.robust = self.broken + broken, self.robust - broken
        self.queries += int(facts["forwards"].sum() + facts["backwards"].sum())
        self._emit(0, 0, 0)

    def shard_done(self) -> None:
        """A shard is finished."""
        self.finished = self.total
        self._emit(0, 0, 0)
        self.seconds += time.perf_counter() - self.began

    def _emit(self, ahead: float, broken: int, queries: int) -> None:
        self.told = time.perf_counter()
        before = self.seen - (self.seen - 1) % self.run.shard_size - 1  # samples of the shards before this one
        here = (self.finished + ahead) / self.total * (self.seen - before)
        self.run.tell(
            events.Progress(
                attack=self.named.name,
                fraction=min(1.0, (before + here) / len(self.run.samples.indices)),
                broken=self.broken + broken,
                robust_accuracy=Proportion(self.robust - broken, self.seen),
                queries=self.queries + queries,
                seconds=self.seconds + time.perf_counter() - self.began,
            )
        )


def _rows(adv: object, keep: Tensor) -> object:
    """The rows of an attack's answer, if it is one that has rows; the judge looks at the rest."""
    return adv.to(keep.device)[keep] if isinstance(adv, Tensor) and adv.shape[:1] == keep.shape else adv


def _no_facts() -> Facts:
    facts: Facts = {name: np.zeros(0, dtype=np.int64) for name in _ATTACK_FACTS}
    facts["distance"] = facts["margin"] = np.zeros(0, dtype=np.float64)
    facts["seconds"] = np.zeros(0, dtype=np.float64)
    facts["draws"], facts["ever"] = np.zeros(0, dtype=np.str_), np.zeros(0, dtype=np.bool_)
    return facts


def _merged(known: Facts, fresh: Facts) -> Facts:
    """Two sets of facts in the order of their positions."""
    both = {
        name: np.concatenate([known[name], values]) if name in known and len(known[name]) else values
        for name, values in fresh.items()
    }
    order = np.argsort(both["position"], kind="stable")
    return {name: values[order] if name in _ATTACK_FACTS else values for name, values in both.items()}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to what a table can hold."""
    return (str(error).strip().splitlines() or [""])[0][:300]
