"""A measurement on an open model: planned, its folder opened, its shards attacked, its record assembled."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustkit import datasets, events
from robustkit.api import CohortAttack, ThreatModel
from robustkit.datasets.choice import choose_samples
from robustkit.datasets.names import names_of
from robustkit.engine import assemble, proofs
from robustkit.engine.costs import predict
from robustkit.engine.memory import samples_in_flight
from robustkit.engine.plan import Plan, environment, looks_inside, plan
from robustkit.engine.progress import Progress
from robustkit.engine.proofs import Proving, Refused, parse, proving
from robustkit.engine.request import Execution, Request
from robustkit.engine.shard import CLEAN, Bench, Carried, Facts, Known, attack_shards, check_proofs, decided
from robustkit.engine.units import Units, shard_size
from robustkit.errors import UsageError
from robustkit.locks import at_work
from robustkit.models import defended
from robustkit.models.opening import Opened, accelerated, load, open_model
from robustkit.models.standins import Watched
from robustkit.models.state import restore
from robustkit.models.views import Views
from robustkit.records.about import About, now
from robustkit.records.folder import CHECKED, RunFolder, load_run
from robustkit.records.run import NOT_CERTIFIABLE, RunRecord
from robustkit.records.schema import BROKE_CODE
from robustkit.spec import DEFAULT_DRAWS, Job


def measure(opened: Opened, request: Request, execution: Execution | None = None) -> RunRecord:
    """The record of a request on an open model; nothing is written but the journal, if the execution names a folder.

    Raises:
        UsageError: for what this model cannot be asked.
    """
    with begin(opened, request, execution or Execution()) as begun:
        return begun.finished or complete(begun)


@dataclass(frozen=True, slots=True)
class Begun:
    """A measurement that is planned and has its folder; `finished` is its record if nothing is left to do.

    `started` is when it was begun first, empty where the folder does not know.
    """

    opened: Opened
    request: Request
    execution: Execution
    plan: Plan
    folder: RunFolder | None
    shard_size: int
    keep_adversarial: bool
    resumed: bool
    retries: bool
    finished: RunRecord | None
    started: str = ""


@contextmanager
def begin(opened: Opened, request: Request, execution: Execution) -> Iterator[Begun]:
    """Plan a measurement and open its folder, in which nobody else is at work within.

    Raises:
        UsageError: for what this model cannot be asked, or a folder that holds something else or is at work.
    """
    opened = _seen_into(opened, request)
    planned = plan(opened, request)
    path = _path(execution, planned.job)
    with at_work(path):
        yield _begun(opened, request, execution, planned, path)


def _seen_into(opened: Opened, request: Request) -> Opened:
    """The model with the stand-ins that the harness can make of it, if a suite of the request wants them."""
    if request.threat.norm == "l0" or not looks_inside(request.attack):
        return opened
    subject = opened.subject
    views = Views(subject.reference, opened.samples.first()[0].to(opened.device), subject.facts, request.threat)
    found = views.found(rough=True, hidden_head=True)
    return opened.offering(Watched(opened.module, found), found) if found else opened


def _begun(opened: Opened, request: Request, execution: Execution, planned: Plan, path: Path | None) -> Begun:
    size = execution.shard_size or shard_size(opened.subject.probes[0].nbytes, _cohort(planned))
    keep = execution.save_adversarial
    folder = None if path is None else RunFolder(path)
    started = now()
    if folder is not None:
        wanted = {"shard_size": size, "adversarial": keep, "started": started}
        held = folder.open(planned.job.to_json(), wanted, fresh=execution.fresh)
        if keep and not held["adversarial"]:
            raise UsageError(f"the run in {path} was begun without its adversarials; add --fresh to run it again")
        size, keep, started = held["shard_size"], held["adversarial"], held.get("started", "")
    resumed = folder is not None and folder.has_parts()
    job, name = planned.job, opened.samples.dataset.name
    behind = f" behind {job.defense}" if job.defense else ""
    title = f"{job.model}{behind} · {name} · {job.norm} {_about(opened, request).written(job.eps)} · {job.attack}"
    title += accelerated(opened.device)
    execution.tell(events.Started(title, len(opened.samples), job.attacks, resumed))
    known = None if folder is None or not folder.finished() else _stored(folder, execution)
    finished = known if known is not None and _nothing_left(known, request.carry) else None
    return Begun(opened, request, execution, planned, folder, size, keep, resumed, known is not None, finished, started)


def _about(opened: Opened, request: Request, **more: str) -> About:
    return About(eps=request.eps, classes=names_of(opened.samples.dataset), **more)


def _stored(folder: RunFolder, execution: Execution) -> RunRecord | None:
    """The finished record in a folder; None where it is damaged: then it is made again from the journal."""
    try:
        return load_run(folder.path)
    except UsageError as error:
        execution.tell(events.Noted(f"{error} — it is made again from the journal"))
        return None


def complete(begun: Begun, flags: Sequence[Mapping[str, Any]] = ()) -> RunRecord:
    """Attack what the journal does not hold yet, and assemble the record; `flags` stand in it besides the plan's own.

    Raises:
        UsageError: for outputs that are not finite; a folder in which nothing came to be is taken back.
    """
    opened, folder, tell = begun.opened, begun.folder, begun.execution.tell
    first = opened.samples.first()[0]
    predicted = predict(opened.subject, begun.plan.attacks, first, len(opened.samples))
    restore(opened.module, opened.weights)
    tell(predicted)
    for flag in flags:
        tell(events.Noted(flag["message"]))
    in_flight = samples_in_flight(begun.execution.batch_size, opened.subject, first)
    how = _how_to_prove(begun)
    bench = replace(bench_of(begun, in_flight), proving=how if isinstance(how, Proving) else None)
    if folder is not None:
        folder.begin()
    try:
        parts = _attacked(bench, begun)
        checked = _check_proofs(bench, begun, parts)
    except UsageError:
        if folder is not None and not begun.resumed:
            folder.discard()
        raise
    samples, attacks, seconds = assemble.columns(bench, parts)
    proved = assemble.certificates(bench, parts, checked)
    left_out = _left_out(begun.request.target, len(opened.samples), opened.samples.left_out)
    chosen = opened.samples.flags(opened.subject.facts.classes)
    return RunRecord(
        job=begun.plan.job.to_json(),
        environment=environment(opened.device),
        samples={**samples, **proved},
        attacks=attacks,
        seconds=seconds,
        flags=[*opened.subject.flags, *left_out, *chosen, *begun.plan.flags, *_refusal(how), *flags],
        errors=assemble.errors(bench, parts),
        predicted={name: value for name, value in asdict(predicted).items() if name != "least"},
        goals={named.name: named.attack.goal for named in begun.plan.attacks},
        adversarial=assemble.adversarial(bench, parts),
        folder=str(folder.path) if folder else None,
        about=_about(opened, begun.request, label=begun.execution.label, started=begun.started, finished=now()),
        certificates=assemble.how_proved(bench, parts, checked),
    )


def _how_to_prove(begun: Begun) -> Proving | Refused | None:
    """How samples are proved, if that is asked; told, with what it was decided from."""
    asked = parse(begun.request.certify, begun.request.threat)
    if asked is None:
        return None
    how = proving(begun.opened, asked, begun.plan.attacks, begun.request.threat)
    restore(begun.opened.module, begun.opened.weights)
    if isinstance(how, Refused):
        begun.execution.tell(events.Noted(how.reason))
        return how
    at = f"after {how.after} of {len(begun.plan.attacks)} attacks" if how.after else "before the attacks"
    begun.execution.tell(
        events.Noted(
            f"certificates ({how.asked.method}) {at}: on the first samples they prove {100 * how.share:.0f} % for "
            f"{how.passes:.0f} passes each"
        )
    )
    return how


def _refusal(how: Proving | Refused | None) -> list[dict[str, Any]]:
    return [{"kind": NOT_CERTIFIABLE, "message": how.reason}] if isinstance(how, Refused) else []


def _check_proofs(bench: Bench, begun: Begun, parts: Mapping[tuple[int, int], Facts]) -> Facts | None:
    """Some of the proved samples attacked all the same, where proofs came before an attack.

    Raises:
        NotEstablishedError: if one breaks, for then a proof or the judge is wrong.
    """
    if bench.proving is None or bench.proving.after == len(bench.attacks):
        return None
    certified = assemble.proved(bench, parts)
    facts = None if begun.folder is None else begun.folder.read_part(0, CHECKED)
    if facts is None:
        facts = check_proofs(bench, certified["certified"])
        if begun.folder is not None:
            begun.folder.write_part(0, CHECKED, facts)
    for row in np.flatnonzero(facts["outcome"] == BROKE_CODE)[:1]:
        position = int(facts["position"][row])
        rung, bound = certified["rung"][position], certified["bound"][position]
        raise proofs.contradiction(
            bench.opened.samples.indices[position],
            f"{rung} bounds its margin by {bound:.4g} from below",
            f"{proofs.CHECK} reaches {facts['margin'][row]:.4g} at distance {facts['distance'][row]:.6g}",
        )
    return facts


def _attacked(bench: Bench, begun: Begun) -> dict[tuple[int, int], Facts]:
    """The facts of every (shard, step), journalled as they grow."""
    folder = begun.folder
    known = _known(begun)
    watch = Progress(bench.attacks, bench.opened, begun.execution.tell)
    found: dict[tuple[int, int], Facts] = {}
    units = Units(len(bench.opened.samples), bench.shard_size, bench.opened.subject.probes[0].nbytes)
    for claim in units.claims(bench.in_flight):
        for part in attack_shards(bench, claim.shards, known, watch):
            found[part.shard, part.step] = part.facts
            if folder is not None and part.new:
                folder.write_part(part.shard, part.step, part.facts)
    return found


def _known(begun: Begun) -> Known:
    """What the journal holds; of a run that was finished and is asked again, less what could not be decided then."""
    folder = begun.folder

    def read(shard: int, step: int) -> Facts | None:
        facts = None if folder is None else folder.read_part(shard, step)
        return facts if facts is None or not begun.retries or step <= CLEAN else decided(facts)

    return read


def bench_of(begun: Begun, in_flight: int) -> Bench:
    """All that attacking its shards needs."""
    request, job = begun.request, begun.plan.job
    return Bench(
        opened=begun.opened,
        attacks=begun.plan.attacks,
        threat=request.threat,
        target=request.target,
        seed=request.seed,
        quantize=request.quantize,
        draws=job.draws,
        keep_adversarial=begun.keep_adversarial,
        in_flight=in_flight,
        shard_size=begun.shard_size,
        carried=carried(request.carry),
    )


@contextmanager
def rebuilt(job: Mapping[str, Any], execution: Execution, *, trust: bool = False) -> Iterator[Bench]:
    """The bench of a stored job, made again from specs: what another process needs to attack one of its shards.

    Raises:
        UsageError: if the model, the data or the code behind them is another now, or the run carries a smaller eps.
    """
    if job["carried"]:
        raise UsageError("a run that carries a smaller eps cannot be made again from its job alone")
    dataset = datasets.resolve(job["data"])
    loaded = load(job["model"], dataset.name, job["norm"], outputs=job["outputs"], trust=trust, device=job["device"])
    samples, defenses = choose_samples(dataset, None, job["indices"]), defended.resolve(job["defense"])
    with ExitStack() as stack:
        opening = open_model(loaded, samples, defenses=defenses, tile=job["tile"], seed=job["seed"])
        opened = stack.enter_context(opening)
        request = Request(
            job["attack"], ThreatModel(job["norm"], job["eps"]), job["data"], target=job["target"], seed=job["seed"],
            quantize=job["quantize"], draws=job["draws"] or DEFAULT_DRAWS,
            certify=job.get("certify", ""),
        )  # fmt: skip
        begun = stack.enter_context(begin(opened, request, execution))
        now = begun.plan.job.to_json()
        if other := [key for key in now if now[key] != job.get(key) and key != "id"]:
            raise UsageError(f"this is not the run that was begun: {other[0]} is {str(now[other[0]])[:60]} here")
        yield bench_of(begun, samples_in_flight(execution.batch_size, opened.subject, samples.first()[0]))


def carried(record: RunRecord | None) -> dict[int, Carried]:
    """What a run at a smaller eps broke."""
    if record is None:
        return {}
    columns = (record.samples[name] for name in ("index", "status", "broken_by", "distance", "broken_at"))
    rows = zip(*columns, strict=True)
    return {int(i): Carried(str(by), float(d), float(at)) for i, status, by, d, at in rows if status == "BROKEN"}


def _nothing_left(known: RunRecord, carry: RunRecord | None) -> bool:
    """Whether a finished record leaves nothing to decide."""
    broken = set(known.samples["index"][known.samples["status"] == "BROKEN"].tolist())
    return not known.unknown and broken.issuperset(carried(carry))


def _cohort(planned: Plan) -> int:
    """A number of samples that holds whole cohorts of every attack that ranks them; 1 where none does."""
    return math.lcm(*(named.attack.cohort for named in planned.attacks if isinstance(named.attack, CohortAttack)))


def _path(execution: Execution, job: Job) -> Path | None:
    if execution.out is None:
        return None
    return execution.out(job) if callable(execution.out) else Path(execution.out)


def _left_out(target: str, n: int, left_out: int) -> list[dict[str, Any]]:
    if not left_out:
        return []
    text = f"{left_out} samples already of the target class {target} are left out; n = {n} are evaluated"
    return [{"kind": "left-out", "message": text}]
