"""A transfer run on open models: its folder opened, its shards attacked, its record assembled."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkit import events
from robustkit.datasets.choice import Samples
from robustkit.datasets.names import names_of
from robustkit.engine.costs import cost_of
from robustkit.engine.identity import source_hashes
from robustkit.engine.memory import samples_in_flight
from robustkit.engine.plan import Named, environment, parse_target
from robustkit.engine.request import Execution
from robustkit.locks import at_work
from robustkit.models.opening import Opened, accelerated
from robustkit.records.about import About, now
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_folder import Part as Kind
from robustkit.records.transfer_folder import TransferFolder
from robustkit.report import files
from robustkit.spec import digest
from robustkit.transfers import assemble, plan
from robustkit.transfers.progress import Progress
from robustkit.transfers.run import Bench, Facts, attack_shard

SHARD = 128
Out = str | os.PathLike[str] | Callable[[Mapping[str, Any]], Path] | None
Tell = Callable[[events.TransferEvent], None]


def measure(
    models: Mapping[str, Opened], sets: Sequence[plan.SurrogateSet], samples: Samples, request: plan.Request,
    execution: Execution, out: Out, tell: Tell,
) -> TransferRecord:  # fmt: skip
    """The record of a request on open models, kept in the folder that `out` names, if it names one.

    Raises:
        UsageError: for a target that the models do not have, or a folder that holds something else or is at work.
    """
    one = next(iter(models.values()))
    parse_target(request.target, one.subject.facts.classes)
    common = plan.base(models, samples, request)
    job = plan.job(common, models, request)
    path = out({**job, "base": common["id"]}) if callable(out) else Path(out) if out is not None else None
    with at_work(path):
        return _measured(models, sets, samples, request, execution, (common, job), path, tell)


def _measured(
    models: Mapping[str, Opened], sets: Sequence[plan.SurrogateSet], samples: Samples, request: plan.Request,
    execution: Execution, jobs: tuple[dict[str, Any], dict[str, Any]], path: Path | None, tell: Tell,
) -> TransferRecord:  # fmt: skip
    """The same in the folder at `path`; `jobs` are what every command of that folder shares, and this command's own."""
    (one, (common, job)), started = (next(iter(models.values())), jobs), now()
    width = one.subject.reference.tile
    folder, shard_size = None, -(-(execution.shard_size or SHARD) // width) * width
    if path is not None:
        folder = TransferFolder(path)
        shard_size = folder.open(common, shard_size, fresh=execution.fresh)
    threat = request.threat
    eps = About(eps=request.eps).written(threat.eps)
    title = f"transfer from {' | '.join(request.sets)} · {request.data} · {threat.norm} {eps}"
    title += accelerated(one.device)
    resumed = folder is not None and folder.has_parts()
    tell(events.Started(title, len(samples), tuple(each.label for each in request.attacks), resumed))
    identity = {"base": common["id"], "code": job["code"]}
    rows = _rows(sets, samples, request, execution, identity)
    bench = Bench(
        models, rows, samples, threat, request.target, request.seed, request.draws, shard_size, identity
    )  # fmt: skip
    if folder is not None:
        folder.begin()
    found = _attacked(bench, folder, Progress(rows, len(samples), tell))
    record = TransferRecord(
        job=job,
        environment=environment(one.device),
        samples=assemble.samples(bench, found),
        attacks=assemble.attacks(bench, found),
        transfer=assemble.transfer(bench, found),
        seconds=assemble.seconds(found),
        flags=[*assemble.flags(bench), *assemble.idle(found)],
        errors=assemble.errors(bench, found),
        folder=str(path) if path else None,
        about=About(execution.label, request.eps, started, now(), names_of(samples.dataset)),
    )
    if folder is not None:
        folder.save(record, files.of_transfer(record))
    return record


def _rows(
    sets: Sequence[plan.SurrogateSet], samples: Samples, request: plan.Request, execution: Execution,
    identity: Mapping[str, Any],
) -> list[plan.Row]:  # fmt: skip
    """The rows of the matrix."""
    rows, first = [], samples.batch(0, 1)[0]
    for group in sets:
        subject = group.opened.subject
        in_flight = samples_in_flight(execution.batch_size, subject, first)
        for named in request.attacks:
            parts = [identity, group.identity, named.name, source_hashes([Named(named.name, named.attack)])]
            cost = max(1, sum(cost_of(named.attack, subject.facts, len(group.members))))
            rows.append(plan.Row(group, named, in_flight, digest(parts) if group.repeats else "", cost))
    return rows


def _attacked(bench: Bench, folder: TransferFolder | None, watch: Progress) -> assemble.Found:
    """The facts of all parts over all shards, journalled as they come."""

    def known(kind: Kind, identity: str, shard: int, without: Sequence[str]) -> Facts | None:
        return folder.read(kind, identity, shard, without) if folder is not None and identity else None

    found: dict[Kind, dict[tuple[str, ...], list[Facts]]] = {"clean": {}, "adversarials": {}, "answers": {}}
    for number in range(-(-len(bench.samples) // bench.shard_size)):
        for part in attack_shard(bench, number, known, watch):
            if folder is not None and part.new and part.identity:
                folder.write(part.kind, part.identity, part.shard, part.facts)
            facts = {name: values for name, values in part.facts.items() if name != "adv"}
            found[part.kind].setdefault(part.key, []).append(facts)
    return {kind: {key: _joined(facts) for key, facts in each.items()} for kind, each in found.items()}


def _joined(facts: Sequence[Facts]) -> Facts:
    """The facts of all shards as one; what there is once a shard becomes an array over shards."""
    return {name: np.concatenate([np.atleast_1d(each[name]) for each in facts]) for name in facts[0]}
