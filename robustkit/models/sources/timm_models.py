"""timm's classifiers: `timm/convit_tiny.fb_in1k`, `timm/resnet18:pretrained=false,classes=10`."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkit import cache
from robustkit.api import ModelCard
from robustkit.cache import checks
from robustkit.errors import UsageError, first_line
from robustkit.models.sources.normalized import normalized
from robustkit.models.sources.weights import fill_from, read_weights
from robustkit.numerics import generators
from robustkit.spec import build, settings, suggest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # timm decorates with what torch calls deprecated
    import timm


@dataclass(frozen=True, slots=True)
class Options:
    """What a spec may say: `checkpoint` is a file of the user's; `image_size` other than the architecture's own.

    `weights` is "raw" or "ema" where the checkpoint holds both. `seed` decides untrained weights.
    """

    pretrained: bool | None = None
    classes: int | None = None
    in_chans: int = 3
    image_size: int | None = None
    checkpoint: str = ""
    weights: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("classes", "in_chans", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


class Timm:
    """Every architecture of timm, and every set of pretrained weights by its tag."""

    def names(self) -> Sequence[str]:
        """Architectures, and architecture.tag for each set of weights."""
        return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a network without loading it.

        Raises:
            UsageError: for an unknown name or option, or options that do not go together.
        """
        config, wanted = _config(name), _options(name, options)
        pretrained = _is_pretrained(name, config, wanted)
        sides = (wanted.image_size,) * 2 if wanted.image_size else config.input_size[1:]
        trained = pretrained or wanted.checkpoint
        return ModelCard(
            name=name if pretrained else f"{name.partition('.')[0]} ({wanted.checkpoint or 'untrained'})",
            source="timm",
            dataset="imagenet" if pretrained and _data_of(config.tag or "") == "in1k" else "",
            classes=config.num_classes if wanted.classes is None else wanted.classes,
            input_shape=(wanted.in_chans, *sides) if sides else (),
            mean=_of_channels(config.mean, wanted.in_chans),
            std=_of_channels(config.std, wanted.in_chans),
            licence=(config.license or "") if pretrained else "",
            paper=config.paper_ids or config.paper_name or "",
            notes="" if trained else "untrained weights, the same in every run",
        )

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode, normalising inside as its weights want, and its card.

        Pretrained weights are the default where there are some; untrained ones are always the same.

        Raises:
            UsageError: see `card`; also for weights that cannot be had or do not fit, or no classifier.
        """
        card, config, wanted = self.card(name, options), _config(name), _options(name, options)
        pretrained = _is_pretrained(name, config, wanted)
        file = _fetched(name, config) if pretrained else Path(wanted.checkpoint).expanduser()
        weights = read_weights(file) if pretrained or wanted.checkpoint else None
        network = _made(name, config, wanted, (weights.raw or weights.averaged) if weights and pretrained else {})
        if not network.num_classes:
            raise UsageError(
                f"timm/{name} gives features, no classes; give pretrained=false,classes=N, or checkpoint=FILE"
            )
        if wanted.checkpoint and weights:
            what = f"timm/{name} with checkpoint={wanted.checkpoint}"
            card = replace(card, caution=fill_from(network, weights, what, wanted.weights))
        card = replace(card, classes=network.num_classes, sha256=checks.hashes(file)[0] if weights else "")
        return normalized(network, card.mean, card.std), card


def _options(name: str, options: Mapping[str, str]) -> Options:
    wanted: Options = build(Options, options, f"timm/{name}")
    return wanted


def _config(name: str) -> Any:
    """What timm knows of an architecture, with its best weights or those of the tag.

    Raises:
        UsageError: for an unknown name or tag.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(suggest(name, timm.list_models(), "timm architecture"))
    try:
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg(input_size=())  # of some, timm notes nothing
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UsageError(suggest(name, tags, "set of timm's weights")) from error


def _data_of(tag: str) -> str:
    """What the last part of a timm tag says the classifier was trained on: in1k, in22k, and so on."""
    return next((part for part in reversed(tag.split("_")) if part.startswith("in")), "")


def _is_pretrained(name: str, config: Any, wanted: Options) -> bool:
    """Whether to load timm's weights.

    Raises:
        UsageError: if the options want them changed, or there are none.
    """
    pretrained = wanted.pretrained
    if pretrained is None:
        pretrained = bool(config.has_weights) and not wanted.checkpoint
    if pretrained and not config.has_weights:
        raise UsageError(f"timm has no weights for {name}; say pretrained=false for the untrained architecture")
    if pretrained and wanted.checkpoint:
        raise UsageError(f"timm/{name}: checkpoint= and pretrained=true exclude each other")
    if pretrained and wanted.classes not in (None, config.num_classes):
        raise UsageError(
            f"timm/{name}: the pretrained weights have {config.num_classes} classes, so classes={wanted.classes} would "
            "be an untrained head; give checkpoint=FILE, or pretrained=false for the untrained architecture"
        )
    return pretrained


def _fetched(name: str, config: Any) -> Path:
    """The file of timm's weights, from the cache or the hub.

    Fetched here since timm does not find huggingface_hub 1 and later, and unpickles what it loads.
    """
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    filename = config.hf_hub_filename or "model.safetensors"
    url = f"{host}/{config.hf_hub_id}/resolve/main/{filename}" if config.hf_hub_id else config.url
    place = f"models/timm/{config.hf_hub_id or 'url'}/{url.rpartition('/')[2]}"
    try:
        return cache.fetch(cache.Remote(place, (url,)))
    except UsageError as error:
        raise UsageError(f"timm/{name}: {error}; or say pretrained=false for the untrained architecture") from error


def _made(name: str, config: Any, wanted: Options, weights: Mapping[str, Any]) -> Any:
    """The network, with these weights if there are any."""
    arguments: dict[str, Any] = {"in_chans": wanted.in_chans}
    if wanted.classes is not None:
        arguments["num_classes"] = wanted.classes
    if wanted.image_size and config.fixed_input_size:  # any other architecture takes images as they come
        arguments["img_size"] = wanted.image_size
    if weights:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    try:
        with warnings.catch_warnings(), generators.seeded(wanted.seed, torch.device("cpu")):
            warnings.simplefilter("ignore")  # of names that timm has renamed, and of torch functions
            network = timm.create_model(name, **arguments).eval()
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        line = first_line(error)
        given = ",".join(f"{key}={text}" for key, text in settings(wanted).items())
        raise UsageError(f"timm/{name}{':' * bool(given)}{given} cannot be made: {line}") from error
    network.pretrained_cfg.pop("state_dict", None)  # timm keeps a second copy of the weights there
    return network


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """As many values as there are channels: the colours' mean for another number of them."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
