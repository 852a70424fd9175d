"""Fewer levels for each pixel. Xu, Evans, Qi 2018, "Feature squeezing", arXiv:1704.01155, section II."""

from dataclasses import dataclass

from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared
from robustkit_defenses.straight_through import StraightThrough


@dataclass(frozen=True, slots=True)
class BitDepth:
    """Pixels are rounded to 2^`bits` levels; gradients pass the rounding unchanged (BPDA)."""

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise UsageError(f"bit-depth: bits is from 1 to 16, not {self.bits}")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the rounding."""
        return Prepared(StraightThrough(self.rounded), model).eval()

    def rounded(self, x: Images) -> Images:
        """Images in [0,1] on the nearest of the levels."""
        most = float(2**self.bits - 1)
        return (x * most).round() / most
