"""A shard of a transfer run: the clean answers, then of each row the adversarials, and the answers to them.

`attack_shard` is a function of its arguments and writes nothing. Adversarials are made for every sample, and no victim
is asked while they are made.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.api import Images, ThreatModel
from robustkit.datasets.choice import Samples
from robustkit.engine.attempt import Batch, attempt, in_batches, oracle_for
from robustkit.engine.plan import targets_for, without_budget
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.opening import Opened
from robustkit.models.oracle import Counts, Network
from robustkit.numerics.streams import key_of
from robustkit.records.transfer_folder import Part as Kind
from robustkit.spec import digest
from robustkit.transfers.check import Checked, check, refused
from robustkit.transfers.offers import Offers
from robustkit.transfers.plan import Row, answering, repeatable
from robustkit.transfers.progress import Progress

UNDECIDED = -1  # the prediction where there is none
Facts = dict[str, np.ndarray]
Known = Callable[[Kind, str, int, Sequence[str]], Facts | None]  # None too where the identity is empty


class Part(NamedTuple):
    """The facts of one part of the work on a shard; `new` unless they were known.

    `key` is of clean answers the model's name, of adversarials the surrogate set's and the attack's, of answers all
    three. `identity` is empty where it cannot be had again: then nobody keeps it.
    """

    kind: Kind
    key: tuple[str, ...]
    shard: int
    identity: str
    facts: Facts
    new: bool


@dataclass(frozen=True, slots=True)
class Bench:
    """All that attacking a shard needs; `shard_size` is a whole number of tiles, and `identity` all parts share."""

    models: Mapping[str, Opened]
    rows: Sequence[Row]
    samples: Samples
    threat: ThreatModel
    target: str
    seed: int
    draws: int
    shard_size: int
    identity: Mapping[str, Any]

    def network(self, row: Row, start: int, *purpose: str) -> Network:
        """The surrogates' network; of a randomised one, with noise keyed by the purpose and the place in the run."""
        reference = row.surrogates.opened.subject.reference
        return reference if reference.noise is None else reference.seeded(self.seed, *purpose, start // reference.tile)


class _Shard(NamedTuple):
    number: int
    start: int
    batch: Batch
    known: Known
    watch: Progress


def attack_shard(bench: Bench, number: int, known: Known, watch: Progress) -> Iterator[Part]:
    """The parts of one shard; `known` gives what was computed before of a (kind, identity, shard), less some arrays.

    Raises:
        UsageError: if a model's outputs on a clean sample are not finite.
        RobustkitError: if not even one tile fits in memory, or adversarials that were known are gone.
    """
    start, device = number * bench.shard_size, next(iter(bench.models.values())).device
    stop = min(len(bench.samples), start + bench.shard_size)
    x, y = (t.to(device) for t in bench.samples.batch(start, stop))
    indices = torch.tensor(bench.samples.indices[start:stop], dtype=torch.int64, device=device)
    shard = _Shard(number, start, Batch(indices, x, y, None), known, watch)
    for name, model in bench.models.items():
        yield _clean(bench, name, model, shard)
    for row in bench.rows:
        made, images = _made(bench, row, shard)
        yield made
        for name, model in bench.models.items():
            yield _answers(bench, row, name, model, shard, made.facts, images)


def _clean(bench: Bench, name: str, model: Opened, shard: _Shard) -> Part:
    identity = digest([bench.identity, answering(model, bench.draws)]) if repeatable(model) else ""
    facts = before = shard.known("clean", identity, shard.number, ())
    if facts is None:
        shard.watch.judging(None, name)
        prediction = _predictions(bench, model, shard.batch.x, shard.start)
        if (bad := (prediction == UNDECIDED).nonzero()[0]).size:
            index = int(shard.batch.indices[int(bad[0])])
            raise UsageError(f"{name}: the model's outputs on clean sample {index} are not finite")
        facts = {"prediction": prediction}
    return Part("clean", (name,), shard.number, identity, facts, before is None)


def _answers(
    bench: Bench, row: Row, name: str, model: Opened, shard: _Shard, made: Facts, images: Callable[[], Images]
) -> Part:
    """What a model says of the adversarials; of a violated one, nothing."""
    kept = bool(row.identity) and repeatable(model)
    identity = digest([row.identity, answering(model, bench.draws)]) if kept else ""
    facts, content = shard.known("answers", identity, shard.number, ()), made["sha256"]
    new = facts is None or facts["of"] != content
    if facts is None or new:
        shard.watch.judging(row, name)
        prediction = _predictions(bench, model, images(), shard.start)
        prediction[made["violated"]] = UNDECIDED
        facts = {"prediction": prediction, "of": content}
    return Part("answers", (*row.key, name), shard.number, identity, facts, new)


def _predictions(bench: Bench, model: Opened, x: Images, start: int) -> np.ndarray:
    """The decision on each image, UNDECIDED where the outputs are not finite.

    Of a randomised model it is the class that most draws decide on, of several the first. It is seeded for each tile by
    its place in the run, so that all attacks meet the same draws.
    """
    network = model.subject.reference
    if network.noise is None:
        logits = network.logits(x)[None]
    else:
        tiles, first = torch.split(x, network.tile), start // network.tile
        keyed = [network.seeded(bench.seed, "transfer victim", first + place) for place in range(len(tiles))]
        # Each call of a seeded network is another draw.
        drawn = [[each.logits(tile) for _ in range(bench.draws)] for each, tile in zip(keyed, tiles, strict=True)]
        logits = torch.cat([torch.stack(each) for each in drawn], 1)
    decided = torch.isfinite(logits).all(2).all(0)
    votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
    return torch.where(decided, votes.argmax(1), UNDECIDED).cpu().numpy()


def _made(bench: Bench, row: Row, shard: _Shard) -> tuple[Part, Callable[[], Images]]:
    """The part of a row's adversarials, known or computed, and how to get the images.

    One with a violation is computed again: what ran out of memory then may not now.
    """
    facts = shard.known("adversarials", row.identity, shard.number, ("adv",))
    new = facts is None or bool(facts["violated"].any())
    if facts is None or new:
        facts = _make(bench, row, shard)
        adv = torch.from_numpy(facts["adv"]).to(shard.batch.x.device)
        return Part("adversarials", row.key, shard.number, row.identity, facts, True), lambda: adv
    shard.watch.made(row, facts, new=False)

    @cache  # read once, if any model is to be shown them
    def stored() -> Images:
        whole = shard.known("adversarials", row.identity, shard.number, ())
        if whole is None:
            raise RobustkitError("the adversarials were removed from the run's folder meanwhile; run it again")
        return torch.from_numpy(whole["adv"]).to(shard.batch.x.device)

    return Part("adversarials", row.key, shard.number, row.identity, facts, False), stored


def _make(bench: Bench, row: Row, shard: _Shard) -> Facts:
    """The adversarials of a shard, and what is known of them."""
    began, whole = time.perf_counter(), shard.batch

    def run(rows: Tensor) -> Facts:
        some = slice(int(rows[0]), int(rows[-1]) + 1)
        batch = Batch(whole.indices[some], whole.x[some], whole.y[some], None)
        return _batch(bench, row, shard.start + some.start, batch, shard.watch)

    parts: list[Facts] = []
    reference = row.surrogates.opened.subject.reference
    for _, facts in in_batches(torch.arange(len(whole.x)), row.in_flight, reference.tile, reference.device, run):
        shard.watch.made(row, facts, new=True)
        parts.append(facts)
    found = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
    content = hashlib.sha256(found["adv"].tobytes() + found["violated"].tobytes()).hexdigest()
    return {**found, "sha256": np.array(content), "seconds": np.array(time.perf_counter() - began)}


def _batch(bench: Bench, row: Row, start: int, batch: Batch, watch: Progress) -> Facts:
    """Run the attack on one batch and check what comes back: a crash or a cheat is a fact about it."""
    surrogates, named = row.surrogates, row.named
    if bench.target:
        clean = bench.network(row, start, "transfer target").logits(batch.x)  # for all attacks alike
        batch = batch._replace(target=targets_for(bench.target, batch.y, clean, batch.indices, bench.seed))
    oracle = oracle_for(
        surrogates.opened, bench.network(row, start, "transfer", named.name), batch, watch.guard,
        lambda counts: watch.at_work(row, counts), passes=len(surrogates.members),
    )  # fmt: skip
    counts, offers = oracle.counts, Offers(oracle, bench.threat, batch.x, batch.y, batch.target)
    done = attempt(
        named.attack, surrogates.opened, batch, oracle, threat=bench.threat,
        key=key_of(bench.seed, without_budget(named.name)), submit=offers.keep,
        conclude=lambda adv: offers.best(check(bench.threat, batch.x, adv)), guard=watch.guard,
    )  # fmt: skip
    changed = "the surrogates" if done.changed == "the model" else done.changed
    failures = [*done.failures, *([f"changed {changed}"] if changed else [])]
    kept = done.result if done.result is not None and not failures else refused(batch.x, failures[-1])
    return _facts(kept, batch.target, counts)


def _facts(checked: Checked, target: Tensor | None, counts: Counts) -> Facts:
    return {
        "adv": checked.adv.cpu().numpy(),
        "violated": checked.violated.cpu().numpy(),
        "reason": np.array(checked.reasons, dtype=np.str_),
        "distance": checked.distance.cpu().numpy(),
        "target": (torch.full_like(counts.forwards, UNDECIDED) if target is None else target).cpu().numpy(),
        "forwards": counts.forwards.cpu().numpy(),
        "backwards": counts.backwards.cpu().numpy(),
    }
