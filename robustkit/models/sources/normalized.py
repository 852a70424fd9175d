"""What is done to [0,1] images in front of a network, inside the module: normalisation and resizing, each once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkit.api import Images, ModelCard
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared
from robustkit.spec import listed, number, suggest

OPTIONS = ("mean", "std", "resize")  # that `load_model` takes for every source
PRESETS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
}


class Normalise(nn.Module):
    """(x − mean) / std, for each channel or with one value for all."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Images) -> Images:
        """The normalised images."""
        return (x - self.mean) / self.std


class Resize(nn.Module):
    """Bilinear resizing to (height, width) with antialiasing; gradients flow. Images of that size stay as they are."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Images) -> Float[Tensor, "batch channels rows columns"]:
        """The resized images."""
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)


def normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Prepared:
    """The network with its normalisation inside; mean and std hold a value for each channel, or one for all."""
    return Prepared(Normalise(mean, std), network).eval()


def core(module: nn.Module) -> nn.Module:
    """The network behind the steps that sources put in front of it: what a file of weights is about."""
    while isinstance(module, Prepared):
        module = module.network
    return module


def prepare(module: nn.Module, card: ModelCard, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
    """A source's network and card with the options `mean`, `std` and `resize` done, in front of all else resizing.

    A mean and std in the options replace those that the source put inside: a network normalises once.

    Raises:
        UsageError: for values that are none, or a network that normalises in a way that cannot be replaced.
    """
    if mean_std := parse_mean_std(options):
        mean, std = mean_std
        if isinstance(module, Prepared) and isinstance(module.step, Normalise):
            module = module.network
        elif card.mean:
            raise UsageError(f"{card.name} normalises inside already (mean {card.mean}); leave out mean= and std=")
        module, card = normalized(module, mean, std), replace(card, mean=mean, std=std)
    if text := options.get("resize"):
        module, card = Prepared(Resize(_size(text)), module).eval(), replace(card, input_shape=())
    return module, card


def parse_mean_std(options: Mapping[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The options `mean` and `std` as numbers, or None if neither is given; a preset as mean brings its std.

    Raises:
        UsageError: for one without the other, different numbers of values, a std that is not positive.
    """
    texts = {key: options[key] for key in ("mean", "std") if key in options}
    if not texts:
        return None
    if texts.get("mean") in PRESETS:
        texts.setdefault("std", texts["mean"])
    values = {key: _values(key, text) for key, text in texts.items()}
    if len(values) == 1:
        (key,) = values
        raise UsageError(
            f"{key}={texts[key]} alone is half a normalisation; give mean=0.49/0.48/0.45,std=0.25/0.24/0.26, "
            f"or a preset that is both: mean={'|'.join(PRESETS)}"
        )
    mean, std = values["mean"], values["std"]
    if len(mean) != len(std):
        raise UsageError(f"mean has {len(mean)} and std {len(std)} values; give both a value for each channel")
    if min(std) <= 0:
        raise UsageError(f"std={texts['std']} must be positive")
    return mean, std


def _values(key: str, text: str) -> tuple[float, ...]:
    if text in PRESETS:
        return PRESETS[text][0 if key == "mean" else 1]
    if text[:1].isalpha():
        raise UsageError(f"{key}: " + suggest(text, PRESETS, "preset"))
    try:
        return tuple(number(item) for item in (listed(text) if "+" in text else text.split("/")))
    except UsageError as error:
        raise UsageError(f"{key}={text} is no list of numbers; write {key}=0.49/0.48/0.45") from error


def _size(text: str) -> tuple[int, int]:
    height, by, width = text.partition("x")
    width = width if by else height
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UsageError(f"resize={text} is no image size; write resize=224, or height x width: resize=224x160")
    return int(height), int(width)
