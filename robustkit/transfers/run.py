"""One transfer run, a shard of samples at a time: the adversarials of each surrogate set and attack, then the answers.

What the journal holds is not computed again. Adversarials are made for every sample, and no victim is asked while
they are made.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.api import Case, Images, Labels, ThreatModel
from robustkit.datasets.choice import Samples
from robustkit.engine.costs import cost_of
from robustkit.engine.memory import out_of_memory
from robustkit.engine.plan import targets_for
from robustkit.errors import RobustkitError, UsageError, first_line
from robustkit.events import Guard
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.models.state import restore, snapshot
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.transfer_folder import Part, TransferFolder
from robustkit.spec import digest
from robustkit.transfers import events
from robustkit.transfers.check import Checked, check, refused
from robustkit.transfers.offers import Offers, confirm_none
from robustkit.transfers.plan import Known, Labelled, SurrogateSet

TELL_EVERY_S = 0.25
UNDECIDED = -1  # the prediction where there is none
Facts = dict[str, np.ndarray]


class _Shard(NamedTuple):
    number: int
    start: int
    x: Images
    y: Labels
    indices: Tensor


class _Row(NamedTuple):
    """A row of the matrix: an attack on a surrogate set."""

    surrogates: SurrogateSet
    named: Labelled
    in_flight: int
    weights: Mapping[str, Tensor]
    identity: str  # empty where the adversarials cannot be had again
    cost: int


@dataclass
class Run:
    """All that one run needs; `execute` fills `clean`, `made` and `answers`, each a list with the facts of each shard.

    `identity` is what all parts share; `shard_size` is a whole number of tiles.
    """

    sets: Sequence[SurrogateSet]
    models: Mapping[str, Known]
    samples: Samples
    attacks: Sequence[Labelled]
    threat: ThreatModel
    target: str
    seed: int
    in_flight: Mapping[str, int]
    shard_size: int
    identity: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, str]]
    folder: TransferFolder | None
    tell: Callable[[events.Event], None]
    clean: dict[str, list[Facts]] = field(default_factory=dict)
    made: dict[tuple[str, str], list[Facts]] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], list[Facts]] = field(default_factory=dict)

    def execute(self) -> None:
        """Fill the facts; continues from the journal."""
        n = len(self.samples.indices)
        rows = self._rows()
        work = _Work(self.tell, n * sum(row.cost for row in rows))
        for number, start in enumerate(range(0, n, self.shard_size)):
            shard = self._shard(number, start, min(n, start + self.shard_size))
            for name, model in self.models.items():
                self.clean.setdefault(name, []).append(self._clean(name, model, shard))
            for row in rows:
                key = (row.surrogates.name, row.named.label)
                facts, adv = self._made(row, shard, work.on(row, len(shard.x), self.made.get(key, ())))
                self.made.setdefault(key, []).append(facts)
                for name, model in self.models.items():
                    known = self._answers(row, name, model, shard, facts, adv)
                    self.answers.setdefault((*key, name), []).append(known)

    def _rows(self) -> list[_Row]:
        rows: list[_Row] = []
        for surrogates in self.sets:
            weights = snapshot(surrogates.subject.reference.module)
            for named in self.attacks:
                parts = [self.identity, surrogates.identity, named.name, self.sources[named.name]]
                identity = digest(parts) if surrogates.repeats else ""
                # Progress is counted in passes of single surrogates.
                cost = max(1, sum(cost_of(named.attack, surrogates.subject.facts, len(surrogates.members))))
                rows.append(_Row(surrogates, named, self.in_flight[surrogates.name], weights, identity, cost))
        return rows

    def _shard(self, number: int, start: int, stop: int) -> _Shard:
        device = next(iter(self.models.values())).subject.reference.device
        x, y = (t.to(device) for t in self.samples.batch(start, stop))
        indices = torch.tensor(self.samples.indices[start:stop], dtype=torch.int64, device=device)
        return _Shard(number, start, x, y, indices)

    def _read(self, part: Part, identity: str, shard: _Shard, without: Sequence[str] = ()) -> Facts | None:
        return self.folder.read(part, identity, shard.number, without) if self.folder and identity else None

    def _write(self, part: Part, identity: str, shard: _Shard, facts: Facts) -> None:
        if self.folder and identity:
            self.folder.write(part, identity, shard.number, facts)

    def _clean(self, name: str, model: Known, shard: _Shard) -> Facts:
        identity = digest([self.identity, model.to_json()]) if model.repeats else ""
        facts = self._read("clean", identity, shard)
        if facts is None:
            self.tell(events.Judging("", "", name))
            prediction = self._predictions(model, shard.x, shard.start)
            if (bad := (prediction == UNDECIDED).nonzero()[0]).size:
                index = self.samples.indices[shard.start + int(bad[0])]
                raise UsageError(f"{name}: the model's outputs on clean sample {index} are not finite")
            facts = {"prediction": prediction}
            self._write("clean", identity, shard, facts)
        return facts

    def _answers(
        self, row: _Row, name: str, model: Known, shard: _Shard, made: Facts, adv: Callable[[], Images]
    ) -> Facts:
        """What a model says of the adversarials; of a violated one, nothing."""
        identity = digest([row.identity, model.to_json()]) if row.identity and model.repeats else ""
        facts = self._read("answers", identity, shard)
        if facts is None or facts["of"] != made["sha256"]:
            self.tell(events.Judging(row.surrogates.name, row.named.label, name))
            prediction = self._predictions(model, adv(), shard.start)
            prediction[made["violated"]] = UNDECIDED
            facts = {"prediction": prediction, "of": made["sha256"]}
            self._write("answers", identity, shard, facts)
        return facts

    def _predictions(self, model: Known, x: Images, start: int) -> np.ndarray:
        """The decision on each image, UNDECIDED where the outputs are not finite.

        A randomised model is seeded for each tile by its place in the run, so that all attacks meet the same draws.
        """
        network = model.subject.reference
        if network.noise is None:
            logits = network.logits(x)
        else:
            tiles = torch.split(x, network.tile)
            places = range(start // network.tile, start // network.tile + len(tiles))
            keyed = [network.seeded(self.seed, "transfer victim", place) for place in places]
            logits = torch.cat([each.logits(tile) for each, tile in zip(keyed, tiles, strict=True)])
        decided = torch.isfinite(logits).all(1)
        return torch.where(decided, logits.argmax(1), UNDECIDED).cpu().numpy()

    def _made(self, row: _Row, shard: _Shard, watch: "_Watch") -> tuple[Facts, Callable[[], Images]]:
        """The facts of a row's adversarials, from the journal or computed, and how to get the images.

        A part with a violation is computed again: what ran out of memory then may not now.
        """
        known = self._read("adversarials", row.identity, shard, without=("adv",))
        if known is not None and not known["violated"].any():
            return known, cache(lambda: self._stored(row, shard))  # read once, if any model is to be shown them
        facts, adv = self._make(row, shard, watch)
        self._write("adversarials", row.identity, shard, {**facts, "adv": adv.cpu().numpy()})
        return facts, lambda: adv

    def _stored(self, row: _Row, shard: _Shard) -> Images:
        facts = self._read("adversarials", row.identity, shard)
        if facts is None:
            raise RobustkitError("the adversarials were removed from the run's folder meanwhile; run it again")
        return torch.from_numpy(facts["adv"]).to(shard.x.device)

    def _make(self, row: _Row, shard: _Shard, watch: "_Watch") -> tuple[Facts, Images]:
        tile = row.surrogates.subject.reference.tile
        in_flight = row.in_flight
        began = time.perf_counter()
        parts: list[tuple[Facts, Images]] = []
        at = 0
        while at < len(shard.x):
            some = slice(at, at + in_flight)
            part = _Shard(shard.number, shard.start + at, shard.x[some], shard.y[some], shard.indices[some])
            try:
                parts.append(self._batch(row, part, watch))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if len(part.x) <= tile:
                    text = f"out of memory with one tile of {tile} samples; choose a smaller tile"
                    raise RobustkitError(text) from error
                in_flight = max(1, min(in_flight, len(part.x)) // 2 // tile) * tile
                continue
            at += len(part.x)
            watch.batch_done(parts[-1][0])
        facts = {name: np.concatenate([each[name] for each, _ in parts]) for name in parts[0][0]}
        adv = torch.cat([images for _, images in parts])
        content = hashlib.sha256(adv.cpu().numpy().tobytes() + facts["violated"].tobytes()).hexdigest()
        return {**facts, "sha256": np.array(content), "seconds": np.array(time.perf_counter() - began)}, adv

    def _batch(self, row: _Row, part: _Shard, watch: "_Watch") -> tuple[Facts, Images]:
        """Run the attack on one batch and check what comes back: a crash or a cheat is a fact about it."""
        subject, named = row.surrogates.subject, row.named
        network, facts = self._surrogate_network(row, part, ("transfer", named.name)), subject.facts
        target = None
        if self.target:
            clean = self._surrogate_network(row, part, ("transfer target",)).logits(part.x)  # for all attacks alike
            target = targets_for(self.target, part.y, clean, part.indices, self.seed)
        counts = Counts(len(part.x), part.x.device)
        counts.on_call = watch.guard.watching(lambda: watch.tell_passes(counts))
        everyone = torch.arange(len(part.x), device=part.x.device)
        oracle = ModelOracle(
            network, counts, everyone.clone(), facts.classes, facts.randomised, facts.differentiable,
            len(row.surrogates.members), no_gradient=facts.no_gradient,
        )  # fmt: skip
        # What an attack is lent is a copy: nothing that it writes to is read again.
        lent = (part.x.clone(), part.y.clone(), None if target is None else target.clone())
        draws = SampleDraws(key_of(self.seed, named.name), part.indices.clone())
        offers = Offers(oracle, self.threat, part.x, part.y, target)
        judge = offers.keep if named.attack.goal == "bounded" else confirm_none
        case = Case(oracle, *lent, replace(self.threat), draws, judge, everyone.clone())
        try:
            checked = offers.best(check(self.threat, part.x, named.attack(case)))
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # the one deliberate catch-all: a crash is a fact about the attack
            watch.guard.raise_callers()
            if out_of_memory(error) and len(part.x) > network.tile:
                raise
            checked = refused(part.x, f"{type(error).__name__}: {first_line(error, 300)}")
        if not (torch.equal(lent[0], part.x) and torch.equal(lent[1], part.y) and _same(lent[2], target)):
            checked = refused(part.x, "changed the images or labels it was lent")
        if not subject.untouched(row.weights):
            checked = refused(part.x, "changed the surrogates")
            restore(subject.reference.module, row.weights)
        return _facts(checked, target, counts), checked.adv

    def _surrogate_network(self, row: _Row, part: _Shard, purpose: tuple[str, ...]) -> Network:
        """The surrogates' network; of a randomised one, with noise keyed by the purpose and the batch's place."""
        reference = row.surrogates.subject.reference
        if reference.noise is None:
            return reference
        return reference.seeded(self.seed, *purpose, part.start // reference.tile)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is None or b is None or torch.equal(a, b)


def _facts(checked: Checked, target: Tensor | None, counts: Counts) -> Facts:
    return {
        "violated": checked.violated.cpu().numpy(),
        "reason": np.array(checked.reasons, dtype=np.str_),
        "distance": checked.distance.cpu().numpy(),
        "target": (torch.full_like(counts.forwards, UNDECIDED) if target is None else target).cpu().numpy(),
        "forwards": counts.forwards.cpu().numpy(),
        "backwards": counts.backwards.cpu().numpy(),
    }


class _Work:
    """How much of a run is done, by what its attacks may cost."""

    def __init__(self, tell: Callable[[events.Event], None], total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def on(self, row: _Row, n: int, before: Sequence[Facts]) -> "_Watch":
        """The work of a row on a shard of n samples begins; `before` are the row's facts so far."""
        passes = sum(int(facts["forwards"].sum() + facts["backwards"].sum()) for facts in before)
        watch = _Watch(row, self.tell, self.total, self.done, passes)
        self.done += n * row.cost
        return watch


class _Watch:
    """Turns the passes of an attack on a shard into events a few times a second."""

    def __init__(self, row: _Row, tell: Callable[[events.Event], None], total: int, done: float, passes: int) -> None:
        self.row, self.tell, self.total, self.done, self.passes = row, tell, total, done, passes
        self.told = 0.0
        self.guard = Guard()

    def tell_passes(self, counts: Counts) -> None:
        """A batch is at work."""
        if time.perf_counter() - self.told < TELL_EVERY_S:
            return
        passes = counts.forwards + counts.backwards
        self._emit(len(passes) * min(self.row.cost, int(passes.max())), int(passes.sum()))

    def batch_done(self, facts: Facts) -> None:
        """A batch is made."""
        self.done += len(facts["violated"]) * self.row.cost
        self.passes += int(facts["forwards"].sum() + facts["backwards"].sum())
        self._emit(0, 0)

    def _emit(self, ahead: int, passes: int) -> None:
        self.told = time.perf_counter()
        label, fraction = self.row.named.label, (self.done + ahead) / self.total
        self.tell(events.Making(self.row.surrogates.name, label, fraction, self.passes + passes))
