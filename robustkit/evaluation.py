"""The way in: `evaluate` measures a model's robust accuracy."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit import datasets, events, spec
from robustkit.api import Attack, Dataset, Defense, ModelCard, Suite, ThreatModel
from robustkit.doctor import KINDS, enough, examine_input
from robustkit.engine import assemble, plan
from robustkit.engine.costs import predict
from robustkit.engine.memory import samples_in_flight
from robustkit.engine.run import Carried, Run
from robustkit.errors import UsageError
from robustkit.models import defended, sources
from robustkit.models.examination import Subject, as_module, check_labels, examine, lent, restore, snapshot
from robustkit.models.opening import choose_device, model_name
from robustkit.models.sources.evaluating import evaluating
from robustkit.records.folder import RunFolder, load_run
from robustkit.records.run import INSUFFICIENT, RunRecord
from robustkit.report import files

SHARD = 512
SHARD_BYTES = 80 << 20  # of a shard's images: memory depends neither on how many nor on how large they are


def evaluate(
    model: str | nn.Module | Callable[[Tensor], Tensor],
    data: str | Dataset | tuple[Any, Any],
    attack: str | Attack | Suite | Sequence[Any] = "autoattack",
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    norm: Literal["linf", "l2", "l1", "l0"] = "linf",
    eps: float | str | None = None,
    seed: int = 0,
    target: int | str | None = None,
    n: int | None = None,
    indices: str | Sequence[int] | None = None,
    outputs: Literal["logits", "probs"] = "logits",
    quantize: Literal["8bit"] | None = None,
    save_adversarial: bool = False,
    trust: bool = False,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    shard_size: int | None = None,
    tile: int | None = None,
    out: str | os.PathLike[str] | Callable[[spec.Job], Path] | None = None,
    fresh: bool = False,
    on_event: Callable[[events.Event], None] | None = None,
    carry: RunRecord | None = None,
    draws: int = spec.DEFAULT_DRAWS,
    doctor: bool = True,
    audit: bool = False,
) -> RunRecord:
    """Measure the robust accuracy of a model, judged on every sample.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: a spec, a Dataset, or a pair (x, y) of tensors or arrays, x (n, channels, height, width) in [0,1].
        attack: a spec (`+` makes a list), an Attack, a Suite, or a list of these; each runs on what still stands.
        defense: what stands before the model at inference: a spec (`+` makes a list), a Defense, or a list of these.
        norm: of the threat model.
        eps: its radius in [0,1] units, 8/255 or "8/255"; for l0 a number of pixels. None is 8/255 in linf, 0.5 in l2,
            12 in l1, 10 in l0.
        seed: of all random numbers.
        target: None, a class, "least-likely" or "random": then only reaching it breaks a sample.
        n: the first n samples.
        indices: these samples, instead of n.
        outputs: what the model returns; probabilities must be declared.
        quantize: also judge each adversarial rounded to 8 bits.
        save_adversarial: keep the adversarial images.
        trust: unpickle checkpoints that are more than weights, and call what a card names: both run code from them.
        device: "auto" is the module's own, or CUDA if there is one for a model named by a spec.
        batch_size: the most samples in flight; "auto" finds what fits. It changes no result.
        shard_size: samples of one journal file; None is 512, fewer of large images. It changes no result.
        tile: width of the batches the model sees, part of the run's identity; None chooses by image size.
        out: a folder that is continued if it holds this very run; None writes nothing.
        fresh: forget what `out` holds.
        on_event: told of progress, see `robustkit.events`.
        carry: the same evaluation at a smaller eps: what it broke is not attacked again and counts as broken.
        draws: of a randomised model, how many fresh draws vote on a sample; see `robustkit.records.votes`.
        doctor: let `robustkit.doctor` look first whether the model gets the input it expects; a flag if not.
        audit: let `robustkit.audit` find out whether the robust accuracy is real: `record.verdict`, `record.audit`.

    Raises:
        UsageError: for anything that cannot be run as given, before anything is written.
    """
    if eps is None:
        eps = spec.DEFAULT_EPS.get(norm, "")
    threat = ThreatModel(norm, spec.number(eps) if isinstance(eps, str) and eps else float(eps or 0))
    if quantize not in (None, "8bit"):
        raise UsageError(f"quantize={quantize!r}; there is: 8bit")
    if outputs not in ("logits", "probs"):
        raise UsageError(f"outputs={outputs!r}; there are: logits, probs")
    for what, value in (
        ("batch_size", batch_size),
        ("shard_size", shard_size),
        ("tile", tile),
        ("draws", draws),
    ):
        if value not in ("auto", None) and not (isinstance(value, int) and value >= 1):
            raise UsageError(f"{what} must be a whole number of at least 1, not {value!r}")
    dataset = datasets.resolve(data)
    classes = dataset.classes or None
    target_text = plan.parse_target(target, classes)
    plan.check_attack(attack)
    if audit:
        _check_audit(norm, target_text)
    defenses = defended.resolve(defense)
    with evaluating(dataset.name, norm):
        module, card = sources.load_model(model, trust=trust) if isinstance(model, str) else (as_module(model), None)
    name = model if isinstance(model, str) else model_name(module)
    chosen = plan.choose_samples(dataset, n, indices, int(target_text) if target_text.isdigit() else None)
    where = choose_device(device, module, named=isinstance(model, str))
    if isinstance(model, str):
        module.to(where)
    with ExitStack() as stack:
        if defenses:  # a defense puts what it wraps into eval mode: the caller's module must come back as it was
            stack.enter_context(lent(module))
            module = defended.protect(module, defenses)
        stack.enter_context(lent(module))
        first = chosen.batch(0, min(len(chosen.indices), 64))
        shape = card.input_shape if card else ()
        subject = examine(
            module, *first, classes=classes, outputs=outputs, tile=tile, seed=seed, device=where, input_shape=shape
        )
        check_labels(chosen.labels, subject.facts.classes)
        attacks = plan.resolve_attacks(attack, threat, subject.facts)
        alone = [{"kind": INSUFFICIENT, "message": why}] if (why := plan.never_alone(attack)) else []
        plan.parse_target(target, subject.facts.classes)
        job = spec.Job(
            model=name,
            model_sha256=subject.weights_sha256,
            probe_sha256=subject.probe_sha256,
            data=data if isinstance(data, str) else dataset.name,
            data_sha256=chosen.sha256,
            indices=chosen.indices,
            attack=plan.attack_text(attack),
            attacks=tuple(named.name for named in attacks),
            attack_sources=plan.source_hashes(attacks, defenses),
            norm=norm,
            eps=threat.eps,
            target=target_text,
            seed=seed,
            outputs=outputs,
            quantize=quantize or "",
            carried=str(carry.job["id"]) if carry else "",
            device=subject.reference.device.type,
            threads=torch.get_num_threads(),
            tile=subject.reference.tile,
            precision=str(subject.reference.dtype).removeprefix("torch."),
            versions=plan.versions(),
            draws=draws if subject.facts.randomised else 0,
            defense=defended.text(defenses),
            noisy_sha256=subject.noisy_sha256,
            gradient_signs=subject.gradient_signs,
        )
        _check_carry(carry, job)
        tell = on_event or (lambda event: None)
        path = out(job) if callable(out) else Path(out) if out is not None else None
        folder, shard = None, shard_size or _shard_size(first[0][0])
        if path is not None:
            folder = RunFolder(path)
            wanted = {"shard_size": shard, "adversarial": save_adversarial}
            held = folder.open(job.to_json(), wanted, fresh=fresh)
            if save_adversarial and not held["adversarial"]:
                raise UsageError(f"the run in {path} was begun without its adversarials; add --fresh to run it again")
            shard, save_adversarial = held["shard_size"], held["adversarial"]
        behind = f" behind {job.defense}" if job.defense else ""
        title = f"{name}{behind} · {dataset.name} · {norm} {_eps_text(eps)} · {plan.attack_text(attack)}"
        resumed = folder is not None and folder.has_parts()
        tell(events.Started(title, len(chosen.indices), job.attacks, resumed))
        if folder is not None and (known := _finished(folder, carry)) is not None:
            if audit and known.audit is None:
                known = _audited(module, dataset, attacks, known, threat, subject, shape, tell)
                folder.save(known, files.of_run(known))
            tell(events.Finished(str(path)))
            return known
        weights = snapshot(module)
        found = _doctor_flags(subject, chosen, card, carry) if doctor else []
        predicted = predict(subject, attacks, first[0], len(chosen.indices))
        restore(module, weights)
        tell(predicted)
        for flag in found:
            tell(events.Noted(flag["message"]))
        run = Run(
            subject=subject,
            search=subject.reference,
            samples=chosen,
            attacks=attacks,
            threat=threat,
            target=target_text,
            seed=seed,
            quantize=quantize or "",
            keep_adversarial=save_adversarial,
            in_flight=samples_in_flight(batch_size, subject, first[0]),
            shard_size=shard,
            folder=folder,
            tell=tell,
            weights=weights,
            carried=_carried(carry),
            draws=job.draws,
        )
        if folder is not None:
            folder.begin()
        try:
            run.execute()
        except UsageError:
            if folder is not None and not resumed:
                folder.discard()
            raise
        samples, attack_rows, seconds = assemble.columns(run)
        record = RunRecord(
            job=job.to_json(),
            environment=plan.environment(subject.reference.device),
            samples=samples,
            attacks=attack_rows,
            seconds=seconds,
            flags=[*subject.flags, *_left_out(target_text, len(chosen.indices), chosen.left_out), *alone, *found],
            errors=run.errors,
            predicted=asdict(predicted),
            goals={named.name: named.attack.goal for named in attacks},
            adversarial=assemble.adversarial(run),
            folder=str(path) if path else None,
        )
        if audit:
            record = _audited(module, dataset, attacks, record, threat, subject, shape, tell)
    if folder is not None:
        folder.save(record, files.of_run(record))
    tell(events.Finished(str(path) if path else None))
    return record


def _check_audit(norm: str, target: str) -> None:
    """Refuse what an audit cannot look at, before anything is computed.

    Raises:
        UsageError: in l0, or for a targeted evaluation.
    """
    from robustkit.audit.run import check_norm

    check_norm(norm)
    if target:
        raise UsageError("the audit is of untargeted evaluations; leave out target, or audit")


def _audited(
    module: nn.Module, dataset: Dataset, attacks: Sequence[plan.Named], record: RunRecord, threat: ThreatModel,
    subject: Subject, shape: Sequence[int], tell: Callable[[events.Event], None],
) -> RunRecord:  # fmt: skip
    """The record with the audit of its robust accuracy, on its first samples."""
    from robustkit.audit.chain import Settings
    from robustkit.audit.run import Question, audited

    job, network = record.job, subject.reference
    question = Question(threat, job["seed"], job["outputs"], network.tile, network.device)
    some = job["indices"][: Settings().n]
    found = audited(module, dataset, some, question, record=record, attacks=attacks, shape=shape, tell=tell)
    return replace(record, audit=found.to_json())


_CARRIED_AS_IS = (
    "norm", "defense", "model_sha256", "probe_sha256", "data_sha256", "indices", "attacks", "target", "seed", "outputs",
    "draws", "noisy_sha256",
)  # fmt: skip


def _check_carry(carry: RunRecord | None, job: spec.Job) -> None:
    """Refuse to carry over what another evaluation broke.

    Raises:
        UsageError: unless it is this evaluation at a smaller eps.
    """
    if carry is None:
        return
    wanted = job.to_json()
    if other := [key for key in _CARRIED_AS_IS if (carry.job.get(key) or "") != (wanted[key] or "")]:
        raise UsageError(f"only this evaluation at a smaller eps can be carried over; {other[0]} differs")
    if carry.job["eps"] >= job.eps:
        raise UsageError(f"only a run at an eps below {job.eps:g} can be carried over, not {carry.job['eps']:g}")
    if job.quantize:
        raise UsageError("a sweep over eps does not combine with quantize; run the eps one by one")


def _carried(carry: RunRecord | None) -> dict[int, Carried]:
    if carry is None:
        return {}
    columns = (carry.samples[name] for name in ("index", "status", "broken_by", "distance", "broken_at"))
    rows = zip(*columns, strict=True)
    return {int(i): Carried(str(by), float(d), float(at)) for i, status, by, d, at in rows if status == "BROKEN"}


def _doctor_flags(
    subject: Subject, chosen: plan.Samples, card: ModelCard | None, carry: RunRecord | None
) -> list[Mapping[str, Any]]:
    """What the doctor finds; of a sweep, what it found at the first eps."""
    if carry is not None:
        return [flag for flag in carry.flags if flag["kind"] in KINDS]
    if getattr(chosen.dataset, "severity", 0):
        return []  # on images corrupted on purpose another contrast or range may truly be better
    network = subject.reference.seeded("doctor") if subject.facts.randomised else subject.reference
    rows = enough(len(chosen.indices), subject.probes[0])
    some = plan.Samples(
        chosen.dataset,
        tuple(chosen.indices[i] for i in rows),
        chosen.labels[rows],
        tuple(chosen.hashes[i] for i in rows),
    )
    return examine_input(network, some.batch, len(rows), card).flags()


def _left_out(target: str, n: int, left_out: int) -> list[dict[str, Any]]:
    if not left_out:
        return []
    text = f"{left_out} samples already of the target class {target} are left out; n = {n} are evaluated"
    return [{"kind": "left-out", "message": text}]


def _eps_text(eps: float | str) -> str:
    return eps if isinstance(eps, str) else f"{eps:.6g}"


def _shard_size(image: Tensor) -> int:
    fitting = SHARD_BYTES // (image.numel() * image.element_size())
    return min(SHARD, max(16, fitting // 16 * 16))


def _finished(folder: RunFolder, carry: RunRecord | None) -> RunRecord | None:
    """The record of a finished run in this folder, if nothing in it is left to decide."""
    if not (folder.path / "run.json").exists():
        return None
    record = load_run(folder.path)
    broken = set(record.samples["index"][record.samples["status"] == "BROKEN"].tolist())
    return None if record.unknown or not broken.issuperset(_carried(carry)) else record
