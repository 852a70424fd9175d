"""Error-correcting output codes. Verma, Swami 2019, NeurIPS 2019.

Tramèr et al. 2020 (arXiv:2002.08347) take the last layer off; Zhang, Tondi, Lv, Barni (arXiv:2003.11855) find small
changes and high confidence. tanh saturates, and what is below zero is cut: both pass nothing back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit_defenses.fallen.dress import Dress, dressed


@dataclass(frozen=True, slots=True)
class ECOC:
    """An ensemble's outputs, side by side, are bits of a code: class k's share is relu(⟨code_k, tanh(sharpness·bits)⟩).

    Each member must have as many outputs, `bits` together and a power of two or a multiple: rows of Hadamard matrices.
    For networks trained so (`train behind:defense=ecoc,through=decoded`).
    """

    classes: int = 10
    sharpness: float = 5.0
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 16 or self.sharpness <= 0:
            raise UsageError("ecoc: classes is from 2 to 16, sharpness positive")

    def protect(self, model: nn.Module) -> nn.Module:
        """The members' outputs, decoded; without tanh and cut they stand in."""
        networks = capabilities.members(model) or [model]
        decoded = _Decoded(networks, self, plain=True)
        return dressed(_Decoded(networks, self, plain=False), self.dress, {"decoded": decoded})


class _Decoded(nn.Module):
    def __init__(self, networks: list[nn.Module], settings: ECOC, *, plain: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.settings = settings
        self.plain = plain

    def forward(self, x: Images) -> Logits:
        """The logarithm of each class's share, −20 where it has none; where `plain`, ⟨code_k, bits⟩."""
        bits = torch.cat([network(x) for network in self.networks], 1)
        code = codes(self.settings.classes, bits.shape[1]).to(bits)
        if self.plain:
            logits: Logits = bits @ code.T / bits.shape[1] ** 0.5
            return logits
        found = ((self.settings.sharpness * bits).tanh() @ code.T).relu()
        shares: Logits = found / found.sum(1, keepdim=True).clamp_min(1e-9)
        return (shares + 2e-9).log()


def codes(classes: int, bits: int) -> Tensor:
    """A row of ±1 for each class: rows of a Hadamard matrix of order 16, repeated with the rows turned.

    Raises:
        UsageError: for bits that are no multiple of 16.
    """
    if bits % 16:
        raise UsageError(f"ecoc: the members have {bits} outputs together, which are bits of codes; 16 or 32 … are due")
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    hadamard = torch.ones(1, 1)
    for _ in range(4):
        hadamard = torch.kron(hadamard, two)
    return torch.cat([hadamard.roll(turn, 0)[:classes] for turn in range(bits // 16)], 1)
