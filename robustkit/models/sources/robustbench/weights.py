"""Weights of RobustBench's networks: fetched and checked, unwrapped from what checkpoints keep them in, and loaded.

What robustbench's own loader knows about single networks stands here, but for one thing: where it falls back to
`strict=False`, it also loads a network that gets no weights at all. Here nothing but the constants of the input's
normalisation may be missing, and what is missing or left over is told.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from robustkit.cache import Remote, fetch, home, pins
from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint
from robustkit.models.sources.robustbench.library import Entry, weights_url
from robustkit.models.sources.weights import check_kinds

_RESNET50 = "https://download.pytorch.org/models/resnet50-0676ba61.pth"  # torchvision's ResNet50_Weights.IMAGENET1K_V1
DRIVE = (  # both answer with the file, or with a page that says why not
    "https://drive.google.com/uc?id={}&export=download",
    "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t",
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_CONSTANTS = ("mu", "sigma", "mean", "std")  # of the normalisation: the network has them without the file
_LENIENT = (  # how the names begin for which robustbench is not strict, besides all of ImageNet and what timm hosts
    "Andriushchenko2020Understanding", "Augustin2020Adversarial", "Bai2024MixedNUTS", "Chen2020Efficient",
    "Diffenderfer2021Winning", "Engstrom2019Robustness", "Hendrycks2020AugMix", "Huang2022Revisiting_WRN-A4",
    "Kireev2021Effectiveness", "Pang2020Boosting", "Rice2020Overfitting", "Rony2019Decoupling", "Wong2020Fast",
    "Wu2020Adversarial",
)  # fmt: skip


def remotes(entry: Entry) -> tuple[Remote, ...]:
    """The files of weights: one, or one for each member of an ensemble."""
    place = f"models/robustbench/{entry.dataset}/{entry.threat}/{entry.name}.pt"
    if not entry.drive or entry.torchvision:
        url = _RESNET50 if entry.torchvision else weights_url(entry)
        return (Remote(place, (url,), magic=checkpoint.MAGIC),)
    places = [place] if len(entry.drive) == 1 else [f"{place}_m{i}.pt" for i in range(len(entry.drive))]
    return tuple(
        Remote(
            where,
            tuple(url.format(key) for url in DRIVE),
            magic=checkpoint.MAGIC,
            by_hand=f"https://drive.google.com/file/d/{key}/view",
        )
        for where, key in zip(places, entry.drive, strict=True)
    )


def fetched(remote: Remote) -> tuple[Path, object]:
    """A file of weights, downloaded if need be, and what is in it. One that is broken is not kept.

    Raises:
        UsageError: if it cannot be had, is no checkpoint, or is more than weights and not trusted.
    """
    file = fetch(remote)
    try:
        return file, checkpoint.read(file)
    except checkpoint.BrokenError as error:
        file.unlink(missing_ok=True)
        pins.forget(home(), remote.place)
        source = remote.by_hand or remote.urls[0]
        raise UsageError(
            f"{error}; it was removed. Run this again, or put the file by hand at {file} (from {source})"
        ) from error


def fill(module: nn.Module, entry: Entry, checkpoints: Sequence[object]) -> list[str]:
    """Load what the files of an entry hold into its network; in words, what was missing and what was left over.

    Raises:
        UsageError: if they are not the weights of this network.
    """
    notes = []
    parts = _parts(module, entry, checkpoints)
    for label, part, weights in parts:
        what = f"robustbench/{entry.name}" + (f", {label}" if label else "")
        state = _fitted(part, weights)
        own = part.state_dict()
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        unexpected = [key for key in state if key not in own]
        shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
        lenient = entry.dataset == "imagenet" or bool(entry.hosted) or entry.name.startswith(_LENIENT)
        constants = all(key.rpartition(".")[2] in _CONSTANTS for key in missing)
        if shapes or not ((lenient and constants) or not (missing or unexpected)):
            lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            text = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in lists if keys)
            raise UsageError(f"{what}: the weights do not fit the network ({text}); is it the file of another one?")
        check_kinds(own, state, what)
        part.load_state_dict(state, strict=False)
        if missing:
            notes.append(f"{what}: not in the file, as the architecture has them: {_some(missing)}")
        if unexpected:
            notes.append(f"{what}: in the file and not used: {_some(unexpected)}")
    return notes


def _parts(module: nn.Module, entry: Entry, found: Sequence[object]) -> list[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Which part of the network each state dict is for, with what it is called."""
    if len(found) == 1 and len(entry.drive) <= 1:
        return [("", module, _unwrapped(found[0], entry))]
    if len(found) != len(entry.drive):
        raise UsageError(f"robustbench/{entry.name} has {len(entry.drive)} files of weights, not {len(found)}")
    if entry.name.startswith("Bai2023Improving"):
        mixed: nn.Module = module.get_submodule("comp_model")
        policy = found[2]
        if not (isinstance(policy, Mapping) and {"model", "bn"} <= set(policy)):
            raise UsageError(
                f"robustbench/{entry.name}: the last file must hold 'model' and 'bn' of the mixing network"
            )
        return [
            ("standard", mixed.get_submodule("models.0"), _unwrapped(found[0], entry)),
            ("robust", mixed.get_submodule("models.1"), _unwrapped(found[1], entry)),
            ("mixing network", mixed.get_submodule("policy_net"), _unwrapped(policy["model"], entry)),
            ("its normalisation", mixed.get_submodule("bn"), _unwrapped(policy["bn"], entry)),
        ]
    if entry.name.startswith("Bai2024MixedNUTS"):
        names = ["std_model", "rob_model"]
    else:
        names = [f"models.{i}" for i in range(len(found))]
    return [(name, module.get_submodule(name), _unwrapped(one, entry)) for name, one in zip(names, found, strict=True)]


def _unwrapped(found: object, entry: Entry) -> dict[str, Tensor]:
    """The state dict in what torch.load gave."""
    if isinstance(found, nn.Module):
        return found.state_dict()
    if isinstance(found, Mapping) and isinstance(
        found.get("last"), Mapping
    ):  # some hold 'last' and 'best'; robustbench takes the last
        found = found["last"]
    if isinstance(found, Mapping):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        kind = f"a dict of {_some([str(key) for key in found])}" if isinstance(found, Mapping) else type(found).__name__
        raise UsageError(f"robustbench/{entry.name}: the file holds {kind}, not a state dict")
    return {str(key): value for key, value in found.items()}


def _fitted(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the network's own names: without the prefixes of wrappers, or with that of its normaliser."""
    inner = next((child for name, child in module.named_children() if name == "model"), module)
    adapt = getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None)
    if adapt and type(inner).__module__.startswith("timm."):  # timm's networks read the names of their older versions
        weights = adapt({_short(key): value for key, value in weights.items()}, inner)
    own = set(module.state_dict())
    fitted: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = next((name for name in (key, _short(key), f"model.{_short(key)}") if name in own), _short(key))
        if name in fitted:
            raise UsageError(f"the file has two weights for {name}, one called {key}")
        fitted[name] = value
    return fitted


def _short(key: str) -> str:
    while key.startswith(("module.", "model.")):
        key = key.partition(".")[2]
    return key


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
