"""Networks from a file of weights: `./net.safetensors:arch=…`, where `arch` is a spec of the network without them."""

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.sources import load_model
from robustkit.sources.zoo.architectures import ARCHITECTURES
from robustkit.spec import suggest

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the weights among other things


class Files:
    """Networks from `.safetensors` files or state dicts saved by torch."""

    def names(self) -> Sequence[str]:
        """None: the files are the user's."""
        return ()

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: without `arch`, for a file that is no checkpoint, or weights that do not fit the network.
        """
        for key in options:
            if key != "arch":
                raise UsageError(f"{name}: " + suggest(key, ["arch"], "option"))
        file = Path(name).expanduser()
        _check_bytes(file)
        if not options.get("arch"):
            raise UsageError(
                f"{name} holds weights only; say of which network: {name}:arch=python/package.module.callable, "
                f"or one of {', '.join(ARCHITECTURES)}"
            )
        module = architecture(options["arch"])
        fill(module, read_weights(file), f"{name} with arch={options['arch']}")
        return module.eval(), ModelCard(file.name, "file", sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def architecture(spec: str) -> nn.Module:
    """The network of a spec, whose weights are about to be replaced: an architecture of the zoo, or any model."""
    return ARCHITECTURES[spec]() if spec in ARCHITECTURES else load_model(spec)[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, also of a checkpoint that holds it among other things; no code is run.

    Raises:
        UsageError: if there is none.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UsageError(f"{file} is no .safetensors file ({error}); if torch saved it, call it .pt") from error
    found = _torch_load(file)
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds an object of type {type(found).__name__}; save model.state_dict()")
    weights = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), found)
    if not weights or not all(isinstance(k, str) and isinstance(value, Tensor) for k, value in weights.items()):
        kind = ", ".join(map(str, weights))[:80] or "nothing"
        raise UsageError(f"{file} holds a dict of {kind}, which is no state dict; save model.state_dict()")
    if all(key.startswith("module.") for key in weights):  # as nn.DataParallel saves it
        return {key.removeprefix("module."): value for key, value in weights.items()}
    return dict(weights)


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


def _check_bytes(file: Path) -> None:
    if file.is_dir():
        raise UsageError(f"{file} is a folder; give the file of weights in it")
    if not file.is_file():
        raise UsageError(f"there is no file {file}; give a .safetensors file or a state dict saved by torch")
    with file.open("rb") as stream:
        head = stream.read(200).lstrip()
    if not head:
        raise UsageError(f"{file} is empty (a failed download?); get it again")
    if head.startswith(b"<"):
        raise UsageError(f"{file} is an HTML page (a failed download?), not a checkpoint; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise UsageError(f"{file} is a git-lfs pointer, not the weights; run git lfs pull")


def _torch_load(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can make it raise anything
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UsageError(
                f"{file} needs the Python class {refused[1]}, and loading it could run any code; "
                "save the weights alone: torch.save(model.state_dict(), path)"
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(f"{file} is a TorchScript archive; save model.state_dict() and give arch=") from error
        raise UsageError(
            f"{file} is no checkpoint that torch can read (cut short?); give a .safetensors file or a state dict"
        ) from error
