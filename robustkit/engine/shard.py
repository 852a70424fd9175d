"""A shard of a measurement: the clean pass, then each attack on what still stands, the judge after each batch.

`attack_shard` is a function of its arguments. A `Bench` can be made again in another process from the job alone, see
`robustkit.engine.measure.rebuilt`; what a shard's facts are depends on nothing else.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Case, ForeignAttack, Goal, Images, Labels, ThreatModel
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED, Judge
from robustkit.engine.memory import out_of_memory
from robustkit.engine.plan import Named, targets_for
from robustkit.engine.progress import Progress
from robustkit.engine.voting import VotingJudge, clean, clean_by_vote
from robustkit.errors import NoGradientError, RobustkitError, UsageError
from robustkit.models.evidence import Climb
from robustkit.models.examination import restore
from robustkit.models.opening import Opened
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records import schema

CLEAN = 0  # the step before the first attack
Facts = dict[str, np.ndarray]
_ROWS = tuple(column.name for column in schema.ATTACK_FACTS)


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

    def network(self, *key: object) -> Network:
        """The reference network; of a randomised one, with noise of its own for this key."""
        reference = self.opened.subject.reference
        return reference if reference.noise is None else reference.seeded(self.seed, *key)

    def judge(self, x: Images, y: Labels, target: Labels | None, goal: Goal, *key: object) -> Judge:
        """The judge of a batch, its noise keyed by what is judged."""
        if self.draws:
            return VotingJudge(self.network(*key, "judge"), self.threat, x, y, target, goal, self.draws)
        return Judge(self.network(*key, "judge"), self.threat, x, y, target, goal)

    def packs(self, named: Named) -> bool:
        """Whether survivors of several shards may share a batch: not where a result depends on who is beside it."""
        return not self.draws and not isinstance(named.attack, ForeignAttack)


@dataclass(frozen=True, slots=True)
class _Shard:
    """The samples of a shard, decoded once. `standing` falls as attacks break them; `facts` are the current step's."""

    number: int
    x: Images
    y: Labels
    target: Labels | None
    indices: Tensor
    standing: Tensor


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
        for together in [here] if bench.packs(named) else [[shard] for shard in here]:
            yield from _attack(bench, step, named, together, known, watch)


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
    return Part(number, CLEAN, facts, known is None), _Shard(number, x, y, target, indices, standing)


def _clean(bench: Bench, start: int, x: Images, y: Labels, indices: Tensor) -> Facts:
    if bench.draws:
        seen = clean_by_vote(lambda draw: bench.network("clean", start, draw), bench.draws, x, y)
    else:
        seen = clean(bench.network(), x, y)
    if not seen.sound.all():
        bad = int(indices[(~seen.sound).nonzero()[0, 0]])
        raise UsageError(f"the model's outputs on clean sample {bad} are not finite")
    target = targets_for(bench.target, y, seen.logits, indices, bench.seed)
    return {
        "correct": seen.correct.cpu().numpy(),
        "prediction": seen.prediction.cpu().numpy(),
        "margin": seen.margin.cpu().numpy(),
        "target": (torch.full_like(y, -1) if target is None else target).cpu().numpy(),
        **({"draws": np.array(seen.draws, dtype=np.str_)} if bench.draws else {}),
    }


def _attack(
    bench: Bench, step: int, named: Named, shards: Sequence[_Shard], known: Known, watch: Progress
) -> Iterator[Part]:
    """The facts of one attack on the samples of some shards that still stand, from the journal or computed."""
    facts = [_still_needed(known(shard.number, step), shard.standing) for shard in shards]
    pending = _pending(shards, facts)
    grown = set()
    watch.begin(step, sum(len(s.x) for s in shards), sum(int(s.standing.sum()) for s in shards), len(pending), facts)
    in_flight = bench.in_flight
    while len(pending):
        now, rest = pending[:in_flight], pending[in_flight:]
        began = time.perf_counter()
        try:
            fresh = _batch(bench, named, *_rows_of(shards, now), watch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            tile = bench.opened.subject.reference.tile
            if not out_of_memory(error):
                raise
            if len(now) <= tile:
                raise RobustkitError(f"out of memory with one tile of {tile} samples; choose a smaller tile") from error
            in_flight = max(1, min(in_flight, len(now)) // 2 // tile) * tile
            continue
        seconds = time.perf_counter() - began
        for place, own in _by_shard(fresh, now, seconds):
            facts[place] = _merged(facts[place], own)
            grown.add(place)
            yield Part(shards[place].number, step, facts[place], new=True)
        watch.batch_done(fresh)
        pending = rest
    watch.end()
    for place, shard in enumerate(shards):
        if place not in grown:
            yield Part(shard.number, step, facts[place], new=False)
        broken = torch.from_numpy(facts[place]["position"][facts[place]["outcome"] == BROKEN])
        shard.standing[broken.to(shard.standing.device)] = False


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
    if "adv" in facts:
        kept = np.isin(facts["adv_position"], known["position"])
        known["adv"], known["adv_position"] = facts["adv"][kept], facts["adv_position"][kept]
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


def _rows_of(shards: Sequence[_Shard], rows: Tensor) -> tuple[Tensor, Images, Labels, Labels | None]:
    """The indices, images, labels and targets of some (place, position), in their order."""
    chosen = [(shard, rows[rows[:, 0] == place, 1].to(shard.x.device)) for place, shard in enumerate(shards)]
    picked = [(shard, at) for shard, at in chosen if len(at)]
    target = None
    if shards[0].target is not None:
        target = torch.cat([shard.target[at] for shard, at in picked if shard.target is not None])
    return (
        torch.cat([shard.indices[at] for shard, at in picked]),
        torch.cat([shard.x[at] for shard, at in picked]),
        torch.cat([shard.y[at] for shard, at in picked]),
        target,
    )


def _by_shard(fresh: Facts, rows: Tensor, seconds: float) -> Iterator[tuple[int, Facts]]:
    """A batch's facts shard by shard, with positions and its share of the seconds."""
    place, position = rows[:, 0].numpy(), rows[:, 1].numpy()
    for one in np.unique(place):
        own = place == one
        facts = {name: values[own] for name, values in fresh.items() if name not in ("adv", "adv_row")}
        facts["position"] = position[own]
        facts["seconds"] = np.array([seconds * own.sum() / len(own)])
        if "adv" in fresh:
            kept = own[fresh["adv_row"]]
            facts["adv"], facts["adv_position"] = fresh["adv"][kept], position[fresh["adv_row"][kept]]
        yield int(one), facts


def _batch(
    bench: Bench, named: Named, indices: Tensor, x: Images, y: Labels, target: Labels | None, watch: Progress
) -> Facts:
    """Attack one batch and judge what comes back: a crash, a cheat or a lie of the attack is a fact about it."""
    _, attack, place = named
    first, subject = int(indices[0]), bench.opened.subject
    judge = bench.judge(x, y, target, attack.goal, place, first)
    counts = Counts(len(x), x.device)
    counts.on_call = watch.guard.watching(lambda: watch.at_work(counts, judge))
    everyone = torch.arange(len(x), device=x.device)
    facts, climb = subject.facts, Climb(y, target)
    # What an attack is lent is a copy: nothing that it writes to is read again.
    oracle = ModelOracle(
        bench.network(place, first), counts, everyone.clone(), facts.classes, facts.randomised, facts.differentiable,
        watch=judge.saw if isinstance(judge, VotingJudge) else None, climb=climb,
    )  # fmt: skip
    lent = judge.lent()
    draws = SampleDraws(key_of(bench.seed, place), indices.clone())
    try:
        adv = attack(Case(oracle, *lent, replace(bench.threat), draws, judge.submit, everyone.clone()))
        rows = ~judge.broken if attack.goal == "bounded" else torch.ones_like(judge.broken)
        judge.submit(everyone[rows], _rows(adv, rows))
    except UsageError:
        raise
    except NoGradientError:  # says something of the model: the attack broke no rule, it could do nothing
        climb.none_flows()
    except (Exception, SystemExit) as error:  # the one deliberate catch-all: a crash is a fact about the attack
        watch.guard.raise_callers()
        if out_of_memory(error) and len(x) > subject.reference.tile:
            raise
        judge.violate(everyone, f"{type(error).__name__}: {first_line(error)}")
    finally:
        counts.on_call = None  # it leads back to the counts and the judge: a ring that would keep their images
    if not judge.unchanged(*lent):
        judge.violate(everyone, "changed the images or labels it was lent")
    if not subject.untouched(bench.opened.weights):
        judge.revoke("changed the model")
        restore(subject.reference.module, bench.opened.weights)
    elif isinstance(judge, VotingJudge):
        judge.settle(lambda draw: bench.network("vote", place, first, draw))
    else:
        judge.confirm_again()
    return _facts(bench, judge, counts, climb, _quantized(bench, judge, place, first))


def _facts(bench: Bench, judge: Judge, counts: Counts, climb: Climb, quantized: Tensor) -> Facts:
    """The facts of a judged batch, a row a sample."""
    verdicts = judge.verdicts()
    found = {
        "outcome": verdicts.outcome.cpu().numpy(),
        "distance": verdicts.distance.cpu().numpy(),
        "margin": verdicts.margin.cpu().numpy(),
        "decision": verdicts.decision.cpu().numpy(),
        "forwards": counts.forwards.cpu().numpy(),
        "backwards": counts.backwards.cpu().numpy(),
        "flat": climb.share.cpu().numpy(),
        "first_loss": climb.first.cpu().numpy(),
        "last_loss": climb.last.cpu().numpy(),
        "quantized": quantized.cpu().numpy(),
        "reason": np.array(judge.why(), dtype=np.str_),
    }
    if isinstance(judge, VotingJudge):
        found["draws"] = np.array(judge.patterns(), dtype=np.str_)
        found["ever"] = judge.ever.cpu().numpy()
    if bench.keep_adversarial:
        found["adv"] = verdicts.adv[judge.broken].cpu().numpy()
        found["adv_row"] = judge.broken.nonzero()[:, 0].cpu().numpy()
    return found


def _quantized(bench: Bench, judge: Judge, place: str, first: int) -> Tensor:
    """The outcome after rounding each adversarial to the asked grid; an image that leaves the ball is no break."""
    outcome = torch.full_like(judge.y, SURVIVED)
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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to what a table can hold."""
    return (str(error).strip().splitlines() or [""])[0][:300]
