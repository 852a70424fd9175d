"""What bounds need of a network's operations: affine ones, monotone activations, max-pooling.

`Affine` gives its value, what a box's radius becomes, and its transpose; `Activation` two lines that enclose it on an
interval; `MaxPool` likewise for its windows. Nothing here knows a graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Affine:
    """Σ Wᵢ xᵢ + constant. `linear` is without the constant, `absolute` with |W|; `constant` (1, …) may broadcast.

    `transpose` takes (rows, …) of the output to one of each input; without it autograd does.
    """

    linear: Linear
    absolute: Linear
    constant: Tensor | None = None
    transpose: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    work: int = 0  # multiplications of a forward pass, a sample

    def value(self, *inputs: Tensor) -> Tensor:
        """The operation itself."""
        out = self.linear(*inputs)
        return out if self.constant is None else out + self.constant

    def pull(self, a: Tensor, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """The rows `a` of the output as rows of each input, whose samples have these shapes."""
        if self.transpose is not None:
            return self.transpose(a)
        with torch.enable_grad():
            inputs = [a.new_zeros((len(a), *shape), requires_grad=True) for shape in shapes]
            out = self.linear(*inputs)
            found = torch.autograd.grad(out, inputs, a.expand_as(out), create_graph=a.requires_grad)
        return found if a.requires_grad else tuple(one.detach() for one in found)


class Lines(NamedTuple):
    """Two lines that enclose an activation on an interval: `low` from below, `high` from above, each slope and rise.

    Where `free` is true, any lower slope from 0 to 1 through the origin is sound.
    """

    low: Tensor
    low_rise: Tensor
    high: Tensor
    high_rise: Tensor
    free: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """A monotone function of each entry; `lines` encloses it on [l, u]."""

    name: str
    function: Callable[[Tensor], Tensor]
    lines: Callable[[Tensor, Tensor], Lines]
    kinks: tuple[float, ...] = (0.0,)  # between which the function is linear; empty where it is curved

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        """Where a tighter interval would make the enclosure tighter."""
        if not self.kinks:
            return high - low > 1e-6
        return torch.stack([(low < kink) & (high > kink) for kink in self.kinks]).any(0)


def leaky(slope: float) -> Activation:
    """ReLU, and LeakyReLU with a slope of 0 to 1 on the left."""

    def lines(low: Tensor, high: Tensor) -> Lines:
        crossing = (low < 0) & (high > 0)
        rise = high - low
        upper = torch.where(
            crossing, (high - slope * low) / rise.where(crossing, 1.0), (low >= 0).to(low) * (1 - slope) + slope
        )
        over = torch.where(crossing, low * (slope - upper), 0.0)  # through (low, slope·low), a little above is sound
        lower = torch.where(crossing, (high > -low).to(low) * (1 - slope) + slope, upper)
        return Lines(lower, torch.zeros_like(lower), upper, over, crossing if slope == 0 else None)

    return Activation("ReLU" if slope == 0 else "LeakyReLU", lambda x: F.leaky_relu(x, slope), lines)


def cut(least: float, most: float) -> Activation:
    """Clamping: the identity where nothing is cut, else constants."""

    def lines(low: Tensor, high: Tensor) -> Lines:
        inside = ((low >= least) & (high <= most)).to(low)
        return Lines(inside, (1 - inside) * low.clamp(least, most), inside, (1 - inside) * high.clamp(least, most))

    return Activation("Clamp", lambda x: x.clamp(least, most), lines, (least, most))


def _curve(name: str, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Activation:
    """A function that is convex left of 0 and concave right of it, and symmetric about its value there."""

    def lines(low: Tensor, high: Tensor) -> Lines:
        up, up_rise = _from_above(low, high, function, slope)
        middle = 2 * function(torch.zeros(1, dtype=low.dtype, device=low.device))
        down, down_rise = _from_above(-high, -low, function, slope)  # f(z) = middle − f(−z)
        return Lines(down, middle - down_rise, up, up_rise)

    return Activation(name, function, lines, ())


def _from_above(
    low: Tensor, high: Tensor, function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Slope and rise of a line above such a function on [low, high].

    Where it is convex, the chord; else a tangent at a point right of 0 that lies above (low, f(low)). The line is
    lifted by what it lacks at `low`, so that a search that was not finished is still sound.
    """
    left, right = torch.zeros_like(low), high.clamp_min(0)
    target = function(low)
    for _ in range(30):  # the tangent at d passes above (low, f(low)) from some d on
        d = (left + right) / 2
        above = function(d) + slope(d) * (low - d) >= target
        left, right = torch.where(above, left, d), torch.where(above, d, right)
    at = torch.where(low >= 0, (low + high) / 2, right)
    tangent = slope(at)
    rise = function(at) - tangent * at
    wide = high - low > 1e-6
    chord = torch.where(wide, (function(high) - target) / (high - low).where(wide, 1.0), 0.0)
    # Where the tangent at `high` itself does not pass above (low, f(low)), the chord lies above the function.
    straight = (high <= 0) | ((low < 0) & (function(high) + slope(high) * (low - high) < target))
    k = torch.where(straight, chord, tangent)
    rise = torch.where(straight, torch.maximum(target - chord * low, function(high) - chord * high), rise)
    rise = torch.maximum(rise, target - k * low)
    return torch.where(wide, k, 0.0), torch.where(wide, rise, function(high))


SIGMOID = _curve("Sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)))
TANH = _curve("Tanh", torch.tanh, lambda x: 1 - torch.tanh(x).square())


class Windows(NamedTuple):
    """Of each window of a max-pooling the entry with the largest lower end, and what the others add from above.

    `at` are that entry's places in the flat plane; where `sure`, it is the largest; else `most` bounds the window.
    """

    at: Tensor
    sure: Tensor
    most: Tensor


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Max-pooling of planes (batch, channels, height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def value(self, x: Tensor) -> Tensor:
        """The operation itself."""
        return F.max_pool2d(x, self.kernel, self.stride, self.padding)

    def windows(self, low: Tensor, high: Tensor) -> Windows:
        """What is known of each window when its entries lie in [low, high]."""
        _, at = F.max_pool2d(low, self.kernel, self.stride, self.padding, return_indices=True)
        plane = torch.arange(low.shape[2] * low.shape[3], dtype=low.dtype, device=low.device)
        place = self._unfolded(plane.view(1, 1, *low.shape[2:]).expand(low.shape[0], low.shape[1], -1, -1), -1.0)
        ends = self._unfolded(high, -torch.inf)
        least = low.flatten(2).gather(2, at.flatten(2)).view_as(at)
        others = ends.masked_fill(place == at[:, :, None].to(place), -torch.inf).amax(2)
        return Windows(at, least >= others, ends.amax(2))

    def _unfolded(self, x: Tensor, fill: float) -> Tensor:
        """(batch, channels, entries of a window, rows, columns)."""
        (height, width), (down, right) = self.padding, self.stride
        padded = F.pad(x, (width, width, height, height), value=fill)
        planes = padded.unfold(2, self.kernel[0], down).unfold(3, self.kernel[1], right)
        return planes.flatten(4).movedim(4, 2)


def convolution(
    weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, shape: Sequence[int], out: Sequence[int],
) -> Affine:  # fmt: skip
    """A convolution of samples of `shape`; its transpose is torch's own, or where that is slow a product and a fold."""
    settings = (list(stride), list(padding), list(dilation), False, [0] * (weight.dim() - 2), groups)

    def transpose(a: Tensor) -> tuple[Tensor, ...]:
        like = a.new_zeros(1).expand(len(a), *shape)
        found = torch.ops.aten.convolution_backward(a.contiguous(), like, weight, None, *settings, [True, False, False])
        return (found[0],)

    def folded(a: Tensor) -> tuple[Tensor, ...]:
        columns = weight.flatten(1).T @ a.flatten(2)
        return (
            F.fold(columns, tuple(shape[1:]), tuple(weight.shape[2:]), tuple(dilation), tuple(padding), tuple(stride)),
        )

    size = weight.abs()
    few = weight.dim() == 4 and groups == 1 and shape[0] <= 4 and not weight.is_cuda
    return Affine(
        lambda x: torch.ops.aten.convolution(x, weight, None, *settings),
        lambda x: torch.ops.aten.convolution(x, size, None, *settings),
        None if bias is None else bias.view(1, -1, *[1] * (weight.dim() - 2)),
        folded if few else transpose,
        work=weight[0].numel() * _numel(out),
    )


def matrix(weight: Tensor, bias: Tensor | None) -> Affine:
    """X Wᵀ + b over the last axis; `weight` is (outputs, inputs)."""
    size = weight.abs()
    constant = None if bias is None else bias.view(1, -1)
    return Affine(lambda x: x @ weight.T, lambda x: x @ size.T, constant, lambda a: (a @ weight,), work=weight.numel())


def scaled(scale: Tensor, shift: Tensor | None) -> Affine:
    """Scale · x + shift, both (1, …) and broadcast over the samples."""
    return Affine(lambda x: x * scale, lambda x: x * scale.abs(), shift, lambda a: (a * scale,))


def added(signs: Sequence[float]) -> Affine:
    """± x₁ ± x₂ of equal shapes."""
    return Affine(
        lambda *xs: sum(sign * x for sign, x in zip(signs, xs, strict=True)),
        lambda *xs: sum(abs(sign) * x for sign, x in zip(signs, xs, strict=True)),
        None,
        lambda a: tuple(sign * a for sign in signs),
    )


def reshaped(shape: Sequence[int], out: Sequence[int]) -> Affine:
    """The same entries in another shape."""
    return Affine(lambda x: x.reshape(len(x), *out), lambda x: x.reshape(len(x), *out), None,
                  lambda a: (a.reshape(len(a), *shape),))  # fmt: skip


def averaging(linear: Linear) -> Affine:
    """A linear operation none of whose coefficients is negative: averages, sums, slices, padding, joining."""
    return Affine(linear, linear)


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
