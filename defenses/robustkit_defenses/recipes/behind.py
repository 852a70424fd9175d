"""Training of a network behind a defense, for those that need networks of their own: k-wta, jump, thermometer.

    robustkit train 'behind:defense=(k-wta:share=0.05)' --arch digits-cnn --data digits:split=train --out net

What is trained is the network; what is saved and loaded is that network behind its defense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustkit import plugins, spec
from robustkit.api import Defense
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import rows
from robustkit.training.adversarial import accuracy, cross_entropy
from robustkit.training.recipes import Batch, OneNetwork, Task, Training


@dataclass(frozen=True, slots=True)
class Behind(OneNetwork):
    """Cross-entropy of the network behind `defense`; of one with members the sum of theirs.

    `through` names a stand-in that the defense declares, to train in its place.
    """

    defense: str = ""
    through: str = ""

    plain: ClassVar[bool] = False
    attacked_eps: ClassVar[float] = 0.0

    def build(self, task: Task) -> nn.Module:
        """The architecture.

        Raises:
            UsageError: if there is no such defense, it cannot protect this network, has no such stand-in, or is sealed.
        """
        network = task.architecture()
        self._trained(network)
        if not self.result(network).state_dict():
            raise UsageError(
                "behind: the defense shows no weights, so nothing could be saved; train it with dress=declared"
            )
        return network

    def result(self, network: nn.Module) -> nn.Module:
        """The network behind the defense."""
        return self._settings().protect(network)

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the cross-entropy."""
        network = self._trained(training.network).train()
        members = [] if self.through else capabilities.members(network)
        outputs = [member.train()(batch.x) for member in members] or [network(batch.x)]
        loss = rows.added([cross_entropy(logits, batch.y) for logits in outputs])
        training.update(loss)
        return {"loss": loss.detach(), "accuracy": accuracy(outputs[-1], batch.y)}

    def _settings(self) -> Defense:
        if not self.defense:
            raise UsageError("behind: defense is needed, the spec of one: behind:defense=(k-wta:share=0.05)")
        parsed = spec.parse(self.defense)
        settings: Defense = spec.build(plugins.load("defenses", parsed.name), parsed.options, parsed.name)
        return settings

    def _trained(self, network: nn.Module) -> nn.Module:
        """The module whose loss is taken: it shares the network's weights."""
        module = self._settings().protect(network)
        if not self.through:
            return module
        found = capabilities.surrogates(module)
        if self.through not in found:
            raise UsageError(f"behind: {spec.suggest(self.through, found, 'stand-in of this defense')}")
        return found[self.through]
