"""The input settings that the doctor tries: mean/std, pixel range, channel order and layout put in front of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustkit.api import Images, ModelCard
from robustkit.models.sources.normalized import PRESETS

CLOSE = 0.03  # mean/std that differ less are one setting as far as a few hundred images can tell
_NAMES = (("mean", "std"), ("_mean", "_std"), ("mu", "sigma"))


@dataclass(frozen=True, slots=True)
class MeanStd:
    """Normalisation (x − mean)/std of [0,1] images, one number a channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apart(self, other: "MeanStd") -> float:
        """The largest difference of any of the numbers."""
        pairs = zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True)
        return max(abs(a - b) for a, b in pairs)

    def close(self, other: "MeanStd") -> bool:
        """Whether no accuracy on a few hundred images could tell the two apart."""
        return self.apart(other) < CLOSE

    @property
    def numbers(self) -> str:
        """Mean and std as the options of a model's spec: a preset's name, or the numbers."""
        if self.name in PRESETS:
            return f"mean={self.name}"
        mean, std = ("/".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean={mean},std={std}"


def _preset(name: str, channels: int) -> MeanStd:
    mean, std = PRESETS[name]
    return MeanStd(name, mean * (channels // len(mean)), std * (channels // len(std)))


# What training pipelines use as a rule; the first two of each stand for the others in the first look.
COLOUR = (
    *(_preset(name, 3) for name in ("imagenet", "half", "cifar10", "cifar100")),
    MeanStd("cifar10 (std 0.2)", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    MeanStd("svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    MeanStd("imagenet (0–255, std 1)", (0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
)
GREY = (
    *(_preset(name, 1) for name in ("mnist", "half")),
    MeanStd("fashion-mnist", (0.2860,), (0.3530,)),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A change of the images before the model sees them: applied, bgr, transposed, undone, scale, in this order.

    The default changes nothing.
    """

    bgr: bool = False
    transposed: bool = False
    applied: MeanStd | None = None
    undone: MeanStd | None = None
    scale: float = 1.0

    def __call__(self, x: Images) -> Images:
        """The changed images."""
        if self.applied is not None:
            x = (x - _row(self.applied.mean, x)) / _row(self.applied.std, x)
        if self.bgr:
            x = x.flip(1)
        if self.transposed:
            x = x.transpose(2, 3)
        if self.undone is not None:
            x = x * _row(self.undone.std, x) + _row(self.undone.mean, x)
        return x * self.scale

    def __str__(self) -> str:
        parts = []
        if self.applied is not None and self.undone is not None:
            parts.append(f"{self.applied.name} mean/std in place of {self.undone.name}")
        elif self.applied is not None:
            parts.append(f"{self.applied.name} mean/std in front")
        elif self.undone is not None:
            parts.append(f"{self.undone.name} mean/std undone")
        parts += ["channels reversed (BGR)"] * self.bgr + ["height and width swapped"] * self.transposed
        parts += [f"pixels × {self.scale:g}" if self.scale > 1 else f"pixels / {1 / self.scale:g}"] * (self.scale != 1)
        return ", ".join(parts) or "as given"

    @property
    def replaces(self) -> bool:
        """Whether it puts one mean/std in place of another."""
        return self.applied is not None and self.undone is not None

    @property
    def advice(self) -> str:
        """What its being better says of the model, and what to do."""
        found = []
        if self.applied is not None and self.undone is not None:
            found.append(f"to normalise with the wrong numbers: use {self.applied.numbers}")
        elif self.applied is not None:
            found.append(f"to expect normalised input: put (x − mean)/std inside it; in a spec, {self.applied.numbers}")
        elif self.undone is not None:
            found.append(f"to normalise once too often: leave out one (x − mean)/std, that of {self.undone.numbers}")
        if self.bgr:
            found.append("to expect BGR: reverse the channels inside it")
        if self.transposed:
            found.append("to expect height and width swapped: transpose inside it, or mend the dataset")
        if self.scale > 1:
            found.append("to expect pixels in 0–255: multiply by 255 inside it")
        if self.scale < 1:
            found.append("to get pixels 255 times too large: divide by 255, or leave out a multiplication inside it")
        return "the model seems " + "; and ".join(found)


GIVEN = Setting()


def known(channels: int) -> Sequence[MeanStd]:
    """The usual mean/std for images of so many channels."""
    return {1: GREY, 3: COLOUR}.get(channels, ())


def first_look(channels: int, card: MeanStd | None, own: MeanStd | None) -> list[Setting]:
    """The settings to try on any model: few, each standing for its like.

    Args:
        channels: of the images.
        card: what the model's card declares, if it does.
        own: what the model itself does, where its modules show it.
    """
    outer = list(known(channels)[:2])
    if card is not None and not any(card.close(other) for other in outer):
        outer.insert(0, card)
    inner = [own] if own is not None else outer
    settings = [Setting(applied=a) for a in outer] + [Setting(undone=b) for b in inner]
    settings += [Setting(applied=a, undone=b) for a in outer for b in inner if not a.close(b)]
    settings += [Setting(scale=255.0), Setting(scale=1 / 255), Setting(transposed=True)]
    return settings + ([Setting(bgr=True), Setting(applied=COLOUR[-1])] if channels == 3 else [])


def like(setting: Setting, channels: int, own: MeanStd | None) -> list[Setting]:
    """Settings close to one that was clearly better, of which one may be better still; the other channel order too."""
    near: list[Setting] = []
    if setting.applied is not None:
        near += [replace(setting, applied=other) for other in known(channels)]
    if setting.undone is not None and own is None:
        near += [replace(setting, undone=other) for other in known(channels)]
    if setting == Setting(bgr=True):
        near += first_look(channels, None, own)
    if channels == 3:
        near += [replace(other, bgr=True) for other in (setting, *near)]
    return [other for other in dict.fromkeys(near) if other != setting]


def of_card(card: ModelCard | None, channels: int) -> MeanStd | None:
    """The mean/std that a card declares, unless it declares none or says that nothing is done."""
    if card is None:
        return None
    return _mean_std("the card's", card.mean, card.std, channels)


def inside(module: nn.Module, channels: int) -> list[MeanStd]:
    """The mean/std that the module's parts hold under the usual names (mean and std, mu and sigma), outermost first."""
    found = []
    for part in module.modules():
        for mean, std in _NAMES:
            pair = _mean_std("the model's", getattr(part, mean, None), getattr(part, std, None), channels)
            if pair is not None:
                found.append(pair)
    return found


def _mean_std(name: str, mean: object, std: object, channels: int) -> MeanStd | None:
    values = []
    for raw in (mean, std):
        if not isinstance(raw, Tensor | list | tuple | float | int):
            return None
        try:
            numbers = torch.as_tensor(raw, dtype=torch.float64).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            return None
        if len(numbers) not in (1, channels):
            return None
        values.append(tuple(numbers if len(numbers) == channels else numbers * channels))
    pair = MeanStd(name, *values)
    identity = all(value == 0 for value in pair.mean) and all(value == 1 for value in pair.std)
    return None if identity or any(value <= 0 for value in pair.std) else pair


def _row(values: Sequence[float], x: Images) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
