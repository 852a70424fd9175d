"""What may be attacked in a model's place: every stand-in that the harness can make of it, by name.

In the order of what they catch for their cost: the network inside at the image itself, the model without its steps on
images, its backward pass rewritten, the network inside as it is really fed, the model smoothed. A stand-in that does
not decide as the model does on most images, or through which no gradient flows, is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from robustkit.api import Images, ModelFacts, ThreatModel
from robustkit.models import capabilities, standins
from robustkit.models.gradients import probed_gradient
from robustkit.models.operators import Operators, scan
from robustkit.models.oracle import Network
from robustkit.models.rewrites import Rewritten
from robustkit.numerics import devices, norms

AGREES = 0.5  # share of decisions that a stand-in must share with the model to be attacked
WIDE = (0.125, 2.0)  # of eps: noise of the smoothed stand-ins of a rough model, beside `USUAL`
USUAL = 0.5


@dataclass(frozen=True)
class Views:
    """What finds the stand-ins of a model on some images, at most a tile of them."""

    network: Network
    images: Images
    facts: ModelFacts
    threat: ThreatModel
    copies: int = 8

    @cached_property
    def operators(self) -> Operators:
        """What a forward pass is made of."""
        return scan(self._quiet(), self.images)

    def found(self, *, rough: bool = False, hidden_head: bool = False) -> dict[str, nn.Module]:
        """The stand-ins. `rough`: smoothed over wide noise too; `hidden_head`: by features too."""
        made = dict(self._copies())
        if hidden_head:
            made |= dict(self._by_features())
        kept = {name: module.eval() for name, module in made.items() if self._useful(module)}
        kept |= {f"inside {name}": standins.Inside(self._module, name).eval() for name in self._inside}
        if self.facts.differentiable and not self.network.probabilities:
            kept |= dict(self._smoothed((USUAL, *WIDE) if rough else (USUAL,)))
        return kept

    @property
    def _module(self) -> nn.Module:
        return self.network.module

    @cached_property
    def _tile(self) -> Tensor:
        return self.network.tiles(self.images[: self.network.tile])[0]

    @cached_property
    def _inside(self) -> list[str]:
        """Networks inside that are no members."""
        members = {id(member) for member in capabilities.members(self._module)}
        names = standins.networks_inside(self._module, self._tile, self.facts.classes)
        return [name for name in names if id(self._module.get_submodule(name)) not in members]

    def _copies(self) -> Iterator[tuple[str, nn.Module]]:
        for name in self._inside:
            yield f"plain {name}", self._module.get_submodule(name)
        if steps := standins.steps_inside(self._module, self._tile):
            yield f"without {' and '.join(steps)}", standins.Without(self._module, steps)
        if capabilities.purify(self._module, self._tile):
            yield "purified", standins.Purified(self._module)
        if self.operators.hides or not self.facts.differentiable:
            yield "rewritten", Rewritten(self._module, self.operators.written)

    def _by_features(self) -> Iterator[tuple[str, nn.Module]]:
        head = standins.head_inside(self._module, self._tile, self.facts.classes)
        if head:
            decisions = self._decisions(self.network)
            yield "features", standins.Features(self._module, head, self._tile, decisions, self.facts.classes)

    def _smoothed(self, shares: Sequence[float]) -> Iterator[tuple[str, nn.Module]]:
        scale = norms.widest(self.images.shape[1:], self.threat.norm)
        for share in shares:
            name = "smoothed" if share == USUAL else f"smoothed over {share:g} eps"
            yield name, standins.Smoothed(self._module, share * self.threat.eps / scale, self.copies).eval()

    def _useful(self, module: nn.Module) -> bool:
        """Whether it answers as the model does, by and large, and passes a gradient."""
        network = replace(self.network, module=module, probabilities=False)
        try:
            same = devices.wide(self._decisions(network) == self._decisions(self.network)).mean()
            flows = probed_gradient(network, self.images[: self.network.tile]).flow
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a part may take other images than the whole, or need what the whole prepares
            return False
        return float(same) >= AGREES and flows != "none"

    def _decisions(self, network: Network) -> Tensor:
        with torch.no_grad():
            logits = network.call(self._tile.clone()).logits
        return logits.argmax(1)

    def _quiet(self) -> Network:
        return self.network if self.network.noise is None else self.network.seeded("views")
