"""torchvision's classifiers: `torchvision/resnet50`, `torchvision/resnet50:weights=IMAGENET1K_V1`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from robustkit import cache
from robustkit.api import ModelCard
from robustkit.cache import checks
from robustkit.errors import UsageError
from robustkit.models.sources.normalized import PRESETS, normalized
from robustkit.models.sources.weights import fill, read_weights
from robustkit.numerics import generators
from robustkit.spec import build, suggest

NONE = "none"
VIT_SIZE = 224
_INCEPTIONS = ("googlenet", "inception_v3")


@dataclass(frozen=True, slots=True)
class Options:
    """What a spec may say: the name of a set of weights, DEFAULT or none; of an untrained network `classes`, `seed`."""

    weights: str = "DEFAULT"
    classes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes must be at least 1, not {self.classes}")


class Torchvision:
    """Every classifier of torchvision; the weights are its best where the options name none."""

    def names(self) -> Sequence[str]:
        """The classifiers, quantised ones left out: gradients do not flow through them."""
        names: Sequence[str] = models.list_models(module=models)
        return names

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a network without loading it.

        Raises:
            UsageError: for an unknown name or option, or classes that the weights do not have.
        """
        wanted, weights = _settled(name, options)
        if weights is None:
            # The best weights of a vision transformer may want larger images than it has by itself.
            best = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
            size = VIT_SIZE if name.startswith("vit_") else best
            mean, std = PRESETS["imagenet"]
            return ModelCard(
                name=f"{name} (untrained)",
                source="torchvision",
                classes=1000 if wanted.classes is None else wanted.classes,
                input_shape=(3, size, size),
                mean=mean,
                std=std,
                notes="untrained weights, the same in every run",
            )
        preset = weights.transforms()
        size = preset.crop_size[0]
        return ModelCard(
            name=f"{name} ({weights.name})",
            source="torchvision",
            dataset="imagenet",
            classes=_classes_of(weights),
            input_shape=(3, size, size),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            licence=weights.meta.get("license", ""),
            paper=weights.meta.get("recipe", ""),
            notes=f"trained on images resized to {preset.resize_size[0]}, the middle {size} of them",
        )

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode, normalising inside as its weights want, and its card.

        Raises:
            UsageError: see `card`; also for weights that cannot be had.
        """
        card, (wanted, weights) = self.card(name, options), _settled(name, options)
        arguments = {"num_classes": card.classes}
        if weights is not None:  # what torchvision's own builders set beside the weights
            if name in _INCEPTIONS:
                arguments["transform_input"] = True
            if name.startswith("vit_"):
                arguments["image_size"] = weights.meta["min_size"][0]
        network = _made(name, wanted.seed, **arguments)
        if weights is not None:
            file = _fetched(name, weights)
            fill(network, _present_names(read_weights(file).raw), f"torchvision/{name}")
            card = replace(card, sha256=checks.hashes(file)[0])
        return normalized(network, card.mean, card.std), card


def _settled(name: str, options: Mapping[str, str]) -> tuple[Options, Any]:
    """The options, and the set of weights that they name or None.

    Raises:
        UsageError: for an unknown name or option, or classes that the weights do not have.
    """
    wanted: Options = build(Options, options, f"torchvision/{name}")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(suggest(name, known, "torchvision classifier"))
    if wanted.weights.lower() == NONE:
        return wanted, None
    sets = models.get_model_weights(name).__members__
    if wanted.weights not in sets:
        raise UsageError(f"torchvision/{name}: " + suggest(wanted.weights, [*sets, NONE], "set of weights"))
    weights = sets[wanted.weights]
    if wanted.classes not in (None, _classes_of(weights)):
        raise UsageError(
            f"torchvision/{name}: the weights have {_classes_of(weights)} classes, so classes={wanted.classes} would "
            "be an untrained head; say weights=none for the untrained architecture"
        )
    return wanted, weights


def _classes_of(weights: Any) -> int:
    return len(weights.meta["categories"])


def _present_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a DenseNet under the names of today: what is norm1 was saved as norm.1."""
    for key in list(weights):
        if (renamed := re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)) != key:
            weights[renamed] = weights.pop(key)
    return weights


def _made(name: str, seed: int, **arguments: Any) -> Any:
    """The architecture, with the weights of a seed."""
    if name in _INCEPTIONS:  # their own initialisation takes minutes; the auxiliary heads answer in training only
        arguments["init_weights"] = False
    with generators.seeded(seed, torch.device("cpu")):
        return models.get_model(name, weights=None, **arguments).eval()


def _fetched(name: str, weights: Any) -> Path:
    """The file of the weights, from the cache or torchvision's server; its name ends with its hash."""
    filename = weights.url.rpartition("/")[2]
    try:
        file = cache.fetch(cache.Remote(f"models/torchvision/{filename}", (weights.url,)))
    except UsageError as error:
        raise UsageError(f"torchvision/{name}: {error}; or say weights=none for the untrained architecture") from error
    beginning = filename.removesuffix(".pth").rpartition("-")[2]
    if not checks.hashes(file)[0].startswith(beginning):
        raise UsageError(f"{file} is not what torchvision published: its sha256 must begin with {beginning}; remove it")
    return file
