"""Networks from a file: `./net.safetensors:arch=…`, where `arch` is a spec of the network itself, or `./net.onnx`.

A folder that `robustkit train` left is a model by itself: `./DIR`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from robustkit.api import ModelCard
from robustkit.cache.checks import hashes, not_a_file, read_head
from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint, exported
from robustkit.models.sources.normalized import OPTIONS
from robustkit.models.sources.trained import CARD, RECIPE, WEIGHTS, model_card, network, read_card
from robustkit.models.sources.untrained import architecture, check_architecture
from robustkit.models.sources.weights import fill_from, read_weights
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from robustkit.models.state import put_in_eval_mode
from robustkit.spec import suggest

_ZOO = ", ".join(ARCHITECTURES)


class Files:
    """Networks from files: weights (.safetensors, state dicts) with `arch`, or programs (TorchScript, .pt2, ONNX)."""

    def names(self) -> Sequence[str]:
        """None: the files are the user's."""
        return ()

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a folder of ours without loading it; of any other file nothing but that it is there.

        Raises:
            UsageError: if it is no file of a network, or for an unknown option or `arch`.
        """
        file = Path(name).expanduser()
        if (file / CARD).is_file():
            return model_card(read_card(file / CARD), "file")
        _check(file, name, options)
        if options.get("arch"):
            check_architecture(options["arch"])
        return ModelCard(file.name, "file")

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: for weights without `arch`, a file that is no network, or weights that do not fit.
        """
        file = Path(name).expanduser()
        if (file / CARD).is_file():
            return _trained(file, options)
        _check(file, name, options)
        card = ModelCard(file.name, "file", sha256=hashes(file)[0])
        if kind := exported.format_of(file):
            if options.get("arch"):
                raise UsageError(f"{name} is a {kind} file, which holds its own network; leave out arch=")
            module, shape = exported.read(file)
            return module, replace(card, input_shape=shape)
        if not options.get("arch"):
            return _pickled(file, name), card
        module = architecture(options["arch"])
        what = f"{name} with arch={options['arch']}"
        caution = fill_from(module, read_weights(file), what, options.get("weights", ""))
        return put_in_eval_mode(module), replace(card, caution=caution)


def _trained(folder: Path, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
    """The network in a folder of ours.

    Raises:
        UsageError: for any option, or a folder that is not as it was left.
    """
    if options:
        raise UsageError(f"{folder} has a card, so it takes no options, not {', '.join(options)}")
    card = read_card(folder / CARD)
    return network(card, folder / WEIGHTS, "train it again"), model_card(card, "file")


def _pickled(file: Path, name: str) -> nn.Module:
    """The network in a file that needs no arch=: one that was pickled whole, if it is trusted.

    Raises:
        UsageError: if there is none, or it is not trusted.
    """
    where = f"say of which network: {name}:arch=python/package.module.callable, arch=timm/NAME, or one of {_ZOO}"
    try:
        found = None if file.suffix == ".safetensors" else checkpoint.read(file)
    except checkpoint.BrokenError:
        raise
    except UsageError as error:
        raise UsageError(f"{error}; or save its state_dict() and {where}") from error
    if isinstance(found, nn.Module):
        return put_in_eval_mode(found)
    raise UsageError(f"{name} holds weights only; {where}")


def _check(file: Path, name: str, options: Mapping[str, str]) -> None:
    for key in options:
        if key not in ("arch", "weights"):
            raise UsageError(f"{name}: " + suggest(key, ["arch", "weights", *OPTIONS], "option"))
    if file.is_dir():
        if (file / RECIPE).is_file():
            raise UsageError(f"{file} holds a training that is not finished; run its command again to continue it")
        saved = (file / "config.json").is_file()
        where = f"hf/{name}, if transformers saved it" if saved else "the file of weights in it"
        raise UsageError(f"{file} is a folder without a card.json of ours; give {where}")
    if not file.is_file():
        raise UsageError(f"there is no file {file}; give a .safetensors file or a state dict saved by torch")
    saved_by_torch = file.suffix not in (".safetensors", ".onnx")
    if problem := checkpoint.broken(file) if saved_by_torch else not_a_file(read_head(file)):
        raise UsageError(f"{file} {problem}")
