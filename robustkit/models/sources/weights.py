"""State dicts: reading one from a file, and filling a network with it exactly."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the weights among other things


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, also of a checkpoint that holds it among other things; runs no code unless trusted.

    Raises:
        UsageError: if there is none.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UsageError(f"{file} is no .safetensors file ({error}); if torch saved it, call it .pt") from error
    found = checkpoint.read(file)
    if isinstance(found, nn.Module):  # pickled whole, and trusted
        found = found.state_dict()
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds an object of type {type(found).__name__}; save model.state_dict()")
    weights = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), found)
    if not weights or not all(isinstance(k, str) and isinstance(value, Tensor) for k, value in weights.items()):
        kind = ", ".join(map(str, weights))[:80] or "nothing"
        raise UsageError(f"{file} holds a dict of {kind}, which is no state dict; save model.state_dict()")
    if all(key.startswith("module.") for key in weights):  # as nn.DataParallel saves it
        return {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must fit the network exactly.

    Raises:
        UsageError: naming the first weights that are missing, not expected, or of another shape.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        own = {key: value.shape for key, value in module.state_dict().items()}
        counters = {key for key in own if key.endswith("num_batches_tracked")}  # torch fills these in itself
        missing = [key for key in own if key not in weights and key not in counters]
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
