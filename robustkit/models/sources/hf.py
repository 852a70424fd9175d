"""Image classifiers of transformers: `hf/microsoft/resnet-50`, or a folder: `hf/./my-model`."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
import transformers
from torch import nn

from robustkit import cache
from robustkit.api import Images, Logits, ModelCard
from robustkit.cache import checks
from robustkit.errors import UsageError
from robustkit.models.sources.normalized import normalized
from robustkit.models.sources.trust import trusted
from robustkit.spec import build, is_path

SIDE = 256  # of the plain images that are shown to an image processor
WEIGHTS = "model.safetensors"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class Options:
    """What a spec may say: the `revision` of the repository."""

    revision: str = "main"


class HuggingFace:
    """Image classifiers of the hub or in a folder, as transformers' auto classes read them."""

    def names(self) -> Sequence[str]:
        """None: the hub's are too many, and change."""
        return ()

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode, preparing its images as its image processor does but for the size; and its card.

        Weights are read from safetensors only and no code of the repository's is run, unless it is trusted.

        Raises:
            UsageError: for an unknown option, a name that is not there, one without network, or no trained classifier.
        """
        wanted: Options = build(Options, options, f"hf/{name}")
        folder = Path(name).expanduser()
        local = folder.is_dir()
        if not local and (is_path(name) or name.count("/") != 1):
            raise UsageError(f"hf/{name}: there is no such folder; write hf/ORG/NAME or hf/./FOLDER")
        where = str(folder) if local else name
        arguments: dict[str, Any] = {
            "revision": wanted.revision,
            "local_files_only": local or cache.offline(),
            "trust_remote_code": trusted(),
        }
        network = _network(name, where, arguments)
        config = network.config
        view = _view_of(where, arguments, int(getattr(config, "num_channels", 3)))
        module: nn.Module = LogitsOnly(network, reversed_channels=view.reversed_channels)
        return normalized(module, view.mean, view.std) if view.mean else module, ModelCard(
            name=name,
            source="hf",
            classes=config.num_labels,
            input_shape=view.shape,
            mean=view.mean,
            std=view.std,
            sha256=_sha256(folder if local else None, name, wanted.revision),
            notes=view.notes,
        )


class LogitsOnly(nn.Module):
    """The logits of a transformers classifier, for RGB images whatever order its channels have."""

    def __init__(self, network: nn.Module, *, reversed_channels: bool) -> None:
        super().__init__()
        self.network = network
        self.reversed_channels = reversed_channels

    def forward(self, x: Images) -> Logits:
        """The logits."""
        logits: Logits = self.network(pixel_values=x.flip(1) if self.reversed_channels else x).logits
        return logits


class View(NamedTuple):
    """What an image processor makes of [0,1] images, besides resizing: (x − mean) / std, and the order of channels."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    reversed_channels: bool = False
    notes: str = ""


def _network(name: str, where: str, arguments: Mapping[str, Any]) -> Any:
    """The classifier with its weights in float32.

    Raises:
        UsageError: if it cannot be had, or its weights are not all there.
    """
    try:
        with quiet():
            network, found = transformers.AutoModelForImageClassification.from_pretrained(
                where,
                dtype=torch.float32,
                use_safetensors=None if trusted() else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they can be named below
                **arguments,
            )
    except Exception as error:  # a repository can be wrong in any way
        raise UsageError(f"hf/{name}: {_advice(error)}") from error
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise UsageError(
            f"hf/{name} has no trained weights for {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}, so its "
            "answers would be chance; name a model that was trained as an image classifier"
        )
    return network.eval()


def _view_of(where: str, arguments: Mapping[str, Any], channels: int) -> View:
    """What the image processor does, read off images of one colour: so no setting of any processor is missed.

    Raises:
        UsageError: if it cannot be had, or does more to an image than (x − mean) / std.
    """
    folder = Path(where)
    if folder.is_dir() and not any((folder / file).is_file() for file in PROCESSORS):
        return View(notes="no image processor is saved with it: [0,1] images go in as they are, unless mean= is given")
    try:
        with quiet():
            factory: Any = transformers.AutoImageProcessor
            processor = factory.from_pretrained(where, **arguments)
        black, grey, white = (_shown(processor, [level] * channels) for level in (0, 51, 255))
        first = _shown(processor, [255] + [0] * (channels - 1))
    except Exception as error:  # a repository can be wrong in any way
        raise UsageError(f"hf/{where}: its image processor cannot be used: {_advice(error)}") from error
    low, middle, high = black[1], grey[1], white[1]
    if not (np.allclose(middle, low + 0.2 * (high - low), atol=1e-4) and (high > low).all()):
        text = "its image processor does more to colours than scale and shift; wrap it: python/package.make"
        raise UsageError(f"hf/{where}: {text}")
    return View(
        mean=_rounded(-low / (high - low)),
        std=_rounded(1 / (high - low)),
        shape=black[0],
        reversed_channels=channels > 1 and bool(abs(first[1][-1] - low[-1]) > 1e-4),
    )


def _shown(processor: Any, colour: Sequence[int]) -> tuple[tuple[int, ...], Any]:
    """What a processor makes of an image of one colour: the shape of the result, and the colour in its middle."""
    image = np.broadcast_to(np.array(colour, dtype=np.uint8), (SIDE, SIDE, len(colour))).copy()
    with quiet():
        made = processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    return tuple(made.shape), made[:, made.shape[1] // 2, made.shape[2] // 2].double().numpy()


def _rounded(values: Any) -> tuple[float, ...]:
    """To six digits: an image processor computes in float32."""
    return tuple(float(f"{value:.6g}") + 0.0 for value in values)


def _sha256(folder: Path | None, name: str, revision: str) -> str:
    """The hash of the weights, if they are one file of safetensors."""
    file = folder / WEIGHTS if folder else huggingface_hub.try_to_load_from_cache(name, WEIGHTS, revision=revision)
    return checks.hashes(Path(file))[0] if isinstance(file, str | Path) and Path(file).is_file() else ""


def _advice(error: Exception) -> str:
    whole = " ".join(str(error).split())
    text = whole[:300]
    if "safetensors" in text:
        return f"{text} Weights in other formats are pickles, which can run code; if you trust its author, add --trust"
    if "trust_remote_code" in whole:
        return "it needs code of its repository's; if you trust its author, add --trust (trust=True in Python)"
    if "connect" in text or "cached" in text:
        return f"{text} Without network, give a folder that it was saved in: hf/./FOLDER"
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing; its settings are restored after."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
