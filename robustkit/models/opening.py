"""Opening a model: loaded, put behind its defenses, on its device, lent and examined. Everything is put back after it.

This is the one prologue of all that measures a model: `evaluate`, the audit, transfer runs, corruptions, certificates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustkit import plugins, spec
from robustkit.api import ModelCard
from robustkit.datasets.choice import Samples
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.models import defended, sources
from robustkit.models.examination import CallableModule, Subject, as_module, examine, lent
from robustkit.models.outputs import check_labels
from robustkit.models.picture import Picture
from robustkit.models.sources.evaluating import evaluating
from robustkit.models.state import State, check_usable, restore, snapshot
from robustkit.numerics import devices
from robustkit.spec import parse

Model = str | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, with its card if it came by a spec; `outputs` says what it returns: logits or probs."""

    name: str
    module: nn.Module
    card: ModelCard | None
    device: torch.device
    outputs: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to be measured on some samples, and what was found out about it.

    `module` is the model behind its defenses, in eval mode, `weights` a copy of its state as it was examined, and
    `picture` one of what it is besides.
    """

    name: str
    card: ModelCard | None
    module: nn.Module
    defenses: tuple[defended.Named, ...]
    samples: Samples
    subject: Subject
    weights: State
    picture: Picture
    outputs: str

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.subject.reference.device

    @property
    def defense(self) -> str:
        """The defenses' names as one spec; empty without any."""
        return defended.text(self.defenses)

    @property
    def identity(self) -> dict[str, Any]:
        """What of a job's identity is known once a model is open, as JSON data."""
        subject = self.subject
        return {
            "model": self.name, "model_sha256": subject.weights_sha256, "probe_sha256": subject.probe_sha256,
            "noisy_sha256": subject.noisy_sha256, "defense": self.defense, "outputs": self.outputs,
            "data_sha256": self.samples.sha256, "indices": list(self.samples.indices), "tile": subject.reference.tile,
            "device": self.device.type, "threads": torch.get_num_threads(),
        }  # fmt: skip

    @property
    def defended(self) -> bool:
        """Whether a defense stands before the model, added here or in its spec."""
        return bool(self.defenses) or "defended/" in self.name

    def on(self, samples: Samples) -> "Opened":
        """The same model for other samples of the same data."""
        return replace(self, samples=samples)

    def offering(self, module: nn.Module, stand_ins: Mapping[str, nn.Module]) -> "Opened":
        """The same model within `module`, which computes the same and offers `stand_ins` to attacks besides."""
        known = self.subject.facts._replace(views=tuple(stand_ins))
        weights, picture = snapshot(module), self.picture.again(module)
        own = self.subject.volatile
        volatile = frozenset(name for name in weights if any(f".{name}".endswith(f".{each}") for each in own))
        reference = replace(self.subject.reference, module=module)
        subject = replace(self.subject, reference=reference, facts=known, volatile=volatile)
        return replace(self, module=module, subject=subject, weights=weights, picture=picture)

    def put_back(self) -> bool:
        """Undo what an attack did to the model; whether any of it showed in its mode, its weights or its answers.

        Raises:
            NotEstablishedError: if it cannot be undone.
        """
        shows = self._shows()
        if self.picture.restore() or shows:
            restore(self.module, self.weights)
        if shows and self._shows():
            raise NotEstablishedError(
                "an attack changed the model in a way that cannot be undone (something that it refers to), so nothing "
                "more can be measured on it here; what was known before is kept: leave the attack out and run it again"
            )
        return shows

    def _shows(self) -> bool:
        try:
            return not self.subject.untouched(self.weights)
        except Exception as error:  # a model that was changed may not even run
            if devices.out_of_memory(error):
                raise
            return True


def check_model(model: Model, data: object, norm: str) -> None:
    """Refuse what is no model by its kind or its name, before any data are read or fetched for it.

    Raises:
        UsageError: for an unknown source, name or option, a file or a callable that is not there.
    """
    if not isinstance(model, str):
        as_module(model)
        return
    named = parse(plugins.spelled("datasets", data)) if isinstance(data, str) else None
    with evaluating("" if named is None or named.source else named.name, norm):
        sources.check(model)


def load(
    model: Model, data: str, norm: str, *, outputs: str = "logits", trust: bool = False, device: str = "auto"
) -> Loaded:
    """Load a model and find its device.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits.
        data: the name of the dataset it will be measured on, for sources whose names alone are not enough.
        norm: of the threat model, likewise.
        outputs: what it returns: "logits", or "probs" for probabilities.
        trust: unpickle checkpoints that are more than weights, and call what a card names: both run code from them.
        device: "auto" is the module's own; for a model named by a spec CUDA, MPS or XPU if there is one.

    Raises:
        UsageError: for a model or a device that is not there.
    """
    if outputs not in ("logits", "probs"):
        raise UsageError(f"outputs={outputs!r}; there are: logits, probs")
    if not isinstance(model, str):
        module = as_module(model)
        check_usable(module)
        return Loaded(model_name(module), module, None, choose_device(device, module, named=False), outputs)
    model = plugins.spelled("sources", model)
    with evaluating(data, norm), torch.inference_mode(False):
        module, card = sources.load_model(model, trust=trust)
    check_usable(module)
    where = choose_device(device, module, named=True)
    return Loaded(model, module.to(where), card, where, outputs)


@contextmanager
def open_model(
    loaded: Loaded, samples: Samples, *, defenses: Sequence[defended.Named] = (), tile: int | None = None, seed: int = 0
) -> Iterator[Opened]:
    """Put a model behind its defenses and examine it on the first samples; the caller's module comes back as it was.

    Args:
        loaded: the model, on its device.
        samples: what it will be measured on.
        defenses: what stands before it at inference, as `defended.resolve` gives it.
        tile: width of the batches it sees; None chooses by image size.
        seed: which also seeds a randomised model.

    Raises:
        UsageError: if it does not take the images, or its outputs are no finite logits that fit the labels.
    """
    tile, seed = None if tile is None else spec.whole(tile, "tile"), spec.whole(seed, "seed", 0)
    with ExitStack() as stack:
        module = loaded.module
        if defenses:  # a defense puts what it wraps into eval mode: the caller's module must come back as it was
            stack.enter_context(lent(module))
            module = defended.protect(module, defenses)
        stack.enter_context(lent(module))
        picture = Picture(module)
        subject = examine(
            module, *samples.first(), classes=samples.dataset.classes or None, outputs=loaded.outputs, tile=tile,
            seed=seed, device=loaded.device, input_shape=loaded.card.input_shape if loaded.card else (),
        )  # fmt: skip
        check_labels(samples.labels, subject.facts.classes)
        subject = replace(subject, flags=(*subject.flags, *card_flags(loaded.card)))
        _ = subject.noisy_logits  # now, before any attack could change them
        picture = Picture(module, picture)
        stack.callback(picture.restore)
        yield Opened(
            loaded.name, loaded.card, module, tuple(defenses), samples, subject, snapshot(module), picture,
            loaded.outputs,
        )  # fmt: skip


def card_flags(card: ModelCard | None) -> list[Mapping[str, str]]:
    """What a source knows of a model that whoever reads a number of it must: how it was loaded, and its notes.

    Of a bundled network the notes are its figures, which a listing has.
    """
    if card is None:
        return []
    notes = card.notes if card.source != "zoo" else ""
    said = (("weights", card.caution), ("card", f"its card says: {notes}" if notes else ""))
    return [{"kind": kind, "message": message} for kind, message in said if message]


def model_name(module: nn.Module) -> str:
    """What a module is called that came without a spec: its class, or the function behind it."""
    inner = module.function if isinstance(module, CallableModule) else type(module)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}".lstrip(".")


def choose_device(wanted: str, module: nn.Module, *, named: bool) -> torch.device:
    """The device of a run; `named` says that the model came by a spec, so that it may be moved.

    Raises:
        UsageError: for a device that is not there, or not the one that the caller's module is on.
    """
    if wanted == "auto":
        if named:
            return devices.best()
        return _home(module) or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"unknown device {wanted!r}; there are: auto, cpu, cuda, cuda:0 …, mps, xpu") from None
    there = devices.there()
    if (device.index or 0) >= there.get(device.type, 0):
        seen = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in there.items())
        raise UsageError(f"device {wanted!r} is not there; torch sees: {seen}")
    home = _home(module)
    if not named and home is not None and home.type != device.type:
        raise UsageError(f"the model is on {home}, but device={wanted!r} was asked for; move it: model.to({wanted!r})")
    return device


def accelerated(device: torch.device) -> str:
    """What a run's title says of a device other than the CPU."""
    return "" if devices.is_host(device) else f" · {device} ({devices.name(device)})"


def _home(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)
