"""The accuracy of a network under each corruption, in the same checked and tiled calls as an attack's judge makes."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustkit import datasets
from robustkit.api import Dataset
from robustkit.corruptions.images import SEVERITIES, check_severity, kind_named
from robustkit.datasets.choice import choose_samples
from robustkit.engine import plan
from robustkit.errors import UsageError
from robustkit.models import sources
from robustkit.models.examination import as_module, check_labels, examine, lent
from robustkit.models.opening import choose_device, model_name
from robustkit.models.oracle import Network
from robustkit.models.sources.evaluating import evaluating
from robustkit.records.corruption import ALEXNET, STANDARD, Cell, CorruptionRecord, load
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


def evaluate_corruptions(
    model: str | nn.Module | Callable[[Tensor], Tensor],
    data: str | Dataset | tuple[Any, Any],
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    n: int | None = None,
    indices: str | Sequence[int] | None = None,
    seed: int = 0,
    outputs: str = "logits",
    baseline: str | Path | CorruptionRecord | None = None,
    trust: bool = False,
    device: str = "auto",
    tile: int | None = None,
    on_event: Callable[[CellDone], None] | None = None,
) -> CorruptionRecord:
    """Measure a network's accuracy under corruptions.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: cifar10-c, cifar100-c or imagenet-c; or any dataset, which is then corrupted on the fly.
        kinds: of corruption; None is the standard ones of an archive, or all that can be made here.
        severities: from 1 to 5.
        n: so many samples, chosen as in `robustkit.evaluate`.
        indices: these samples, instead of n.
        seed: of the random kinds made here.
        outputs: what the model returns, logits or probs.
        baseline: what mCE is relative to: "alexnet" (published; ImageNet-C at all severities only, and the default
            there), or a record or its file, of the same images, kinds and severities. Without one, mCE is not
            normalised.
        trust: unpickle checkpoints that are more than weights, which runs code from them.
        device: "auto" is the module's own, or CUDA if there is one for a model named by a spec.
        tile: width of the batches the model sees; None chooses by image size.
        on_event: told of each cell that is done.

    Raises:
        UsageError: for anything that cannot be run as given.
    """
    base = datasets.resolve(data)
    corrupted = base if isinstance(base, CorruptionSet) else _made_here(base, seed)
    wanted = _wanted_kinds(corrupted, kinds)
    for severity in severities:
        check_severity(severity)
    levels = tuple(sorted(set(severities)))
    if not levels:
        raise UsageError("no severity was named; there are 1, 2, 3, 4 and 5")
    if baseline is not None and baseline != "alexnet" and not isinstance(baseline, CorruptionRecord):
        baseline = load(Path(baseline))
    name, reference = _reference(baseline, corrupted.name, wanted, levels, explicit=baseline is not None)
    clean_name = corrupted.clean.name if corrupted.clean is not None else corrupted.name.removesuffix("-c")
    with evaluating(clean_name, "corruptions"):
        module = sources.load_model(model, trust=trust)[0] if isinstance(model, str) else as_module(model)
    where = choose_device(device, module, named=isinstance(model, str))
    if isinstance(model, str):
        module.to(where)
    todo = [(kind, severity) for kind in wanted for severity in levels]
    first_set = corrupted.clean or corrupted.at(*todo[0])
    samples = choose_samples(first_set, n, indices)
    chosen = samples.indices
    if isinstance(baseline, CorruptionRecord):
        baseline.check_comparable(chosen, [])
    with lent(module):
        first = first_set.batch(chosen[:AT_ONCE])
        subject = examine(
            module, *first, classes=first_set.classes or None, outputs=outputs, tile=tile, seed=seed, device=where
        )
        tell = on_event or (lambda event: None)
        total = len(todo) + (corrupted.clean is not None)
        cells: list[Cell] = []
        clean = None
        for kind, severity in [("", 0)] * (corrupted.clean is not None) + todo:
            images = corrupted.at(kind, severity) if kind else first_set
            network = subject.reference
            if network.noise is not None:
                network = network.seeded(seed, "corruptions", kind, severity)
            cell = _cell(network, images, chosen, kind, severity)
            if isinstance(baseline, CorruptionRecord):
                baseline.check_comparable(chosen, [cell])
            if kind:
                cells.append(cell)
            else:
                clean = cell
            share = Proportion(len(chosen) - len(cell.wrong), len(chosen))
            tell(CellDone(kind, severity, share, len(cells) + (clean is not None), total))
        job = {
            "model": model if isinstance(model, str) else model_name(module),
            "model_sha256": subject.weights_sha256,
            "probe_sha256": subject.probe_sha256,
            "data": data if isinstance(data, str) else base.name,
            "seed": getattr(corrupted, "seed", seed),
            "outputs": outputs,
            "device": subject.reference.device.type,
            "threads": torch.get_num_threads(),
            "tile": subject.reference.tile,
            "made_here": corrupted.clean is not None,
            "versions": plan.versions(),
        }
    notes = tuple(str(flag["message"]) for flag in samples.flags(subject.facts.classes))
    return CorruptionRecord(job, plan.environment(where), chosen, tuple(cells), clean, name, reference, notes)


def _cell(network: Network, images: Dataset, chosen: Sequence[int], kind: str, severity: int) -> Cell:
    """The samples that a network gets wrong."""
    wrong: list[int] = []
    seen = hashlib.sha256()
    for start in range(0, len(chosen), AT_ONCE):
        some = chosen[start : start + AT_ONCE]
        x, y = datasets.check_images(*images.batch(some), images.name, images.classes or None)
        seen.update(x.contiguous().numpy().tobytes() + y.numpy().tobytes())
        logits = network.logits(x)
        if not torch.isfinite(logits).all():
            raise UsageError(f"the model's outputs are not finite under {kind} at severity {severity}")
        check_labels(y, logits.shape[1])
        missed = (logits.argmax(1).cpu() != y).tolist()
        wrong += [index for index, miss in zip(some, missed, strict=True) if miss]
    return Cell(kind, severity, tuple(wrong), seen.hexdigest())


def _made_here(base: Dataset, seed: int) -> CorruptionSet:
    from robustkit.datasets.corrupted import Corrupted  # it needs this package's images

    return Corrupted(base, seed=seed)


def _wanted_kinds(corrupted: CorruptionSet, kinds: Sequence[str] | None) -> tuple[str, ...]:
    if kinds is not None:
        wanted = tuple(dict.fromkeys(kind_named(kind, corrupted.kinds) for kind in kinds))
    elif corrupted.clean is not None:
        wanted = corrupted.kinds
    else:  # of an archive those that mCE is defined on, not its extras
        wanted = tuple(kind for kind in STANDARD if kind in corrupted.kinds) or corrupted.kinds
    if not wanted:
        raise UsageError(f"no corruption was named; {corrupted.name} has: {', '.join(corrupted.kinds)}")
    return wanted


def _reference(
    baseline: Any,
    data: str,
    kinds: Sequence[str],
    severities: tuple[int, ...],
    *,
    explicit: bool,
) -> tuple[str, dict[str, float] | None]:
    """The baseline's name and its error for each kind; empty and None without one."""
    if baseline is None or baseline == "alexnet":
        fits = data == "imagenet-c" and severities == SEVERITIES and all(kind in ALEXNET for kind in kinds)
        if explicit and not fits:
            raise UsageError(
                "AlexNet's errors are published for imagenet-c, its 15 standard kinds and all five severities; "
                "elsewhere give the record of a network of yours: --baseline FILE"
            )
        return ("AlexNet", {kind: ALEXNET[kind] for kind in kinds}) if fits else ("", None)
    record = baseline
    has = {(cell.kind, cell.severity) for cell in record.cells}
    wanted = {(kind, severity) for kind in kinds for severity in severities}
    if differ := [*sorted(wanted - has), *sorted(has - wanted)]:
        raise UsageError(
            f"the baseline was not measured on the same kinds and severities ({differ[0][0]} at {differ[0][1]} "
            "differs); measure it with the same --kind and --severity"
        )
    errors = {kind: record.errors()[kind] for kind in kinds}
    if perfect := [kind for kind, error in errors.items() if error == 0]:
        raise UsageError(f"the baseline makes no error under {perfect[0]}, so that nothing is relative to it")
    return str(record.job["model"]), errors
