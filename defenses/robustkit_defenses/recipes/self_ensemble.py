"""A self-ensemble of one network behind a multi-resolution stack. Fort & Lakshminarayanan 2024, arXiv:2408.05446.

First the network learns noisy copies of an image at several resolutions, slowly; then, while it stays as it is, a
linear probe learns on each of some of its layers. Probes and network are joined by CrossMax. What that is worth stands
in the card of `crossmax`: in Linf 8/255 62 % (CIFAR-10) and 48 % (CIFAR-100) were claimed, and 11 and 14 % are left
under attacks that fit it (arXiv:2411.14834, version 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared
from robustkit.numerics import generators, rows
from robustkit.training.adversarial import cross_entropy
from robustkit.training.recipes import Batch, Task, Training, in_eval_mode
from robustkit_defenses.crossmax import CrossMax
from robustkit_defenses.layers import flattened, outputs_of
from robustkit_defenses.multires import MultiRes, Stack
from robustkit_defenses.probes import Probe, Probed

_SEEDS = 2**23  # what a float32 draw tells apart


@dataclass(frozen=True, slots=True)
class SelfEnsemble:
    """The network in the first `backbone_epochs` epochs, its probes in those after.

    The paper takes 6 to 10 epochs for the network and one for the probes, Adam at a rate of 3.3e-5 without weight decay
    (it says that at high rates the robustness goes), from a network trained on ImageNet: `init`, of the architecture
    that is named. Its first convolution is replaced, as there, by a new one that takes all copies.

    `layers` are modules whose outputs are probed; by default each ReLU module. Their images are averaged to
    `pool`×`pool` first (0: not at all, as in the paper). `k`: the k-th largest of the joined members, for each class;
    the stack's settings are those of `multires`, by default four resolutions from the image's own down, halved.

    Raises:
        UsageError: for numbers that make no sense.
    """

    init: str = ""
    backbone_epochs: int = 6
    layers: tuple[str, ...] = ()
    pool: int = 0
    k: int = 3
    preset: Literal["paper", "notebook"] = "paper"
    resolutions: tuple[int, ...] = ()
    noise: float = 0.2
    jitter: int = 3

    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.backbone_epochs < 0 or self.pool < 0:
            raise UsageError("self-ensemble: backbone_epochs and pool must not be negative")
        self._stack((1, 32, 32))
        CrossMax("kth", self.k)

    @property
    def attacked_eps(self) -> float:
        """0: it trains against noise only."""
        return 0.0

    def build(self, task: Task) -> nn.Module:
        """The stack, the network behind it, and its probes.

        Raises:
            UsageError: for a network without a convolution, a layer that is not there, fewer members than k.
        """
        backbone, stack = task.start(self.init), Stack(self._stack(task.image))
        _widen(backbone, len(stack.settings.resolutions))
        layers = self.layers or tuple(name for name, part in backbone.named_modules() if isinstance(part, nn.ReLU))
        if len(layers) + 1 < max(self.k, 2):
            raise UsageError(
                f"self-ensemble: {len(layers)} layers and the network make too few members for k={self.k}; "
                "name more layers: layers=(blocks.0)+(blocks.1)+(blocks.2)"
            )
        with torch.no_grad(), in_eval_mode(backbone):
            outputs, _ = self._tried(backbone, layers, stack(torch.zeros(1, *task.image)))
        probes = [Probe(flattened(value, self.pool).shape[1], task.classes, self.pool) for value in outputs.values()]
        return InTraining(stack, backbone, tuple(outputs), probes)

    def parts(self, network: "InTraining") -> Sequence[nn.Module]:
        """The network, and all probes; a step of an optimiser such as Adam moves each probe as if it were alone."""
        return [network.backbone, network.probes]

    def step(self, training: Training, batch: Batch) -> Mapping[str, Tensor]:
        """A step with the network, or one with each of the probes."""
        network: InTraining = training.network
        seed = int(float(batch.epoch_draws.at(batch.number).uniform((1,))[0, 0]) * _SEEDS)
        with generators.seeded(seed, batch.x.device), torch.no_grad():
            x = network.stack(batch.x)
        if batch.epoch < self.backbone_epochs:
            loss = cross_entropy(network.backbone(x), batch.y)
            training.update(loss, part=0)
            return {"loss": loss.detach()}
        if len(batch.y) < 2:  # no BatchNorm of one image
            return {"loss": torch.zeros((), device=x.device)}
        with torch.no_grad(), in_eval_mode(network.backbone):
            outputs, _ = outputs_of(network.backbone, network.layers, x, whole=False)
        each = [
            cross_entropy(probe(outputs[layer]), batch.y)
            for layer, probe in zip(network.layers, network.probes, strict=True)
        ]
        training.update(rows.added(each), part=1)
        return {"loss": rows.average(each).detach()}

    def result(self, network: "InTraining") -> nn.Module:
        """Probes and network, joined by CrossMax, behind the stack."""
        probes = cast("list[Probe]", list(network.probes))
        probed = Probed(network.backbone, network.layers, probes)
        return CrossMax("kth", self.k).protect(Prepared(network.stack, probed))

    def _tried(self, backbone: nn.Module, layers: Sequence[str], stacked: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        try:
            return outputs_of(backbone, layers, stacked)
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise UsageError(
                f"self-ensemble: with a wider first convolution the architecture still does not take stacked images of "
                f"{stacked.shape[1]} channels ({line}); choose another"
            ) from error

    def _stack(self, image: tuple[int, int, int]) -> MultiRes:
        own = min(image[1:])
        halved = tuple(own // by for by in (1, 2, 4, 8) if own // by > 1)
        return MultiRes(self.preset, self.resolutions or halved, noise=self.noise, jitter=self.jitter)


class InTraining(nn.Module):
    """The stack, the network behind it, the names of its probed layers in the order of its pass, and their probes."""

    def __init__(self, stack: Stack, backbone: nn.Module, layers: tuple[str, ...], probes: Sequence[Probe]) -> None:
        super().__init__()
        self.stack = stack
        self.backbone = backbone
        self.layers = layers
        self.probes = nn.ModuleList(probes)


def _widen(network: nn.Module, times: int) -> None:
    """Make the first convolution a new one that takes `times` as many channels, which are normalised as the first."""
    first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.groups > 1:
        raise UsageError(
            f"self-ensemble: {type(network).__name__} has no plain convolution to take the stacked images; "
            "choose an architecture that begins with one"
        )
    channels = first.in_channels
    first.in_channels *= times
    first.weight = nn.Parameter(first.weight.detach().repeat(1, times, 1, 1))
    first.reset_parameters()
    for part in network.modules():
        for name, value in [*part.named_buffers(recurse=False)]:
            if value.shape == (1, channels, 1, 1):  # a mean or std of each channel, taken off in front
                setattr(part, name, value.repeat(1, times, 1, 1))
