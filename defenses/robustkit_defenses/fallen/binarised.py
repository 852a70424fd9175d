"""Networks with weights and activations of ±1. Galloway, Taylor, Moussa 2018, arXiv:1711.00449.

Gupta and Ajanthan (arXiv:2003.13511) divide the logits by a temperature and succeed nearly always: the sums are not
scaled, so that logits lie in the hundreds and cross-entropy vanishes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import with_activations


@dataclass(frozen=True, slots=True)
class Binarised:
    """sign(x) in place of each ReLU, and the signs of the weights of all layers but the first and last.

    Gradients pass a sign where |x| ≤ 1. Logits are `scale` times the last layer's: 1000 is what no scaling of the sums
    amounts to. For networks trained so (`train behind:defense=binarised,through=soft`).
    """

    scale: float = 1000.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise UsageError(f"binarised: scale must be positive, not {self.scale:g}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The binarised network; the same without the scale, with tanh's slope on the way back, stands in for it."""
        stand_ins = {"soft": _Scaled(_binary(model, soft=True), 1.0)}
        return dressed(_Scaled(_binary(model, soft=False), self.scale), self.dress, stand_ins)


def _binary(model: nn.Module, *, soft: bool) -> nn.Module:
    network = with_activations(model, lambda i: _Sign(soft=soft))
    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if any(child is layer for layer in layers[1:-1]):
                setattr(parent, name, _SignWeights(child))
    return network


class _Sign(nn.Module):
    def __init__(self, *, soft: bool) -> None:
        super().__init__()
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        """±1, with the slope of tanh(2x) or of a clipped identity on the way back."""
        slope = (2 * x).tanh() if self.soft else x.clamp(-1, 1)
        return torch.where(x >= 0, 1.0, -1.0).to(x) + (slope - slope.detach())


class _SignWeights(nn.Module):
    """A convolution or a linear layer by the signs of its weights; its sums are divided by √inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight
        size = weight[0].numel() ** 0.5
        signs = torch.where(weight >= 0, 1.0, -1.0).to(weight) + (weight - weight.detach())
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, signs / size, layer.bias, layer.stride, layer.padding)
        return F.linear(x, signs / size, layer.bias)


class _Scaled(nn.Module):
    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network = network
        self.scale = scale

    def forward(self, x: Images) -> Logits:
        """The scaled logits."""
        logits: Logits = self.scale * self.network(x)
        return logits
