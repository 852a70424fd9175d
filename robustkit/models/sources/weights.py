"""State dicts: reading one from a file, and filling a network with it exactly."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint
from robustkit.models.sources.normalized import core
from robustkit.spec import suggest

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the weights among other things
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # which torch puts into names anywhere
_COUNTER = "num_batches_tracked"  # which torch fills in itself
WHICH = ("raw", "ema")


class Saved(NamedTuple):
    """What a file holds: the weights of the last step, and their running average (EMA); one of them may be empty."""

    raw: dict[str, Tensor]
    averaged: dict[str, Tensor]


def read_weights(file: Path) -> Saved:
    """The state dicts in a file, also of a checkpoint that holds them among other things; runs no code unless trusted.

    Raises:
        UsageError: if there is none.
    """
    if file.suffix == ".safetensors":
        try:
            return Saved(load_file(file), {})
        except SafetensorError as error:
            raise UsageError(f"{file} is no .safetensors file ({error}); if torch saved it, call it .pt") from error
    found = checkpoint.read(file)
    if isinstance(found, nn.Module):  # pickled whole, and trusted
        found = found.state_dict()
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds an object of type {type(found).__name__}; save model.state_dict()")
    if weights := _tensors(found):
        return Saved(weights, {})
    raw = next((weights for key in _WRAPPERS if (weights := _tensors(found.get(key)))), {})
    averaged = next((weights for key in found if _is_average(key) and (weights := _tensors(found[key]))), {})
    if not raw and not averaged:
        kind = ", ".join(map(str, next((found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)), found)))[:80]
        raise UsageError(f"{file} holds a dict of {kind or 'nothing'}, which is no state dict; save model.state_dict()")
    return Saved(raw, averaged)


def fill_from(module: nn.Module, saved: Saved, what: str, which: str = "") -> str:
    """Load what a file holds into a network, under the network's own names.

    Saved by a user, weights have the names of the network itself; saved by us, of what stands around it too. Prefixes
    that wrappers leave (DataParallel, torch.compile, Lightning, an average of models) are taken off, in any order.

    Args:
        module: the network, maybe behind steps that a source put in front of it.
        saved: what the file holds.
        what: it is, for errors.
        which: "raw" or "ema"; empty is raw where the file holds both.

    Returns:
        What a reader of the numbers must know: that the file holds another set of weights. Else empty.

    Raises:
        UsageError: if the weights do not fit, or there are none of the kind that was asked for.
    """
    if which and which not in WHICH:
        raise UsageError(f"{what}: " + suggest(which, WHICH, "set of weights"))
    whole, inner = set(module.state_dict()), set(core(module).state_dict())
    own = whole if any(_fits(names, whole) for names in _shorter(saved.raw or saved.averaged)) else inner
    sets = dict(zip(WHICH, _split(saved, own), strict=True))
    chosen = which or ("raw" if sets["raw"] else "ema")
    if not sets[chosen]:
        raise UsageError(f"{what}: nothing in the file is told to be the {chosen} weights; leave out weights={chosen}")
    fill(module if own == whole else core(module), _renamed(sets[chosen], own), what)
    if which or not all(sets.values()):
        return ""
    taken = "those of the last step were taken, weights=ema takes their running average (EMA)"
    return f"{what}: the file holds two sets of weights; {taken}"


def check_kinds(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse numbers that torch would turn into others without a word.

    Raises:
        UsageError: for integers or complex numbers where the network has floats.
    """
    for key, value in weights.items():
        if key in own and own[key].is_floating_point() and (not value.is_floating_point() or value.is_quantized):
            raise UsageError(
                f"{what}: {key} is {str(value.dtype).removeprefix('torch.')} in the file and "
                f"{str(own[key].dtype).removeprefix('torch.')} in the network; such a file is likely a quantised "
                "export, whose integers mean nothing without their scales: give the weights as floats"
            )


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must fit the network exactly.

    Raises:
        UsageError: naming the first weights that are missing, not expected, of another shape or of integers.
    """
    check_kinds(module.state_dict(), weights, what)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:  # ValueError: a layer that does not know the format's version
        own = {key: value.shape for key, value in module.state_dict().items()}
        missing = [key for key in own if key not in weights and not key.endswith(_COUNTER)]
        unexpected = [key for key in weights if key not in own]
        shapes = [
            f"{key} is {tuple(weights[key].shape)} in the file, {tuple(own[key])} in the network"
            for key in own
            if key in weights and weights[key].shape != own[key]
        ]
        problems = [
            f"{label} {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
            for label, items in (("missing:", missing), ("unexpected:", unexpected), ("other shapes:", shapes))
            if items
        ]
        text = "; ".join(problems) or str(error).replace("\n", " ")
        raise UsageError(f"{what}: the weights do not fit ({text}); give the arch= they were saved from") from error


def _tensors(found: object) -> dict[str, Tensor]:
    """A state dict, or that of a module; empty for anything else."""
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        return {}
    return copy.copy(found)  # with the versions of its layers' formats, which torch keeps in an attribute


def _is_average(name: object) -> bool:
    """Whether a name is that of a running average of weights: model_ema, state_dict_ema and so on."""
    return "ema" in str(name).lower().replace(".", "_").split("_")


def _split(saved: Saved, own: set[str]) -> Saved:
    """The two sets of weights also where one state dict holds both, as two parts of one module."""
    if saved.averaged or any(_fits(names, own) for names in _shorter(saved.raw)):
        return saved
    average = {key for key in saved.raw if _is_average(key.partition(".")[0])}
    rest = {key: value for key, value in saved.raw.items() if key not in average}
    return Saved(rest, {key: saved.raw[key] for key in average}) if average and rest else saved


def _renamed(weights: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """The weights under the names that fit best, the fewest prefixes taken off where several do."""
    tried = list(_shorter(weights))
    names = next((names for names in tried if _fits(names, own)), None)
    names = names or max(tried, key=lambda names: len(own.intersection(names)))
    return weights if names is tried[0] else {name: weights[key] for name, key in names.items()}


def _shorter(weights: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """The names of the weights, by which they are saved: as they are, then with ever fewer prefixes."""
    names = {key: key for key in weights}
    yield names
    names = {name: key for name, key in names.items() if name != "n_averaged"}  # of torch's AveragedModel
    for wrapper in _INSIDE:
        names = {name.replace(wrapper, ""): key for name, key in names.items()}
    while names:
        yield names
        heads = {name.partition(".")[0] for name in names}
        if len(heads) > 1 or not all("." in name for name in names):
            return
        names = {name.partition(".")[2]: key for name, key in names.items()}


def _fits(names: Mapping[str, str], own: set[str]) -> bool:
    return own.issuperset(names) and all(name in names or name.endswith(_COUNTER) for name in own)
