"""Training of a network behind a defense, for those that need networks of their own: k-wta, jump, thermometer.

What is trained is the network; it is loaded by itself, and put behind the defense again:

    robustkit train 'behind:defense=(k-wta:share=0.05)' --arch digits-cnn --data digits:split=train --out net
    robustkit eval --model trained/net --defense k-wta:share=0.05
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

    `through` names a stand-in that the defense declares, to train in its place. The accuracies that the training
    reports are those of the network alone, without its defense.
    """

    defense: str = ""
    through: str = ""

    attacked_eps: ClassVar[float] = 0.0

    def build(self, task: Task) -> nn.Module:
        """The architecture.

        Raises:
            UsageError: if there is no such defense, it cannot protect this network, or has no such stand-in.
        """
        network = task.architecture()
        self._trained(network)
        return network

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """One step down the cross-entropy."""
        network = self._trained(training.network).train()
        members = [] if self.through else capabilities.members(network)
        outputs = [member.train()(batch.x) for member in members] or [network(batch.x)]
        loss = rows.added([cross_entropy(logits, batch.y) for logits in outputs])
        training.update(loss)
        return {"loss": loss.detach(), "accuracy": accuracy(outputs[-1], batch.y)}

    def _trained(self, network: nn.Module) -> nn.Module:
        """The module whose loss is taken: it shares the network's weights."""
        if not self.defense:
            raise UsageError("behind: defense is needed, the spec of one: behind:defense=(k-wta:share=0.05)")
        parsed = spec.parse(self.defense)
        settings: Defense = spec.build(plugins.load("defenses", parsed.name), parsed.options, parsed.name)
        module = settings.protect(network)
        if not self.through:
            return module
        found = capabilities.surrogates(module)
        if self.through not in found:
            raise UsageError(f"behind: {spec.suggest(self.through, found, f'stand-in of {parsed.name}')}")
        return found[self.through]
