"""Broken defenses of many kinds around honest networks, which an audit must not believe; and honest ones, which it may.

Each is a known trick. CALIBRATION set the audit's limits; HELD_OUT was judged once, after they were frozen
(`reports/audit/README.md`). Where `sealed`, the network inside is no sub-module: it cannot be found and attacked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import kit
from robustkit.models.sources import load_model

EPS = 0.15  # of digits, Linf: the bare network keeps about a tenth, see the report


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Around(nn.Module):
    """A network between something done to images and something done to logits; `sealed` hides it from the harness."""

    def __init__(self, network, before=lambda x: x, after=lambda z: z, *, sealed=False):
        super().__init__()
        self.before, self.after = before, after
        self.hidden = [network]
        if not sealed:
            self.network = network

    def forward(self, x):
        return self.after(self.hidden[0](self.before(x)))


class FlipsGradients(torch.autograd.Function):
    """The identity, whose backward pass has the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class ScramblesGradients(torch.autograd.Function):
    """The identity, whose backward pass has random signs, the same at each call."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        signs = (torch.rand(grad.shape[1:], generator=seeded(3)) - 0.5).sign()
        return grad * signs


def rounded(levels):
    return lambda x: (x * (levels - 1)).round() / (levels - 1)


def one_hot(z):
    return F.one_hot(z.argmax(1), z.shape[1]).to(z.dtype)


def noisy(sigma):
    return lambda x: x + sigma * torch.randn_like(x)


def saw(phase):
    """From −½ to ½ and back at once: its slope always says up."""
    return phase - phase.detach().floor() - 0.5


def wave(phase):
    """From −½ to ½: its slope says one thing here and the opposite a little further."""
    return 0.5 * (2 * torch.pi * phase).sin()


class Shattered(nn.Module):
    """Steep teeth added to each logit, along a direction of its own: small in value, all there is of the gradient."""

    def __init__(self, network, shape=wave, period=2e-3, height=0.6):
        super().__init__()
        self.hidden = [network]
        self.shape, self.period, self.height = shape, period, height

    def forward(self, x):
        z = self.hidden[0](x)
        along = torch.randn(x[0].numel(), z.shape[1], generator=seeded(4))
        phase = x.flatten(1) @ along / self.period
        return z + self.height * self.shape(phase)


@cache
def dct_matrix():
    k = torch.arange(8, dtype=torch.float64)
    basis = (torch.pi * (2 * k[None] + 1) * k[:, None] / 16).cos() * 0.5
    basis[0] /= 2**0.5
    return basis.float()


def dct_quantised(step):
    """JPEG's step on one 8×8 block: coarser for higher frequencies, without a backward pass."""
    table = step * (1 + torch.arange(8)[:, None] + torch.arange(8)[None])

    def apply(x):
        basis = dct_matrix()
        spectrum = basis @ (x - 0.5) @ basis.T
        return (basis.T @ ((spectrum / table).round() * table) @ basis + 0.5).clamp(0, 1)

    return apply


@cache
def digits_nets(n=4):
    """Small networks for the digits that differ in their seed."""
    from robustkit.datasets.digits import digits
    from robustkit.models.sources.zoo.architectures import ARCHITECTURES
    from tools.zoo.first import Plan, train

    build = ARCHITECTURES["digits-cnn"]
    plans = [Plan(epochs=12, seed=seed) for seed in range(1, n + 1)]
    return [train(build, digits("train"), plan, lambda event: None).requires_grad_(False) for plan in plans]


class CrossMax(nn.Module):
    """The median over networks of logits less their maxima (arXiv:2408.05446), that declares nothing."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        z = torch.stack([network(x) for network in self.networks])
        z = z - z.amax(2, keepdim=True)
        z = z - z.amax(0, keepdim=True)
        return z.median(0).values


class Mean(nn.Module):
    """The mean of networks: what CrossMax would be if it were honest."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return torch.stack([network(x) for network in self.networks]).mean(0)


def thermometer(levels):
    """Thermometer code of each pixel (Buckman et al., ICLR 2018) and back: comparisons, which have no gradient."""
    thresholds = (torch.arange(levels - 1) + 0.5) / (levels - 1)

    def apply(x):
        return (x.unsqueeze(-1) > thresholds).to(x.dtype).mean(-1)

    return apply


class WinnersTakeAll(nn.Module):
    """After each activation only the largest share of values of each image stays (k-WTA, arXiv:1905.10510)."""

    def __init__(self, network, share=0.25):
        super().__init__()
        self.layers, self.share = nn.ModuleList(network.children()), share

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                rows = x.flatten(1)
                kth = rows.topk(max(1, int(self.share * rows.shape[1])), dim=1).values[:, -1:]
                x = torch.where(rows >= kth, rows, 0.0).view_as(x)
        return x


def resized(x):
    """A random size from nine tenths to eleven tenths, shifted by up to half a pixel."""
    scale = 0.9 + 0.2 * torch.rand(())
    shift = (torch.rand(2) - 0.5) / 8
    theta = torch.stack([torch.stack([scale, 0 * scale, shift[0]]), torch.stack([0 * scale, scale, shift[1]])])
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def jpeg(quality):
    from robustkit_defenses.jpeg import Jpeg

    compress = Jpeg(quality).compress
    return lambda x: compress(x.detach())


@dataclass(frozen=True)
class Broken:
    """A broken defense: what makes it, and what makes the network that it pretends to protect, on which images."""

    name: str
    make: Callable[[], nn.Module]
    bare: Callable[[], nn.Module]
    eps: float = EPS
    images: str | Callable[[Sequence[int]], tuple[Tensor, Tensor]] = "digits"

    def data(self, n):
        """A data spec, or the first n images and labels."""
        return self.images if isinstance(self.images, str) else self.images(range(n))


@dataclass(frozen=True)
class Honest:
    """An honest network: of the kit if `model` is None, else what makes it; on its first `n` test images."""

    name: str
    eps: float
    n: int
    model: Callable[[], nn.Module] | None = None
    defense: str = ""
    norm: str = "linf"

    def make(self):
        return kit.model(self.name) if self.model is None else self.model()

    def data(self):
        if self.model is not None:
            return "digits"
        return kit.cifar10(range(self.n)) if self.name.startswith("cifar10") else kit.mnist(range(self.n))


def base() -> nn.Module:
    return load_model("digits-cnn")[0].requires_grad_(False)


def of_base(name, before=lambda x: x, after=lambda z: z, *, sealed=False):
    return Broken(name, lambda: Around(base(), before, after, sealed=sealed).eval(), base)


def temperature(z: Tensor) -> Tensor:
    return (z * 300).softmax(1).clamp_min(1e-30).log()


CALIBRATION = (
    of_base("rounded pixels, no BPDA", rounded(4)),
    of_base("one-hot decisions", after=one_hot),
    of_base("logits ×1000", after=lambda z: 1000 * z),
    of_base("undeclared noise", noisy(0.15)),
    of_base("backward pass with the wrong sign (sealed)", FlipsGradients.apply, sealed=True),
    Broken("CrossMax of four digits networks", lambda: CrossMax(digits_nets()).eval(), lambda: Mean(digits_nets())),
    Broken("saw teeth on the logits (sealed)", lambda: Shattered(base(), saw).eval(), base),
    Broken("waves on the logits (sealed)", lambda: Shattered(base()).eval(), base),
    of_base("DCT quantisation, no BPDA (sealed)", dct_quantised(0.08), sealed=True),
    of_base("scores rounded to whole numbers (sealed)", after=torch.round, sealed=True),
)
HELD_OUT = (
    of_base("detached from the image", lambda x: x.detach(), lambda z: z.detach()),
    of_base("thermometer code (sealed)", thermometer(5), sealed=True),
    Broken("winners take all", lambda: WinnersTakeAll(base()).eval(), base),
    of_base("undeclared random resizing", resized),
    of_base("undeclared dropout of pixels (sealed)", lambda x: F.dropout(x, 0.15), sealed=True),
    of_base("temperature 1/300 (sealed)", after=temperature, sealed=True),
    of_base("logits clipped to ±6 (sealed)", after=lambda z: z.clamp(-6, 6), sealed=True),
    of_base("backward pass with random signs (sealed)", ScramblesGradients.apply, sealed=True),
    of_base("JPEG 40, no BPDA", jpeg(40)),
)

HONEST_CALIBRATION = (
    Honest("digits-cnn", EPS, 128, base),
    Honest("digits-cnn", 8 / 255, 128, base),
    Honest("digits-cnn-at", EPS, 128, lambda: load_model("digits-cnn-at")[0]),
    Honest("digits-cnn", EPS, 128, base, defense="bit-depth:bits=4"),
    Honest("cifar10_cnn_a_adv", 2 / 255, 64),
    Honest("mnist_conv_small_std", 0.1, 64),
)
HONEST_HELD_OUT = (
    Honest("cifar10_cnn_a_adv4", 2 / 255, 64),
    Honest("cifar10_cnn_a_std", 2 / 255, 64),
    Honest("cifar10_conv_small_pgd2", 2 / 255, 64),
    Honest("cifar10_kw_base_2px", 2 / 255, 64),
    Honest("cifar10_marabou_small", 2 / 255, 64),
    Honest("cifar10_vit_ibp_3_3_8", 2 / 255, 64),
    Honest("mnist_kw_01", 0.1, 64),
    Honest("mnist_lenet5_std", 0.1, 64),
    Honest("mean of four digits networks", EPS, 128, lambda: Mean(digits_nets()).eval()),
    Honest("digits-cnn-at", 0.5, 128, lambda: load_model("digits-cnn-at")[0], norm="l2"),
    Honest("cifar10_resnet2b_adv2", 2 / 255, 64),
    Honest("cifar10_sri_resnet_a_adv4", 4 / 255, 32),
)
