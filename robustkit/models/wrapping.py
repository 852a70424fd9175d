"""A network behind a step on its images: what sources and defenses put in front of it, inside the module."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.models import capabilities


class Prepared(nn.Module):
    """A network behind a step that prepares its images. What else the network offers the harness, this offers too.

    A step may be `randomised`, and offer `reseed(seed)`; each member and stand-in stands behind the same step.
    """

    def __init__(self, step: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.network = network
        self.randomised = capabilities.randomised(step) or capabilities.randomised(network)

    def forward(self, x: Images) -> Tensor:
        """The network's outputs for the prepared images."""
        logits: Tensor = self.network(self.step(x))
        return logits

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor | None]:
        """The outputs, and the members' (members, batch, classes) if the network offers them."""
        return capabilities.forward_with_members(self.network, self.step(x))

    def members(self) -> Sequence[nn.Module]:
        """The network's members, each behind the same step."""
        return [Prepared(self.step, member).eval() for member in capabilities.members(self.network)]

    def surrogates(self) -> dict[str, nn.Module]:
        """The network's stand-ins, each behind the same step."""
        found = capabilities.surrogates(self.network)
        return {name: Prepared(self.step, module).eval() for name, module in found.items()}

    def weights(self) -> Sequence[float]:
        """The probabilities of the network's members."""
        return capabilities.weights(self.network)

    def rejects(self, x: Images) -> Tensor | None:
        """What the network refuses of the prepared images."""
        return capabilities.rejects(self.network, self.step(x))

    def reset(self) -> None:
        """Let the step and the network forget, if they offer it."""
        for part in (self.step, self.network):
            capabilities.reset(part)

    def reseed(self, seed: int) -> None:
        """Reseed the step and the network, if they offer it."""
        for part in (self.step, self.network):
            capabilities.reseed(part, seed)
