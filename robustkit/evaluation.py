"""The way in: `evaluate` measures a model's robust accuracy."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from robustkit import datasets, events, spec
from robustkit.api import Attack, Dataset, Defense, Norm, Suite
from robustkit.audit.run import Question, audit_opened, check_norm
from robustkit.datasets.choice import choose_samples
from robustkit.doctor import KINDS, LEFT_OUT, enough, examine_input
from robustkit.engine import evidence
from robustkit.engine.measure import Begun, begin, bench_of, complete
from robustkit.engine.plan import Named, check_attack, parse_target
from robustkit.engine.proofs import parse as parse_certify
from robustkit.engine.request import Execution, Request, check_counts, threat_of
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.models.cost import cost_of
from robustkit.models.opening import Model, Opened, check_model, load, open_model
from robustkit.models.turns import one_at_a_time
from robustkit.records.run import RunRecord
from robustkit.report import files


@one_at_a_time()
def evaluate(
    model: Model,
    data: str | Dataset | tuple[Any, Any],
    attack: str | Attack | Suite | Sequence[Any] = "autoattack",
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    norm: Norm = "linf", eps: float | str | None = None, seed: int = 0,
    target: int | str | None = None, n: int | None = None, indices: str | Sequence[int] | None = None,
    outputs: Literal["logits", "probs"] = "logits", quantize: Literal["8bit"] | None = None,
    save_adversarial: bool = False, trust: bool = False, device: str = "auto",
    batch_size: int | Literal["auto"] = "auto", shard_size: int | None = None, tile: int | None = None,
    out: str | os.PathLike[str] | Callable[[spec.Job], Path] | None = None, fresh: bool = False,
    on_event: Callable[[events.Event], None] | None = None, carry: RunRecord | None = None,
    draws: int = spec.DEFAULT_DRAWS, doctor: bool = True, audit: bool = False, certify: str = "", label: str = "",
) -> RunRecord:  # fmt: skip
    """Measure the robust accuracy of a model, judged on every sample.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: a spec, a Dataset, or a pair (x, y) of tensors or arrays, x (n, channels, height, width) in [0,1]; also a
            batch of a DataLoader, a map-style dataset, a `datasets.Dataset`.
        attack: a spec (`+` makes a list), an Attack, a Suite, or a list of these; each runs on what still stands.
        defense: what stands before the model at inference: a spec (`+` makes a list), a Defense, or a list of these.
        norm: of the threat model.
        eps: its radius in [0,1] units, 8/255 or "8/255", in l0 a number of pixels; None is the norm's `DEFAULT_EPS`.
        seed: of all random numbers, at least 0; which samples n are does not depend on it.
        target: None, a class, "least-likely" or "random": then only reaching it breaks a sample.
        n: so many samples: the first n, or where the data lie class by class a class-balanced draw of n.
        indices: these samples, instead of n.
        outputs: what the model returns; probabilities must be declared.
        quantize: also judge each adversarial rounded to 8 bits.
        save_adversarial: keep the adversarial images.
        trust: unpickle checkpoints that are more than weights, and call what a card names: both run code from them.
        device: "auto" is the module's own; for a model named by a spec CUDA, MPS or XPU if there is one.
        batch_size: the most samples in flight; "auto" finds what fits. It changes no result.
        shard_size: samples of one journal file; None is 512, fewer of large images. It changes no result.
        tile: width of the batches the model sees, part of the run's identity; None chooses by image size.
        out: a folder that is continued if it holds this very run; None writes nothing.
        fresh: forget what `out` holds.
        on_event: told of progress, see `robustkit.events`.
        carry: the same evaluation at a smaller eps: what it broke is not attacked again and counts as broken.
        draws: of a randomised model, how many fresh draws vote on a sample; see `robustkit.records.votes`.
        doctor: let `robustkit.doctor` look first whether the model gets the input it expects; a flag if not.
        label: what the run is called in its record and reports; it decides nothing.
        audit: let `robustkit.audit` find out whether the robust accuracy is real: `record.verdict`, `record.audit`.
        certify: prove samples robust by bounds up to "ibp", "crown" or "alpha-crown" (`:order=first|last` says when,
            instead of where it saves most): `record.certified_accuracy`. A model that has no bounds is flagged.

    Raises:
        UsageError: for anything that cannot be run as given, before anything is written.
        NotEstablishedError: if a sample is both proved and broken: one of the two is a bug.
    """
    threat = threat_of(norm, eps)
    _check(quantize, tile=tile, draws=draws)
    tell = on_event or (lambda event: None)
    execution = Execution(batch_size, shard_size, out, fresh, save_adversarial, label, tell)
    check_model(model, data, norm)
    check_attack(attack)
    defenses = defended.resolve(defense)
    dataset = datasets.resolve(data)
    wanted = parse_target(target, dataset.classes or None)
    parse_certify(certify, threat)
    if audit:
        check_audit(norm, wanted)
    request = Request(
        attack, threat, data if isinstance(data, str) else dataset.name, eps if isinstance(eps, str) else "", wanted,
        seed, quantize or "", draws, carry, certify,
    )  # fmt: skip
    loaded = load(model, dataset.name, norm, outputs=outputs, trust=trust, device=device)
    samples = choose_samples(dataset, n, indices, wanted)
    opening = open_model(loaded, samples, defenses=defenses, tile=tile, seed=request.seed)
    with opening as opened, begin(opened, request, execution) as begun:
        record = _labelled(begun.finished or _complete(begun, opened, doctor=doctor), label)
        if audit and record.audit is None:
            record = _audited(opened, begun.plan.attacks, record, execution.tell)
        if begun.folder is not None and record is not begun.finished:
            begun.folder.save(record, files.of_run(record))
    execution.tell(events.Finished(record.folder))
    return record


def _check(quantize: str | None, **counts: int | None) -> None:
    if quantize not in (None, "8bit"):
        raise UsageError(f"quantize={quantize!r}; there is: 8bit")
    check_counts(**counts)


def _labelled(record: RunRecord, label: str) -> RunRecord:
    """A record under another name, which one that was finished before may get."""
    if not label or record.about.label == label:
        return record
    return replace(record, about=replace(record.about, label=label))


def check_audit(norm: str, target: str) -> None:
    """Refuse what an audit cannot look at, before anything is computed.

    Raises:
        UsageError: in l0, or for a targeted evaluation.
    """
    check_norm(norm)
    if target:
        raise UsageError("the audit is of untargeted evaluations; leave out target, or audit")


def _complete(begun: Begun, opened: Opened, *, doctor: bool) -> RunRecord:
    """The record of a measurement, with what the doctor found and what must be said of its attacks."""
    record = complete(begun, _doctor_flags(opened, begun.request.carry, begun.execution.tell) if doctor else ())
    doubts = [*evidence.flags(bench_of(begun, 1), record), *_dear(opened)]
    for doubt in doubts:
        begun.execution.tell(events.Noted(doubt["message"]))
    return replace(record, flags=[*record.flags, *doubts])


def _dear(opened: Opened) -> list[Mapping[str, Any]]:
    """What must be said of a model whose every answer takes several passes of the network inside it."""
    subject, first = opened.subject, opened.samples.first()[0].to(opened.device)
    network = subject.reference.seeded("cost") if subject.facts.randomised else subject.reference
    found = cost_of(network, first, subject.facts.classes)
    return [{"kind": "cost", "message": found.message}] if found and found.message else []


def _audited(
    opened: Opened, attacks: Sequence[Named], record: RunRecord, tell: Callable[[events.Event], None]
) -> RunRecord:
    """The record with the audit of its robust accuracy, on its first samples."""
    found = audit_opened(opened, Question.of(record.job), record=record, attacks=attacks, tell=tell)
    return replace(record, audit=found.to_json())


def _doctor_flags(
    opened: Opened, carry: RunRecord | None, tell: Callable[[events.Event], None]
) -> Sequence[Mapping[str, Any]]:
    """What the doctor finds; of a sweep, what it found at the first eps."""
    if carry is not None:
        return [flag for flag in carry.flags if flag["kind"] in KINDS]
    subject, samples = opened.subject, opened.samples
    if getattr(samples.dataset, "severity", 0):
        return []  # on images corrupted on purpose another contrast or range may truly be better
    network = subject.reference.seeded("doctor") if subject.facts.randomised else subject.reference
    some = samples.at(enough(len(samples), subject.probes[0]))
    as_it_is = "randomised" if subject.facts.randomised else "behind a defense" if opened.defended else ""
    if as_it_is:
        tell(events.Noted(LEFT_OUT.format(as_it_is)))
    return examine_input(network, some.batch, len(some), opened.card, as_it_is=as_it_is).flags()
