"""The fused network: two feature extractors, their features side by side, a linear head."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import devices
from robustkit_defenses.crossmax import Mean

Branch = Literal["foreground", "background"]
BRANCHES: tuple[Branch, ...] = ("foreground", "background")
Features = Float[Tensor, "batch _"]
_CLOSE = 1e-3  # of the largest feature: what another device or thread count may change


class Head(nn.Module):
    """Three linear classifiers: of both branches' features (foreground first), and of each branch's alone.

    Attributes:
        input_shape: (channels, height, width) of the images that it was fitted on.
        dropout: the share of features dropped from (foreground, background) in training mode.
        probe_foreground, probe_background: the features of `probe_images`, by which the branches are known again.
    """

    probe_foreground: Tensor
    probe_background: Tensor

    def __init__(
        self,
        widths: tuple[int, int],
        classes: int,
        input_shape: tuple[int, ...] = (),
        dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.joint, self.foreground, self.background = (_zero(width, classes) for width in (sum(widths), *widths))
        self.widths, self.classes, self.input_shape, self.dropout = widths, classes, input_shape, dropout
        for branch, width in zip(BRANCHES, widths, strict=True):
            self.register_buffer(f"probe_{branch}", torch.zeros(2, width))

    def forward(self, foreground: Features, background: Features) -> Logits:
        """The joint classifier's logits."""
        both = zip((foreground, background), self.dropout, strict=True)
        logits: Tensor = self.joint(torch.cat([F.dropout(z, share, self.training) for z, share in both], 1))
        return logits


class ContextFusion(nn.Module):
    """A classifier of [0,1] images from the features of two networks.

    Each extractor takes the same images and does its own normalising and resizing inside. With `freeze` no weight of an
    extractor asks for gradients, and training mode reaches the head only. The members are the branches alone, each
    behind its own head; the stand-ins are those two and the mean of their logits, so an adaptive attack takes each.

    Raises:
        UsageError: if an extractor does not take images of the head's `input_shape`, or its features are not the ones
            that the head was fitted on.
    """

    def __init__(self, foreground: nn.Module, background: nn.Module, head: Head, *, freeze: bool = True) -> None:
        super().__init__()
        self.foreground = foreground
        self.background = background
        self.head = head
        self.freeze = freeze
        self.randomised = capabilities.randomised(foreground) or capabilities.randomised(background)
        self.eval()
        for branch in BRANCHES:
            seen = probe(getattr(self, branch), head.input_shape, branch)
            _known(seen, getattr(head, f"probe_{branch}"), branch)
            if freeze:
                getattr(self, branch).requires_grad_(False)

    def train(self, mode: bool = True) -> "ContextFusion":
        """Training mode, of the head alone where the extractors are frozen."""
        super().train(mode)
        if self.freeze:
            self.foreground.eval()
            self.background.eval()
        return self

    def forward(self, x: Images) -> Logits:
        """The joint logits."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """The joint logits, and each branch's alone (2, batch, classes), from one pass of each extractor.

        Raises:
            UsageError: for images of another shape than the head was fitted on.
        """
        if tuple(x.shape[1:]) != self.head.input_shape:
            raise UsageError(
                f"the head was fitted on images of {_sizes(self.head.input_shape)}, these are {_sizes(x.shape[1:])}; "
                "choose data that fits, or fit a head on images of this size"
            )
        foreground, background = self.foreground(x.clone()), self.background(x)  # one may write into its input
        alone = torch.stack([self.head.foreground(foreground), self.head.background(background)])
        return self.head(foreground, background), alone

    def alone(self, branch: Branch) -> nn.Module:
        """One branch behind its own head."""
        return nn.Sequential(getattr(self, branch), getattr(self.head, branch)).eval()

    def members(self) -> Sequence[nn.Module]:
        """The foreground alone and the background alone."""
        return [self.alone(branch) for branch in BRANCHES]

    def surrogates(self) -> dict[str, nn.Module]:
        """Each branch alone by its name, and the mean of their logits."""
        return {**{branch: self.alone(branch) for branch in BRANCHES}, "mean": Mean(self).eval()}

    def reseed(self, seed: int) -> None:
        """Reseed the extractors, if they offer that."""
        for branch in BRANCHES:
            capabilities.reseed(getattr(self, branch), seed)


def _zero(width: int, classes: int) -> nn.Linear:
    """A linear layer of zeros; nothing is drawn."""
    layer = nn.Linear(width, classes, device="meta").to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def headless(classifier: nn.Module, what: str = "network") -> nn.Module:
    """A copy of a classifier that answers the input of its last linear layer: its features.

    That this layer's output is the classifier's is for the caller's head to prove: a head knows its features again.

    Raises:
        UsageError: if it has no linear layer.
    """
    layers = [name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(
            f"the {what} ({type(classifier).__name__}) has no linear layer whose input could be its features; "
            "give a network that ends in one"
        )
    features = copy.deepcopy(classifier).eval()
    if not layers[-1]:  # the classifier is that layer
        return nn.Identity()
    features.set_submodule(layers[-1], nn.Identity())
    return features


def probe_images(input_shape: Sequence[int]) -> Images:
    """Two fixed images, waves over all the pixels, by whose features a branch is known again."""
    if len(input_shape) != 3:
        raise UsageError(f"a head says for images of which shape it is: (channels, height, width), not {input_shape}")
    places = torch.arange(torch.Size(input_shape).numel(), dtype=torch.float64).view(1, *input_shape)
    return torch.cat([0.5 + 0.5 * torch.sin(places * rate) for rate in (0.37, 2.1)]).float()


@torch.no_grad()
def probe(extractor: nn.Module, input_shape: Sequence[int], branch: str) -> Features:
    """The features of the probe images.

    Raises:
        UsageError: if the extractor does not take them, or does not answer a row of features for each.
    """
    try:
        found = extractor(probe_images(input_shape).to(device_of(extractor)))
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign network raises on images that it was not made for
        if devices.out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the {branch} does not take images of {_sizes(input_shape)}: {first}; resize=… in its spec resizes them"
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(f"the {branch} must answer features of shape (2, width) for two images, not {given}")
    return found.cpu()


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU for one without any."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _known(seen: Features, expected: Features, branch: str) -> None:
    if seen.shape != expected.shape:
        raise UsageError(
            f"the {branch} has {seen.shape[1]} features, the head takes {expected.shape[1]}; "
            "give the network that the head was fitted on"
        )
    if not torch.allclose(seen.float(), expected.cpu(), rtol=_CLOSE, atol=_CLOSE * float(expected.abs().max())):
        raise UsageError(
            f"the {branch} is not the network that the head was fitted on (other features for the same images); "
            "give that one, normalised and resized as it was, or fit a head"
        )


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
