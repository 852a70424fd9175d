"""Transfer runs: adversarials made once on surrogates, judged on every victim. `transfer` is the way in."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from robustkit import datasets, spec
from robustkit.api import Attack, Dataset, ThreatModel
from robustkit.datasets.choice import choose_samples
from robustkit.engine.identity import source_hashes
from robustkit.engine.memory import samples_in_flight
from robustkit.engine.plan import Named, environment, parse_target
from robustkit.errors import UsageError
from robustkit.models.examination import check_labels, lent
from robustkit.records.transfer import TransferRecord
from robustkit.records.transfer_folder import TransferFolder
from robustkit.report import files
from robustkit.transfers import assemble, events, plan
from robustkit.transfers.run import Run

SHARD = 128


def transfer(
    surrogates: plan.Models,
    victims: plan.Models,
    attacks: str | Attack | Sequence[str | Attack] | Mapping[str, str | Attack],
    data: str | Dataset | tuple[Any, Any],
    *,
    sets: Mapping[str, Sequence[str]] | None = None,
    norm: Literal["linf", "l2", "l1", "l0"] = "linf",
    eps: float | str | None = None,
    seed: int = 0,
    target: int | str | None = None,
    n: int | None = None,
    indices: str | Sequence[int] | None = None,
    trust: bool = False,
    device: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    shard_size: int = SHARD,
    tile: int | None = None,
    out: str | os.PathLike[str] | Callable[[Mapping[str, Any]], Path] | None = None,
    fresh: bool = False,
    on_event: Callable[[events.Event], None] | None = None,
) -> TransferRecord:
    """Measure how adversarials that are made on surrogates transfer to victims.

    Each attack makes the adversarials of all samples once for each surrogate set, without asking a victim. They are
    checked by the judge's rule, then shown to every victim, and to the surrogates themselves.

    Args:
        surrogates: specs, nn.Modules or callables from [0,1] images to logits; one, several, or a mapping from names.
        victims: as `surrogates`; any model, also one without gradients or a randomised one.
        attacks: specs (`+` makes a list) or Attacks that spend the whole eps, white-box and transfer attacks alike;
            one, several, or a mapping from labels.
        data: a spec, a Dataset, or a pair (x, y) of tensors or arrays, x (n, channels, height, width) in [0,1].
        sets: names of surrogate sets, each with the names of its surrogates; None is one set of all.
        norm: of the threat model.
        eps: its radius in [0,1] units, 8/255 or "8/255"; None as for `evaluate`.
        seed: of all random numbers.
        target: None, a class, "least-likely" (of the surrogates) or "random"; success is then the target alone.
        n: the first n samples.
        indices: these samples, instead of n.
        trust: unpickle checkpoints that are more than weights, and call what a card names: both run code from them.
        device: "auto" is that of the modules given, or CUDA if there is one and all models are specs.
        batch_size: the most samples in flight; "auto" finds what fits. It changes no result.
        shard_size: samples of one journal file, rounded up to whole tiles. It changes no result.
        tile: width of the batches the models see; None chooses by image size.
        out: a folder that is continued if it is of these images and this threat model, or a function from what
            identifies them to a folder; what it holds of adversarials and answers is not computed again.
        fresh: forget what `out` holds.
        on_event: told of progress, see `robustkit.transfers.events`.

    Raises:
        UsageError: for anything that cannot be run as given, before any adversarial is made.
    """
    if eps is None:
        eps = spec.DEFAULT_EPS.get(norm, "")
    threat = ThreatModel(norm, spec.number(eps) if isinstance(eps, str) and eps else float(eps or 0))
    for what, value in (("batch_size", batch_size), ("shard_size", shard_size), ("tile", tile)):
        if value not in ("auto", None) and not (isinstance(value, int) and value >= 1):
            raise UsageError(f"{what} must be a whole number of at least 1, not {value!r}")
    sources, named_victims = plan.name_models(surrogates, "surrogate"), plan.name_models(victims, "victim")
    models = plan.check_same(sources, named_victims)
    groups = plan.parse_sets(sets, sources)
    named = plan.parse_attacks(attacks, threat)
    dataset = datasets.resolve(data)
    target_text = parse_target(target, dataset.classes or None)
    chosen = choose_samples(dataset, n, indices, target_text)
    modules, shapes, where = plan.load(models, dataset, norm, device, trust=trust)
    tell = on_event or (lambda event: None)
    with ExitStack() as stack:
        for module in {id(module): module for module in modules.values()}.values():
            stack.enter_context(lent(module))
        first = chosen.batch(0, min(len(chosen.indices), 64))
        settings = {
            "classes": dataset.classes or None, "outputs": "logits", "tile": tile, "seed": seed, "device": where,
        }  # fmt: skip
        known = plan.examine_all(models, modules, shapes, first, **settings)
        one = next(iter(known.values())).subject
        check_labels(chosen.labels, one.facts.classes)
        parse_target(target, one.facts.classes)
        ready = plan.surrogate_sets(groups, known, named, first, **settings)
        width = one.reference.tile
        common = plan.base(chosen, threat, target_text, seed, width, where.type)
        called = data if isinstance(data, str) else dataset.name
        job = plan.job(common, called, ready, list(named_victims), named, known)
        folder, shard = None, -(-shard_size // width) * width
        path = out({**job, "base": common["id"]}) if callable(out) else Path(out) if out is not None else None
        if path is not None:
            folder = TransferFolder(path)
            shard = folder.open(common, shard, fresh=fresh)
        title = f"transfer from {' | '.join(groups)} · {called} · {norm} {eps}"
        tell(events.Started(title, len(chosen.indices), folder is not None and folder.has_parts()))
        run = Run(
            sets=ready,
            models=known,
            samples=chosen,
            attacks=named,
            threat=threat,
            target=target_text,
            seed=seed,
            in_flight={group.name: _in_flight(batch_size, group, first[0]) for group in ready},
            shard_size=shard,
            identity={"base": common["id"], "code": job["code"]},
            sources={each.name: source_hashes([Named(each.name, each.attack)]) for each in named},
            folder=folder,
            tell=tell,
        )
        if folder is not None:
            folder.begin()
        run.execute()
        record = TransferRecord(
            job=job,
            environment=environment(where),
            samples=assemble.samples(run),
            attacks=assemble.attacks(run),
            transfer=assemble.transfer(run),
            seconds=assemble.seconds(run),
            flags=assemble.flags(run, len(chosen.indices), chosen.left_out),
            errors=assemble.errors(run),
            folder=str(path) if path else None,
        )
    if folder is not None:
        folder.save(record, files.of_transfer(record))
    tell(events.Finished(str(path) if path else None))
    return record


def _in_flight(batch_size: int | Literal["auto"], group: plan.SurrogateSet, x: torch.Tensor) -> int:
    """Samples that an attack works on at once; a randomised surrogate one tile, for its noise belongs to a tile."""
    subject = group.subject
    return subject.reference.tile if subject.facts.randomised else samples_in_flight(batch_size, subject, x)
