"""A shard of a measurement: the clean pass, then each attack on what still stands, the judge after each batch.

`attack_shard` is a function of its arguments. A `Bench` can be made again in another process from the job alone, see
`robustkit.engine.measure.rebuilt`; what a shard's facts are depends on nothing else.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.api import CohortAttack, ForeignAttack, Goal, Handed, Images, Labels, ThreatModel
from robustkit.engine import proofs
from robustkit.engine.attempt import Batch, Notes, attempt, in_batches, oracle_for, whole
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED, Judge
from robustkit.engine.plan import Named, targets_for
from robustkit.engine.progress import Progress
from robustkit.engine.proofs import Proving
from robustkit.engine.voting import VotingJudge, clean, clean_by_vote
from robustkit.errors import UsageError
from robustkit.models.evidence import Climb
from robustkit.models.opening import Opened
from robustkit.models.oracle import Counts, Network
from robustkit.numerics import devices
from robustkit.numerics.streams import key_of
from robustkit.records import schema
from robustkit.records.folder import CERTIFIED
from robustkit.tasks import CLASSIFICATION, Task

CLEAN = 0  # the step before the first attack
Facts = dict[str, np.ndarray]
_ROWS = tuple(column.name for column in schema.ATTACK_FACTS)
_IMAGES = ("adv", "point")  # kept of some samples only, beside the position of each


class Carried(NamedTuple):
    """How a sample was broken at a smaller eps."""

    broken_by: str
    distance: float
    eps: float


class Part(NamedTuple):
    """The facts of one (shard, step) so far, in the order of positions in the shard; `new` unless they were known.

    An attack's facts say of each sample that it met what came of it, and why, where it broke the rules.
    """

    shard: int
    step: int
    facts: Facts
    new: bool


@dataclass(frozen=True, slots=True)
class Bench:
    """All that attacking a shard needs.

    `draws` is 0 unless the model is randomised: then so many vote on a candidate, and one tile is attacked at a time,
    for the noise belongs to a tile. `in_flight` samples are attacked at once, a whole number of tiles.
    """

    opened: Opened
    attacks: Sequence[Named]
    threat: ThreatModel
    target: str
    seed: int
    quantize: str
    draws: int
    keep_adversarial: bool
    in_flight: int
    shard_size: int
    carried: Mapping[int, Carried]
    task: Task = CLASSIFICATION
    proving: Proving | None = None

    def network(self, *key: object) -> Network:
        """The reference network; of a randomised one, with noise of its own for this key."""
        reference = self.opened.subject.reference
        return reference if reference.noise is None else reference.seeded(self.seed, *key)

    def judge(self, x: Images, y: Labels, target: Labels | None, goal: Goal, *key: object) -> Judge:
        """The judge of a batch, its noise keyed by what is judged."""
        if self.draws:
            return VotingJudge(self.network(*key, "judge"), self.threat, x, y, target, goal, self.draws, self.task)
        return Judge(self.network(*key, "judge"), self.threat, x, y, target, goal, self.task)

    def packs(self, named: Named) -> bool:
        """Whether survivors of several shards may share a batch: not where a result depends on who is beside it."""
        return not self.draws and not isinstance(named.attack, ForeignAttack | CohortAttack)

    def hands_on(self, step: int) -> bool:
        """Whether an attack after this step (the first is 1) asks what the ones before it left."""
        return any(isinstance(named.attack, CohortAttack) for named in self.attacks[step:])


@dataclass(frozen=True, slots=True)
class _Shard:
    """The samples of a shard, decoded once. `standing` falls as attacks break them, and so do margins in `handed`."""

    number: int
    x: Images
    y: Labels
    target: Labels | None
    indices: Tensor
    standing: Tensor
    handed: Handed | None

    def hand_on(self, facts: Facts) -> None:
        """Keep the points of an attack whose margin is the least so far."""
        if self.handed is None or "point" not in facts:
            return
        position = facts["point_position"]
        margin = torch.from_numpy(facts["margin"][np.searchsorted(facts["position"], position)]).to(self.handed.margin)
        at, point = torch.from_numpy(position).to(self.x.device), torch.from_numpy(facts["point"]).to(self.x)
        lower = margin < self.handed.margin[at]
        self.handed.margin[at[lower]] = margin[lower]
        self.handed.point[at[lower]] = point[lower]


Known = Callable[[int, int], Facts | None]


def attack_shard(bench: Bench, shard: int, known: Known, watch: Progress | None = None) -> Iterator[Part]:
    """The parts of one shard, each as often as it grows; `known` gives what was computed of a (shard, step) before."""
    return attack_shards(bench, [shard], known, watch)


def attack_shards(bench: Bench, shards: Sequence[int], known: Known, watch: Progress | None = None) -> Iterator[Part]:
    """The parts of several shards, whose survivors are packed into common batches; packing changes no fact."""
    watch = watch or Progress(bench.attacks, bench.opened, lambda event: None)
    here = []
    for number in shards:
        part, shard = _opened(bench, number, known(number, CLEAN))
        yield part
        watch.clean(int(part.facts["correct"].sum()), len(shard.x))
        here.append(shard)
    for step, named in enumerate(bench.attacks, start=1):
        if bench.proving and bench.proving.after == step - 1:
            yield from _proved(bench, bench.proving, here, known)
        for together in [here] if bench.packs(named) else [[shard] for shard in here]:
            yield from _attack(bench, step, named, together, known, watch)
    if bench.proving and bench.proving.after == len(bench.attacks):
        yield from _proved(bench, bench.proving, here, known)


def _proved(bench: Bench, proving: Proving, shards: Sequence[_Shard], known: Known) -> Iterator[Part]:
    """The certificates of what still stands in some shards; what is proved is not attacked any more."""
    for shard in shards:
        held = known(shard.number, CERTIFIED)
        began = time.perf_counter()
        facts = held or proofs.climb(proving, bench.network(), bench.threat, shard.x, shard.y, shard.standing)
        if held is None:
            facts["seconds"] = np.array([time.perf_counter() - began])
        for position in np.flatnonzero(facts["certified"] & ~shard.standing.cpu().numpy())[:1]:
            bound = f"{facts['rung'][position]} bounds its margin by {facts['bound'][position]:.4g} from below"
            raise proofs.contradiction(int(shard.indices[position]), bound, "an attack of this run broke it")
        yield Part(shard.number, CERTIFIED, facts, held is None)
        shard.standing[torch.from_numpy(facts["certified"]).to(shard.standing.device)] = False


def check_proofs(bench: Bench, certified: np.ndarray) -> Facts:
    """What an attack makes, untargeted, of some of the proved samples; `certified` says which of the run's are."""
    samples, named = bench.opened.samples, proofs.checking()
    at = torch.from_numpy(proofs.chosen(certified, samples.indices, bench.seed))
    watch = Progress([named], bench.opened, lambda event: None)
    watch.begin(1, len(at), len(at), len(at), ())

    def run(here: Tensor) -> Facts:
        images = [samples.batch(position, position + 1)[0] for position in here.tolist()]
        index = torch.tensor([samples.indices[position] for position in here.tolist()], dtype=torch.int64)
        device = bench.opened.device
        x, y = torch.cat(images).to(device), samples.labels[here].to(device)
        batch = Batch(index.to(device), x, y, None)
        return {**_batch(bench, named, batch, watch, keep=False), "position": here.numpy()}

    found = _no_facts()
    reference = bench.opened.subject.reference
    for _, fresh in in_batches(at, bench.in_flight, reference.tile, reference.device, run):
        found = _merged(found, {name: values for name, values in fresh.items() if name in _ROWS})
    return found


def _opened(bench: Bench, number: int, known: Facts | None) -> tuple[Part, _Shard]:
    """The facts of a shard's clean pass, and its samples as they stand after it."""
    samples, device = bench.opened.samples, bench.opened.device
    start, stop = number * bench.shard_size, min(len(samples), (number + 1) * bench.shard_size)
    x, y = (t.to(device) for t in samples.batch(start, stop))
    indices = torch.tensor(samples.indices[start:stop], dtype=torch.int64, device=device)
    facts = known or _clean(bench, start, x, y, indices)
    standing = torch.tensor(facts["correct"], device=device)  # a copy: the facts stay as they are
    for position, index in enumerate(samples.indices[start:stop]):
        if index in bench.carried:
            standing[position] = False
    target = torch.from_numpy(facts["target"]).to(device) if bench.target else None
    handed = None
    if bench.hands_on(CLEAN):
        margin = torch.tensor(facts["margin"], dtype=devices.widest(device), device=device)
        handed = Handed(margin, margin.clone(), x.clone())
    return Part(number, CLEAN, facts, known is None), _Shard(number, x, y, target, indices, standing, handed)


def _clean(bench: Bench, start: int, x: Images, y: Labels, indices: Tensor) -> Facts:
    if bench.draws:
        seen = clean_by_vote(lambda draw: bench.network("clean", start, draw), bench.draws, x, y, bench.task)
    else:
        seen = clean(bench.network(), x, y, bench.task)
    if not seen.sound.all():
        bad = int(indices[(~seen.sound).nonzero()[0, 0]])
        raise UsageError(f"the model's outputs on clean sample {bad} are not finite")
    target = targets_for(bench.target, y, seen.logits, indices, bench.seed)
    return {
        "correct": seen.correct.cpu().numpy(),
        "prediction": seen.prediction.cpu().numpy(),
        "margin": _numbers(seen.margin),
        "target": (torch.full_like(indices, -1) if target is None else target).cpu().numpy(),
        **({"draws": np.array(seen.draws, dtype=np.str_)} if bench.draws else {}),
        **({"expected": seen.expected.cpu().numpy()} if bench.draws else {}),
        **({"refused": seen.refused.cpu().numpy()} if bench.opened.subject.facts.rejects else {}),
    }


def _attack(
    bench: Bench, step: int, named: Named, shards: Sequence[_Shard], known: Known, watch: Progress
) -> Iterator[Part]:
    """The facts of one attack on the samples of some shards that still stand, from the journal or computed."""
    facts = [_still_needed(known(shard.number, step), shard.standing) for shard in shards]
    pending = _pending(shards, facts)
    keep = bench.hands_on(step)
    if isinstance(named.attack, CohortAttack) and len(pending):
        # What it did to some depends on all: it did all of them before, or does them anew.
        facts = [_no_facts() for _ in shards]
        pending = _pending(shards, facts)
    grown, reference = set(), bench.opened.subject.reference
    watch.begin(step, sum(len(s.x) for s in shards), sum(int(s.standing.sum()) for s in shards), len(pending), facts)

    def run(rows: Tensor) -> tuple[Facts, float]:
        began = time.perf_counter()
        return _batch(bench, named, _rows_of(shards, rows), watch, keep), time.perf_counter() - began

    if isinstance(named.attack, CohortAttack):
        batches = whole(_cohorts(bench, named.attack.cohort, pending), run)
    else:
        batches = in_batches(pending, bench.in_flight, reference.tile, reference.device, run)
    for now, (fresh, seconds) in batches:
        for place, own in _by_shard(fresh, now, seconds):
            facts[place] = _merged(facts[place], own)
            grown.add(place)
            yield Part(shards[place].number, step, facts[place], new=True)
        watch.batch_done(fresh)
    watch.end()
    for place, shard in enumerate(shards):
        if place not in grown:
            yield Part(shard.number, step, facts[place], new=False)
        broken = torch.from_numpy(facts[place]["position"][facts[place]["outcome"] == BROKEN])
        shard.standing[broken.to(shard.standing.device)] = False
        shard.hand_on(facts[place])


def _cohorts(bench: Bench, size: int, pending: Tensor) -> list[Tensor]:
    """Rows (place of the shard, position in it) by cohort: all of one shard, which holds whole cohorts."""
    if bench.shard_size % size and len(bench.opened.samples) > bench.shard_size:
        raise UsageError(
            f"a shard of {bench.shard_size} samples holds no whole cohorts of {size}; choose a shard size that is a "
            f"multiple of {size}, or a cohort that divides {bench.shard_size}"
        )
    number = pending[:, 1] // size
    return [pending[number == one] for one in sorted(set(number.tolist()))]


def _still_needed(facts: Facts | None, standing: Tensor) -> Facts:
    """What the journal has of an attack, less samples that an attack before it has broken meanwhile."""
    if facts is None:
        return _no_facts()
    return _some(facts, standing.cpu().numpy()[facts["position"]])


def decided(facts: Facts) -> Facts:
    """An attack's facts without the samples on which it broke a rule: what went wrong then may not again."""
    return _some(facts, facts["outcome"] != VIOLATED)


def _some(facts: Facts, which: np.ndarray) -> Facts:
    """The rows of an attack's facts where `which` is true."""
    known = {name: values[which] if name in _ROWS else values for name, values in facts.items()}
    for name in _IMAGES:
        if name in facts:
            kept = np.isin(facts[f"{name}_position"], known["position"])
            known[name], known[f"{name}_position"] = facts[name][kept], facts[f"{name}_position"][kept]
    return known


def _pending(shards: Sequence[_Shard], facts: Sequence[Facts]) -> Tensor:
    """Rows (place of the shard, position in it) of all samples that stand and are not known."""
    found = []
    for place, (shard, known) in enumerate(zip(shards, facts, strict=True)):
        open_ = shard.standing.cpu().clone()
        open_[torch.from_numpy(known["position"])] = False
        positions = open_.nonzero()
        found.append(torch.cat([torch.full_like(positions, place), positions], 1))
    return torch.cat(found)


def _rows_of(shards: Sequence[_Shard], rows: Tensor) -> Batch:
    """The samples at some (place, position), in their order."""
    chosen = [(shard, rows[rows[:, 0] == place, 1].to(shard.x.device)) for place, shard in enumerate(shards)]
    picked = [(shard, at) for shard, at in chosen if len(at)]
    target = None
    if shards[0].target is not None:
        target = torch.cat([shard.target[at] for shard, at in picked if shard.target is not None])
    known = [shard.handed.select(at) for shard, at in picked if shard.handed is not None]
    return Batch(
        torch.cat([shard.indices[at] for shard, at in picked]),
        torch.cat([shard.x[at] for shard, at in picked]),
        torch.cat([shard.y[at] for shard, at in picked]),
        target,
        Handed(*(torch.cat(column) for column in zip(*known, strict=True))) if known else None,
    )


def _by_shard(fresh: Facts, rows: Tensor, seconds: float) -> Iterator[tuple[int, Facts]]:
    """A batch's facts shard by shard, with positions and its share of the seconds."""
    place, position = rows[:, 0].numpy(), rows[:, 1].numpy()
    for one in np.unique(place):
        own = place == one
        facts = {name: values[own] for name, values in fresh.items() if name.removesuffix("_row") not in _IMAGES}
        facts["position"] = position[own]
        facts["seconds"] = np.array([seconds * own.sum() / len(own)])
        for name in _IMAGES:
            if name in fresh:
                at = fresh[f"{name}_row"]
                facts[name], facts[f"{name}_position"] = fresh[name][own[at]], position[at[own[at]]]
        yield int(one), facts


def _batch(bench: Bench, named: Named, batch: Batch, watch: Progress, keep: bool) -> Facts:
    """Attack one batch and judge what comes back: a crash, a cheat or a lie of the attack is a fact about it.

    `keep` says that a later attack will ask where this one left what stands.
    """
    _, attack, place = named
    first, everyone, climb = int(batch.indices[0]), batch.rows, Climb(batch.y, batch.target)
    judge = bench.judge(batch.x, batch.y, batch.target, attack.goal, place, first)
    oracle = oracle_for(
        bench.opened, bench.network(place, first), batch, watch.guard, lambda counts: watch.at_work(counts, judge),
        saw=(lambda *seen: judge.saw(*seen)) if isinstance(judge, VotingJudge) else None, climb=climb,
    )  # fmt: skip
    counts, notes = oracle.counts, Notes(len(batch.x))  # the attack can reach the oracle's

    def conclude(adv: object) -> None:
        rows = ~judge.broken if attack.goal == "bounded" else torch.ones_like(judge.broken)
        judge.submit(everyone[rows], _rows(adv, rows))

    done = attempt(
        attack, bench.opened, batch, oracle, threat=bench.threat, key=key_of(bench.seed, place), submit=judge.submit,
        conclude=conclude, guard=watch.guard, notes=notes,
    )  # fmt: skip
    for failure in done.failures:
        judge.violate(everyone, failure)
    if done.changed:
        judge.revoke(f"changed {done.changed}")
    elif not judge.unchanged(batch.x, batch.y, batch.target):
        judge.revoke("changed what the judge compares with")
    elif isinstance(judge, VotingJudge):
        judge.settle(lambda draw: bench.network("vote", place, first, draw))
    else:
        judge.confirm_again()
    return _facts(bench, judge, counts, climb, notes, _quantized(bench, judge, place, first), keep)


def _facts(
    bench: Bench, judge: Judge, counts: Counts, climb: Climb, notes: Notes, quantized: Tensor, keep: bool
) -> Facts:
    """The facts of a judged batch, a row a sample."""
    verdicts = judge.verdicts()
    found = {
        "outcome": verdicts.outcome.cpu().numpy(),
        "distance": _numbers(verdicts.distance),
        "margin": _numbers(verdicts.margin),
        "decision": verdicts.decision.cpu().numpy(),
        "forwards": counts.forwards.cpu().numpy(),
        "backwards": counts.backwards.cpu().numpy(),
        "flat": _numbers(climb.share),
        "first_loss": _numbers(climb.first),
        "last_loss": _numbers(climb.last),
        "log": np.array(notes.texts, dtype=np.str_),
        "quantized": quantized.cpu().numpy(),
        "reason": np.array(judge.why(), dtype=np.str_),
    }
    if isinstance(judge, VotingJudge):
        found["draws"] = np.array(judge.patterns(), dtype=np.str_)
        found["ever"] = judge.ever.cpu().numpy()
        found["expected"] = judge.expected.cpu().numpy()
    if bench.keep_adversarial:
        found["adv"] = verdicts.adv[judge.broken].cpu().numpy()
        found["adv_row"] = judge.broken.nonzero()[:, 0].cpu().numpy()
    if keep:
        at = (judge.near() & ~judge.broken).nonzero()[:, 0]
        found["point"], found["point_row"] = verdicts.adv[at].cpu().numpy(), at.cpu().numpy()
    return found


def _numbers(values: Tensor) -> np.ndarray:
    """A fact of each sample in float64, whatever its device has."""
    return values.cpu().double().numpy()


def _quantized(bench: Bench, judge: Judge, place: str, first: int) -> Tensor:
    """The outcome after rounding each adversarial to the asked grid; an image that leaves the ball is no break."""
    outcome = torch.full_like(judge.decision, SURVIVED)
    at = judge.broken.nonzero()[:, 0]
    if bench.quantize and len(at):
        rounded = (judge.adv[at] * 255).round() / 255
        target = None if judge.target is None else judge.target[at]
        again = bench.judge(judge.x[at], judge.y[at], target, "minimal", "rounded", place, first)
        again.submit(torch.arange(len(at), device=at.device), rounded)
        if isinstance(again, VotingJudge):
            again.settle(lambda draw: bench.network("rounded vote", place, first, draw))
        outcome[at[again.broken]] = BROKEN
    return outcome


def _rows(adv: object, keep: Tensor) -> object:
    """The rows of an attack's answer, if it is one that has rows; the judge looks at the rest."""
    return adv.to(keep.device)[keep] if isinstance(adv, Tensor) and adv.shape[:1] == keep.shape else adv


def _no_facts() -> Facts:
    facts: Facts = {column.name: np.zeros(0, dtype=column.dtype) for column in schema.ATTACK_FACTS}
    return {**facts, "seconds": np.zeros(0, dtype=np.float64)}


def _merged(known: Facts, fresh: Facts) -> Facts:
    """Two sets of facts in the order of their positions."""
    both = {
        name: np.concatenate([known[name], values]) if name in known and len(known[name]) else values
        for name, values in fresh.items()
    }
    order = np.argsort(both["position"], kind="stable")
    return {name: values[order] if name in _ROWS else values for name, values in both.items()}
