"""MeanSparse. Amini, Teymoorianfard, Ma, Houmansadr 2024, arXiv:2406.05927, section 3.

On CIFAR-10 in Linf 8/255, on an adversarially trained network of 73.71 %: 75.28 % claimed, 73.10 % left by APGD with
the identity behind the dead zone (RobustBench): a gain of 1.6 points becomes a loss of 0.6. Small gaps are its point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Dataset
from robustkit.errors import UsageError
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import with_activations


@dataclass(frozen=True, slots=True)
class MeanSparse:
    """Before each ReLU a value nearer to its channel's mean than `alpha` standard deviations becomes that mean.

    Means and deviations are of training images (`fitted`, see `fit`).
    """

    fitted: str = ""
    alpha: float = 0.3
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise UsageError(f"mean-sparse: alpha is at least 0, not {self.alpha:g}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network with dead zones; without them, and with the identity behind them, it stands in for itself."""
        known = files.load(self.fitted, "mean-sparse")

        def sparse(*, straight: bool) -> nn.Module:
            return with_activations(
                model, lambda i: _Sparse(known[f"mean-{i}"], self.alpha * known[f"sd-{i}"], straight=straight)
            ).to(files.device_of(model))

        return dressed(sparse(straight=False), self.dress, {"straight-through": sparse(straight=True), "bare": model})


class _Sparse(nn.Module):
    def __init__(self, mean: Tensor, width: Tensor, *, straight: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("width", width, persistent=False)
        self.straight = straight

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the values with the dead zone cut out."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean = self.get_buffer("mean").view(shape)
        cut = torch.where((x - mean).abs() < self.get_buffer("width").view(shape), mean.expand_as(x), x)
        return (cut.detach() + (x - x.detach()) if self.straight else cut).relu()


class _Seen(nn.Module):
    """ReLU that keeps what it received."""

    def forward(self, x: Tensor) -> Tensor:
        self.received = x.transpose(0, 1).flatten(1)
        return x.relu()


def fit(network: nn.Module, data: Dataset, images: int = 1000) -> dict[str, Tensor]:
    """Mean and standard deviation of each channel before each ReLU, over the first images."""
    seen: list[_Seen] = []

    def watch(i: int) -> nn.Module:
        seen.append(_Seen())
        return seen[-1]

    with torch.no_grad():
        with_activations(network, watch)(files.images_of(data, images)[0].to(files.device_of(network)))
    means = {f"mean-{i}": one.received.mean(1) for i, one in enumerate(seen)}
    return means | {f"sd-{i}": one.received.std(1) for i, one in enumerate(seen)}
