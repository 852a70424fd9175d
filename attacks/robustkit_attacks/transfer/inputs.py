"""Input transforms: the gradient is averaged over transformed copies of the image, each pulled back to the image.

An oracle gives gradients at images only, so the chain rule of a transform is done here: its graph is recorded, the
oracle asked at the transformed image, and the answer pulled back. Each sample has transforms of its own. Lengths are
in units of eps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Draws, Images, ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import devices, rows
from robustkit_attacks.transfer import blocks
from robustkit_attacks.transfer.surrogates import Field


class Scene(NamedTuple):
    """What a transform may know: the clean images, the threat model and the reach of eps in one entry."""

    x: Images
    threat: ThreatModel
    reach: float


@runtime_checkable
class Transform(Protocol):
    """An input transform: frozen settings; `copies` is how many transformed images it makes of one."""

    @property
    def copies(self) -> int:
        """Gradients it asks for instead of one."""

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """The copy number `copy`, through which gradients flow back to x; of x's size."""


@dataclass(frozen=True, slots=True)
class DI:
    """A smaller image at a random place: with chance `prob`, enlarged by up to `rate`, padded, resized back, bilinear.

    Xie et al. 2019, arXiv:1803.06978. `rate` is at least one pixel.
    """

    prob: float = 0.5
    rate: float = 1.1

    copies: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.prob <= 1 or self.rate <= 1:
            raise UsageError("di: prob is a share, above 0 and at most 1; rate is above 1")

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """A_rows · x · A_columnsᵀ with matrices of each sample's own, so nothing depends on the batch."""
        use, share, down, right = draws.uniform((4,)).unbind(1)
        rows_map = _resizing(x.shape[2], self.rate, share, down).to(x.dtype)
        columns_map = _resizing(x.shape[3], self.rate, share, right).to(x.dtype)
        moved = torch.matmul(torch.matmul(rows_map[:, None], x), columns_map[:, None].transpose(2, 3))
        return rows.pick(use < self.prob, moved, x)


def _resizing(size: int, rate: float, share: Tensor, place: Tensor) -> Tensor:
    """(batch, size, size): resize to a random size, zero-pad at a random place, resize back."""
    most = max(int(rate * size), size + 1)
    inner = size + (share * (most - size)).floor()
    offset = (place * (most - inner + 1)).floor()
    position = torch.arange(most, device=share.device)[None] - offset[:, None]
    inside = (position >= 0) & (position < inner[:, None])
    enlarge = _bilinear((position + 0.5) * (size / inner[:, None]) - 0.5, size) * inside[..., None]
    whole = (torch.arange(size, device=share.device) + 0.5) * (most / size) - 0.5
    return torch.matmul(_bilinear(whole[None], most), enlarge)


def _bilinear(source: Tensor, size: int) -> Tensor:
    """The weight of each of `size` pixels at the (batch, n) places: (batch, n, size); the border's beyond it."""
    pixels = torch.arange(size, device=source.device)
    return (1 - (source.clamp(0, size - 1)[..., None] - pixels).abs()).clamp_min(0)


@dataclass(frozen=True, slots=True)
class TI:
    """Not a transform but what shifts would do: the gradient smoothed. Dong et al. 2019, arXiv:1904.02884.

    A Gaussian of `kernel` pixels whose edge is `nsig` standard deviations away: std (kernel − 1)/(2·nsig). The
    published 15 is for 299 pixels; smaller images want a smaller one.
    """

    kernel: int = 15
    nsig: float = 3.0

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0 or self.nsig <= 0:
            raise UsageError(f"ti: kernel is an odd number of pixels and nsig positive, not {self.kernel}, {self.nsig}")

    def weights(self) -> list[float]:
        """The kernel along one axis; both axes have the same."""
        half = self.kernel // 2
        values = [math.exp(-0.5 * (self.nsig * i / max(half, 1)) ** 2) for i in range(-half, half + 1)]
        return [value / sum(values) for value in values]

    def smooth(self, grad: Images) -> Images:
        """Each channel convolved, zeros beyond the border. Added one by one: a convolution's rounding may vary."""
        for dim in (2, 3):
            size, half = grad.shape[dim], self.kernel // 2
            padded = F.pad(grad, (0, 0, half, half) if dim == 2 else (half, half, 0, 0))
            grad = rows.added([padded.narrow(dim, i, size) * w for i, w in enumerate(self.weights())])
        return grad


@dataclass(frozen=True, slots=True)
class SI:
    """Scaled images x/2ⁱ, i < `scales`. Lin et al. 2020, arXiv:1908.06281, section 3.2."""

    scales: int = 5

    def __post_init__(self) -> None:
        if self.scales < 1:
            raise UsageError("si: scales must be positive")

    @property
    def copies(self) -> int:
        """One a scale."""
        return self.scales

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """One scale: x / 2^copy."""
        return x * 0.5**copy


@dataclass(frozen=True, slots=True)
class Admix:
    """Another picture admixed, x + `share`·x', then `scales` as in SI. Wang et al. 2021, arXiv:2102.00436.

    The paper takes x' from the batch, which would make a sample's result depend on its company. Here x' is the
    sample's own clean image, flipped and shifted around at random: the statistics of an image, not its content's place.
    """

    mixes: int = 3
    share: float = 0.2
    scales: int = 5

    def __post_init__(self) -> None:
        if self.mixes < 1 or self.scales < 1 or not 0 <= self.share < 1:
            raise UsageError("admix: mixes and scales must be positive, share from 0 to below 1")

    @property
    def copies(self) -> int:
        """One a mix and scale."""
        return self.mixes * self.scales

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """(x + share·x') / 2^scale, with an x' of each copy's own."""
        other = blocks.shifted(scene.x, draws.uniform((4,)))
        return (x + self.share * other) * 0.5 ** (copy % self.scales)


@dataclass(frozen=True, slots=True)
class SSA:
    """Noise in the spectrum: IDCT(DCT(x + N(0, (σ·eps)²)) ⊙ U(1−ρ, 1+ρ)). Long et al. 2022, arXiv:2207.05382.

    As published, the gradient at the transformed image is used as it is; `pull_back` applies the chain rule instead.
    """

    copies: int = 20
    rho: float = 0.5
    sigma: float = 1.0
    pull_back: bool = False

    def __post_init__(self) -> None:
        if self.copies < 1 or not 0 <= self.rho <= 1 or self.sigma < 0:
            raise UsageError("ssa: copies must be positive, rho from 0 to 1, sigma not negative")

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """One draw of the noise and the spectrum's scales."""
        noise = self.sigma * scene.reach * draws.normal(x.shape[1:]).to(x.dtype)
        scales = 1 + self.rho * (2 * draws.uniform(x.shape[1:], step=1).to(x.dtype) - 1)
        down, across = (cosines(size, x) for size in x.shape[2:])
        spectrum = torch.matmul(torch.matmul(down, x + noise), across.T)
        seen = torch.matmul(torch.matmul(down.T, spectrum * scales), across)
        return seen if self.pull_back else x + (seen - x).detach()


def cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix (frequency, position)."""
    steps = torch.arange(size, dtype=devices.widest(like.device), device=like.device)
    matrix = (math.pi / size * (steps + 0.5)[None] * steps[:, None]).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)


@dataclass(frozen=True, slots=True)
class SIA:
    """Each of blocks × blocks parts shifted, flipped, turned, dimmed or noised. Wang et al. 2023, arXiv:2309.14700."""

    copies: int = 20
    blocks: int = 3
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.blocks < 1 or self.noise < 0:
            raise UsageError("sia: copies and blocks must be positive, noise not negative")

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """One draw of the parts and of what is done to each."""
        return blocks.structure_kept(x, self.blocks, self.noise * scene.reach, scene.threat, draws)


@dataclass(frozen=True, slots=True)
class BSR:
    """Strips shuffled and turned by up to `angle` degrees, then strips of these. Wang et al. 2024, arXiv:2308.10299."""

    copies: int = 20
    blocks: int = 3
    angle: float = 24.0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.blocks < 1 or not 0 <= self.angle <= 180:
            raise UsageError("bsr: copies and blocks must be positive, angle from 0 to 180 degrees")

    def __call__(self, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """One draw of cuts, order and angles."""
        return blocks.shuffled(x, self.blocks, self.angle, draws)


TRANSFORMS: Mapping[str, type] = {"di": DI, "ti": TI, "si": SI, "admix": Admix, "ssa": SSA, "sia": SIA, "bsr": BSR}


@dataclass(frozen=True, slots=True)
class Chain:
    """Transforms applied one after the other, the first to the image; TI smooths the gradient at the end."""

    parts: Sequence[Transform | TI]

    @property
    def transforms(self) -> list[Transform]:
        """Those that change the image."""
        return [part for part in self.parts if not isinstance(part, TI)]

    @property
    def copies(self) -> int:
        """Gradients it asks for instead of one."""
        return math.prod(part.copies for part in self.transforms)

    def around(self, field: Field, scene: Scene) -> Field:
        """The field seen through the transforms: the mean over all copies, pulled back and smoothed."""
        if not self.parts:
            return field

        def seen(x: Images, draws: Draws) -> Images:
            if self.transforms:
                grad = rows.average([self._copy(field, x, copy, scene, draws) for copy in range(self.copies)])
            else:
                grad = field(x, draws)
            for part in self.parts:
                grad = part.smooth(grad) if isinstance(part, TI) else grad
            return grad

        return seen

    def _copy(self, field: Field, x: Images, copy: int, scene: Scene, draws: Draws) -> Images:
        """The gradient through one copy; each transform takes the digit of `copy` that counts its own."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            image, rest = leaf, copy
            for place, part in enumerate(self.transforms):
                rest, own = divmod(rest, part.copies)
                image = part(image, own, scene, draws.at(place).at(copy))
        inner = field(image.detach(), draws.at(len(self.parts)).at(copy))
        (grad,) = torch.autograd.grad(image, leaf, inner)
        return grad
