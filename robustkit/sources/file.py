"""Networks from a file: `./net.safetensors:arch=…`, where `arch` is a spec of the network itself, or `./net.onnx`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.api import ModelCard
from robustkit.cache.checks import hashes, not_a_file, read_head
from robustkit.errors import UsageError
from robustkit.sources import checkpoint, exported, load_model
from robustkit.sources.normalized import OPTIONS, core
from robustkit.sources.trust import trusted
from robustkit.sources.zoo.architectures import ARCHITECTURES
from robustkit.spec import parse, suggest

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where checkpoints keep the weights among other things


_UNTRAINED = {"timm": {"pretrained": "false"}, "torchvision": {"weights": "none"}, "robustbench": {"weights": "random"}}


class Files:
    """Networks from files: weights (.safetensors, state dicts) with `arch`, or programs (TorchScript, .pt2, ONNX)."""

    def names(self) -> Sequence[str]:
        """None: the files are the user's."""
        return ()

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: for weights without `arch`, a file that is no network, or weights that do not fit.
        """
        for key in options:
            if key != "arch":
                raise UsageError(f"{name}: " + suggest(key, ["arch", *OPTIONS], "option"))
        file = Path(name).expanduser()
        _check_bytes(file)
        card = ModelCard(file.name, "file", sha256=hashes(file)[0])
        if kind := exported.format_of(file):
            if options.get("arch"):
                raise UsageError(f"{name} is a {kind} file, which holds its own network; leave out arch=")
            module, shape = exported.read(file)
            return module, replace(card, input_shape=shape)
        if not options.get("arch"):
            return _pickled(file, name), card
        module = architecture(options["arch"])
        weights = read_weights(file)
        # Saved by a user, weights have the names of the network itself; saved by us, of what stands around it too.
        whole = set(weights) == set(module.state_dict())
        fill(module if whole else core(module), weights, f"{name} with arch={options['arch']}")
        return module.eval(), card


def architecture(spec: str) -> nn.Module:
    """The network of a spec, whose weights are about to be replaced: an architecture of the zoo, or any model."""
    if spec in ARCHITECTURES:
        return ARCHITECTURES[spec]()
    parsed = parse(spec)
    untrained = {**_UNTRAINED.get(parsed.source, {}), **parsed.options}
    return load_model(str(replace(parsed, options=untrained)))[0]


def _pickled(file: Path, name: str) -> nn.Module:
    """The network in a file that needs no arch=: one that was pickled whole, if it is trusted.

    Raises:
        UsageError: if there is none.
    """
    found = checkpoint.read(file) if trusted() and file.suffix != ".safetensors" else None
    if isinstance(found, nn.Module):
        return found.eval()
    raise UsageError(
        f"{name} holds weights only; say of which network: {name}:arch=python/package.module.callable, arch=timm/NAME, "
        f"or one of {', '.join(ARCHITECTURES)}"
    )


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


def _check_bytes(file: Path) -> None:
    if file.is_dir():
        raise UsageError(f"{file} is a folder; give the file of weights in it")
    if not file.is_file():
        raise UsageError(f"there is no file {file}; give a .safetensors file or a state dict saved by torch")
    saved_by_torch = file.suffix not in (".safetensors", ".onnx")
    if problem := checkpoint.broken(file) if saved_by_torch else not_a_file(read_head(file)):
        raise UsageError(f"{file} {problem}")
