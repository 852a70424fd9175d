"""Scenes: synthetic 32×32 colour images, a foreground shape before a background context, drawn from a seed.

No photograph is in them. The label is the shape. The background, a texture in two colours, agrees with the label with
a stated probability and is one of the nine others else; so a network may use it or not, which defenses that fuse
foreground and context need to be tried on. Image i is the same whatever `n`, and whatever is asked for beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustkit.api import Images, Labels
from robustkit.datasets.npz import Split
from robustkit.datasets.pair import as_rows
from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.spec import whole

SIZE = 32
Field = np.ndarray  # float64 (images, height, width), or what broadcasts with it
_Shape = Callable[[Field, Field], Any]  # a mask; numpy's own annotations lose that
_PIXELS = np.arange(SIZE) - (SIZE - 1) / 2  # of a row or column, from the centre


def _star(u: Field, v: Field) -> Any:
    angle = np.arctan2(u, -v)
    return np.hypot(u, v) < 0.68 + 0.32 * np.cos(5 * angle)


# Which points (u to the right, v down, in units of the shape's radius) belong to each shape.
SHAPES: dict[str, _Shape] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.7) & (v > 1.9 * abs(u) - 1),
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) < 0.22,
    "star": _star,
    "crescent": lambda u, v: (np.hypot(u, v) < 0.95) & (np.hypot(u - 0.45, v) > 0.7),
    "bar": lambda u, v: (abs(v) < 0.32) & (abs(u) < 1),
    "cross": lambda u, v: (np.minimum(abs(u - v), abs(u + v)) < 0.38) & (np.maximum(abs(u), abs(v)) < 0.8),
    "dots": lambda u, v: np.hypot(abs(u) - 0.58, v) < 0.4,
}
NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class Scenes:
    """Ten classes, 3×32×32, balanced: image i is of class i mod 10. Synthetic.

    Attributes:
        n: how many images there are.
        seed: of all random numbers; the splits have keys of their own, so that no image is in both.
        context: the probability that the background is the one of the image's class; 0.1 tells nothing.
        split: test or train.
        label: what y is: the class of the shape, or that of the background (`contexts`).
    """

    n: int = 10_000
    seed: int = 0
    context: float = 0.9
    split: Split = "test"
    label: Literal["shape", "context"] = "shape"

    name = "scenes"
    classes = 10
    class_names = NAMES

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "scenes: n"))
        object.__setattr__(self, "seed", whole(self.seed, "scenes: seed", 0))
        if not 0 <= self.context <= 1:
            raise UsageError(f"scenes: context={self.context} must be from 0 to 1")
        if self.label not in ("shape", "context"):
            raise UsageError(f"scenes: label is shape or context, not {self.label!r}")

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1], on 8 bits) and labels (int64) at `indices`.

        Raises:
            UsageError: for an index that is not in the dataset.
        """
        rows = as_rows(indices, self.n, self.name)
        if not len(rows):
            return torch.zeros(0, 3, SIZE, SIZE), rows
        inside = self._inside(rows)[:, None]
        image = np.where(inside, self._paint(rows)[:, :, None, None], self._background(rows))
        image += 0.1 * (self._draws(rows).at(4).uniform((3, SIZE, SIZE)).double().numpy() - 0.5)
        # Whole levels: the last bit of a sine may depend on its place in a batch, a level does not.
        x = torch.from_numpy(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).float() / 255
        return x, rows % self.classes if self.label == "shape" else self.contexts(indices)

    def masks(self, indices: Sequence[int]) -> Bool[Tensor, "batch height width"]:
        """Which pixels at `indices` are of the foreground shape."""
        return torch.from_numpy(self._inside(as_rows(indices, self.n, self.name)))

    def contexts(self, indices: Sequence[int]) -> Int[Tensor, " batch"]:
        """The class that the background at `indices` belongs to."""
        rows = as_rows(indices, self.n, self.name)
        agrees, other = self._draws(rows).at(1).uniform((2,)).double().unbind(1)
        shift = torch.where(agrees < self.context, 0, 1 + (other * 9).long())
        return (rows + shift) % self.classes

    def _draws(self, rows: Tensor) -> SampleDraws:
        return SampleDraws(key_of("scenes", self.seed, self.split), rows)

    def _inside(self, rows: Tensor) -> np.ndarray:
        """The shape's pixels: radius 7 to 11, up to 4 off the centre, turned by up to 0.25 rad."""
        draws = self._draws(rows).at(2).uniform((4,)).double().numpy()[:, :, None, None]
        radius, angle = 7 + 4 * draws[:, 0], 0.5 * (draws[:, 1] - 0.5)
        right = (_PIXELS[None, None, :] - 8 * (draws[:, 2] - 0.5)) / radius
        down = (_PIXELS[None, :, None] - 8 * (draws[:, 3] - 0.5)) / radius
        u, v = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
        return _chosen((rows % self.classes).numpy(), list(SHAPES.values()), u, v)

    def _paint(self, rows: Tensor) -> np.ndarray:
        """The shape's colour, which tells nothing of the class: any hue, either light or dark."""
        hue, light = self._draws(rows).at(3).uniform((2,)).double().numpy().T
        return _colour(hue, np.where(light < 0.5, 0.12, 0.92))

    def _background(self, rows: Tensor) -> np.ndarray:
        """A texture between two shades of the context's hue, at mid lightness; five textures, ten hues."""
        kind = self.contexts(rows.tolist()).numpy()
        draws = self._draws(rows).at(5).uniform((4,)).double().numpy()[:, :, None, None]
        across, down = _PIXELS[None, None, :], _PIXELS[None, :, None]
        rate, phase = 0.8 + 0.4 * draws[:, 0], 2 * np.pi * draws[:, 1:]
        waves: list[_Shape] = [
            lambda a, d: np.sin(rate * a + phase[:, 0]) + 0 * d,  # upright stripes
            lambda a, d: np.sin(rate * d + phase[:, 0]) + 0 * a,  # level stripes
            lambda a, d: np.sin(rate * (a + d) / 1.4 + phase[:, 0]),  # slanting stripes
            lambda a, d: np.sin(rate * a + phase[:, 0]) * np.sin(rate * d + phase[:, 1]),  # checks
            lambda a, d: np.sin(np.hypot(a, d) * rate + phase[:, 2]),  # circles
        ]
        texture = np.stack([wave(across, down) for wave in waves])[kind % 5, np.arange(len(kind))]
        hue = kind / 10 + 0.03 * (draws[:, 3, 0, 0] - 0.5)
        image: np.ndarray = _colour(hue, np.full(len(kind), 0.5))[:, :, None, None] * (1 + 0.25 * texture[:, None])
        return image


def _chosen(kind: np.ndarray, shapes: Sequence[_Shape], u: Field, v: Field) -> np.ndarray:
    """For each image, where its own kind of shape is."""
    found = np.zeros(u.shape, dtype=bool)
    for i, shape in enumerate(shapes):
        rows = kind == i
        found[rows] = shape(u[rows], v[rows])
    return found


def _colour(hue: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Red, green and blue of a hue (a turn is 1) around a grey of this lightness, (images, 3)."""
    turns = hue[:, None] + np.array([0, -1 / 3, 1 / 3])
    swing = np.where(light > 0.8, 0.25, 0.5)[:, None]
    colour: np.ndarray = light[:, None] * (0.75 + swing * np.cos(2 * np.pi * turns))
    return colour
