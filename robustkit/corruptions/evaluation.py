"""The accuracy of a network under each corruption, in the same checked and tiled calls as an attack's judge makes."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from robustkit import datasets
from robustkit.api import Dataset, Defense
from robustkit.corruptions.images import SEVERITIES, check_severity, kind_named
from robustkit.datasets.choice import choose_samples
from robustkit.engine import plan
from robustkit.engine.identity import harness_sha256, source_hashes
from robustkit.engine.request import check_counts
from robustkit.engine.voting import ask
from robustkit.errors import UsageError
from robustkit.locks import at_work
from robustkit.models import defended
from robustkit.models.opening import Model, Opened, card_flags, check_model, load, open_model
from robustkit.models.oracle import Network
from robustkit.models.outputs import check_labels
from robustkit.models.turns import one_at_a_time
from robustkit.records.about import About, now
from robustkit.records.corruption import ALEXNET, RESULT, STANDARD, Cell, CorruptionRecord
from robustkit.records.corruption import load as load_record
from robustkit.records.folder import resume
from robustkit.records.schema import CORRUPTIONS
from robustkit.records.votes import lost
from robustkit.report import files
from robustkit.stats import Proportion

AT_ONCE = 64  # images in memory


@runtime_checkable
class CorruptionSet(Protocol):
    """The same images under several corruptions: an archive, or a dataset corrupted on the fly."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def clean(self) -> Dataset | None:
        """The images without corruption; None where they are not at hand."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The corruptions there are."""

    def at(self, kind: str, severity: int) -> Dataset:
        """The images under one of them."""


class CellDone(NamedTuple):
    """One kind at one severity is done (kind empty: the clean images); `done` of `total` cells."""

    kind: str
    severity: int
    accuracy: Proportion
    done: int
    total: int


@one_at_a_time()
def evaluate_corruptions(
    model: Model,
    data: str | Dataset | tuple[Any, Any],
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    n: int | None = None, indices: str | Sequence[int] | None = None, seed: int = 0,
    outputs: Literal["logits", "probs"] = "logits", draws: int = 1,
    baseline: str | Path | CorruptionRecord | None = None,
    trust: bool = False, device: str = "auto", tile: int | None = None,
    out: str | os.PathLike[str] | None = None, fresh: bool = False,
    on_event: Callable[[CellDone], None] | None = None, label: str = "",
) -> CorruptionRecord:  # fmt: skip
    """Measure a network's accuracy under corruptions.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: cifar10-c, cifar100-c or imagenet-c; or any dataset, which is then corrupted on the fly.
        kinds: of corruption; None is the standard ones of an archive, or all that can be made here.
        severities: from 1 to 5.
        defense: what stands before the model at inference, as for `robustkit.evaluate`.
        n: so many samples, chosen as in `robustkit.evaluate`.
        indices: these samples, instead of n.
        seed: of the random kinds made here, and of a randomised model.
        outputs: what the model returns; probabilities must be declared.
        draws: of a randomised model, how many passes vote on an image; a tie counts as wrong.
        baseline: what mCE is relative to: "alexnet" (published; the default of ImageNet-C at all severities), or a
            record, its file or folder, of the same images, kinds and severities. Without one mCE is not normalised.
        trust: unpickle checkpoints that are more than weights, which runs code from them.
        device: "auto" is the module's own; for a model named by a spec CUDA, MPS or XPU if there is one.
        tile: width of the batches the model sees; None chooses by image size.
        out: a folder that is continued, cell by cell, if it holds this very run; None writes nothing.
        fresh: forget what `out` holds.
        on_event: told of each cell that is done.
        label: what the run is called; it decides nothing.

    Raises:
        UsageError: for anything that cannot be run as given.
    """
    started = now()
    check_counts(tile=tile, draws=draws)
    check_model(model, data, "corruptions")
    defenses = defended.resolve(defense)
    base = datasets.resolve(data)
    corrupted = base if isinstance(base, CorruptionSet) else _made_here(base, seed)
    todo = _cells(corrupted, kinds, severities)
    known = baseline if baseline is None or isinstance(baseline, CorruptionRecord) else _baseline(baseline)
    name, reference = _reference(known, corrupted.name, [cell for cell in todo if cell[0]])
    loaded = load(model, _clean_name(corrupted), "corruptions", outputs=outputs, trust=trust, device=device)
    samples = choose_samples(_images(corrupted, *todo[0]), n, indices)
    if not isinstance(base, CorruptionSet):
        _check_packages(corrupted, todo, samples.indices)
    if isinstance(known, CorruptionRecord):
        known.check_comparable(samples.indices, [])
    cells: list[Cell] = []
    opening = open_model(loaded, samples, defenses=defenses, tile=tile, seed=seed)
    with opening as opened, at_work(out):
        job = _job(opened, corrupted, data if isinstance(data, str) else base.name, seed, draws, todo)

        def measured(number: int) -> dict[str, Any]:
            kind, severity = todo[number]
            networks = _draws(opened.subject.reference, job["draws"], (seed, "corruptions", kind, severity))
            return _cell(opened, networks, _images(corrupted, kind, severity), kind, severity)._asdict()

        for facts in resume(out, CORRUPTIONS, RESULT, job, len(todo), measured, fresh=fresh):
            cells.append(Cell(**{**facts, "wrong": tuple(facts["wrong"])}))
            if isinstance(known, CorruptionRecord):
                known.check_comparable(samples.indices, cells[-1:])
            if on_event is not None:
                on_event(_done(todo, cells, len(samples)))
        clean = None if todo[0][0] else cells.pop(0)
        notes = [*samples.flags(opened.subject.facts.classes), *card_flags(opened.card)]
        record = CorruptionRecord(
            job, plan.environment(opened.device), samples.indices, tuple(cells), clean, name, reference,
            tuple(str(flag["message"]) for flag in notes), About(label, "", started, now()),
        )  # fmt: skip
        if out is not None:
            record.save(Path(out) / RESULT, files.of_corruptions(record))
    return record


def _done(todo: Sequence[tuple[str, int]], cells: Sequence[Cell], n: int) -> CellDone:
    share = Proportion(n - len(cells[-1].wrong), n)
    return CellDone(*todo[len(cells) - 1], share, len(cells), len(todo))


def _clean_name(corrupted: CorruptionSet) -> str:
    return corrupted.clean.name if corrupted.clean is not None else corrupted.name.removesuffix("-c")


def _check_packages(corrupted: CorruptionSet, cells: Sequence[tuple[str, int]], indices: Sequence[int]) -> None:
    """Corrupt an image by each kind: a package that one lacks is told now, not after the kinds before it."""
    for kind, severity in dict(cell for cell in cells if cell[0]).items():
        _images(corrupted, kind, severity).batch(indices[:1])


def _job(
    opened: Opened, corrupted: CorruptionSet, data: str, seed: int, draws: int, cells: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """All that decides the numbers, as JSON data."""
    room = {"corruptions": harness_sha256("robustkit.corruptions.*")}
    return {
        **opened.identity,
        "data": data,
        "seed": getattr(corrupted, "seed", seed),
        "model_seed": seed,
        "draws": draws if opened.subject.facts.randomised else 0,
        "made_here": corrupted.clean is not None,
        "cells": [list(cell) for cell in cells],
        "sources": {**source_hashes((), opened.defenses), **room},
        "versions": plan.versions(),
    }


def _draws(network: Network, draws: int, key: tuple[Any, ...]) -> list[Network]:
    """Of a randomised network one a draw, each with noise of its own; the network itself where there are no draws."""
    return [network.seeded(*key, *([draw] if draw else [])) for draw in range(draws)] or [network]


def _cell(opened: Opened, networks: Sequence[Network], images: Dataset, kind: str, severity: int) -> Cell:
    """The samples that most of the networks get wrong."""
    chosen = opened.samples.indices
    wrong: list[int] = []
    seen = hashlib.sha256()
    for start in range(0, len(chosen), AT_ONCE):
        some = chosen[start : start + AT_ONCE]
        x, y = datasets.check_images(*images.batch(some), images.name, images.classes or None)
        seen.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes())
        check_labels(y, opened.subject.facts.classes)
        answers = ask(networks.__getitem__, len(networks), x.to(opened.device), y.to(opened.device), None)[0]
        if not answers.sound.all():
            raise UsageError(f"the model's outputs are not finite under {kind or 'nothing'} at severity {severity}")
        missed = lost(answers.wrong.sum(0), len(networks)).tolist()
        wrong += [index for index, miss in zip(some, missed, strict=True) if miss]
    return Cell(kind, severity, tuple(wrong), seen.hexdigest())


def _images(corrupted: CorruptionSet, kind: str, severity: int) -> Dataset:
    """The images of a cell; without a kind the clean ones."""
    return corrupted.at(kind, severity) if kind or corrupted.clean is None else corrupted.clean


def _made_here(base: Dataset, seed: int) -> CorruptionSet:
    from robustkit.datasets.corrupted import Corrupted  # it needs this package's images

    return Corrupted(base, seed=seed)


def _cells(
    corrupted: CorruptionSet, kinds: Sequence[str] | None, severities: Sequence[int]
) -> list[tuple[str, int]]:  # fmt: skip
    """The kind and severity of each cell, the clean images first where there are any: no kind, severity 0."""
    for severity in severities:
        check_severity(severity)
    if kinds is not None:
        wanted = tuple(dict.fromkeys(kind_named(kind, corrupted.kinds) for kind in kinds))
    elif corrupted.clean is not None:
        wanted = corrupted.kinds
    else:  # of an archive those that mCE is defined on, not its extras
        wanted = tuple(kind for kind in STANDARD if kind in corrupted.kinds) or corrupted.kinds
    if not wanted:
        raise UsageError(f"no corruption was named; {corrupted.name} has: {', '.join(corrupted.kinds)}")
    if not severities:
        raise UsageError("no severity was named; there are 1, 2, 3, 4 and 5")
    clean = [("", 0)] if corrupted.clean is not None else []
    return [*clean, *((kind, severity) for kind in wanted for severity in sorted(set(severities)))]


def _baseline(named: str | Path) -> str | CorruptionRecord:
    """AlexNet's errors by their name, or the record in a file or folder."""
    return "alexnet" if named == "alexnet" else load_record(Path(named))


def _reference(
    baseline: str | CorruptionRecord | None, data: str, cells: Sequence[tuple[str, int]]
) -> tuple[str, dict[str, float] | None]:
    """The baseline's name and its error for each kind; empty and None without one."""
    kinds, severities = (tuple(dict.fromkeys(column)) for column in zip(*cells, strict=True))
    if not isinstance(baseline, CorruptionRecord):  # AlexNet's, by name or by default
        fits = data == "imagenet-c" and severities == SEVERITIES and all(kind in ALEXNET for kind in kinds)
        if baseline and not fits:
            raise UsageError(
                "AlexNet's errors are published for imagenet-c, its 15 standard kinds and all five severities; "
                "elsewhere give the record of a network of yours: --baseline FILE"
            )
        return ("AlexNet", {kind: ALEXNET[kind] for kind in kinds}) if fits else ("", None)
    has = {(cell.kind, cell.severity) for cell in baseline.cells}
    if differ := [*sorted(set(cells) - has), *sorted(has - set(cells))]:
        raise UsageError(
            f"the baseline was not measured on the same kinds and severities ({differ[0][0]} at {differ[0][1]} "
            "differs); measure it with the same --kind and --severity"
        )
    errors = {kind: baseline.errors()[kind] for kind in kinds}
    if perfect := [kind for kind, error in errors.items() if error == 0]:
        raise UsageError(f"the baseline makes no error under {perfect[0]}, so that nothing is relative to it")
    return baseline.model, errors
