"""Stand-ins of a model that the harness makes: networks inside it, the model without steps, smoothed, by its features.

What stands around a network (rounding, noise, JPEG, a temperature, a decision, a backward pass that lies) may block
gradients; the network inside, fed what it is really fed, does not. Sources: BPDA, Athalye, Carlini, Wagner 2018,
arXiv:1802.00420, section 4.1; smoothing of shattered gradients, the same, section 3.1 and 4.3; matching features,
Tramèr, Carlini, Brendel, Madry 2020, arXiv:2002.08347.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.models import capabilities
from robustkit.numerics import rows
from robustkit.numerics.streams import SampleDraws, key_of

MOST_INSIDE = 3  # networks inside that are tried, the outermost first


class Watched(nn.Module):
    """A model with more stand-ins than it declares; else it is the model itself."""

    def __init__(self, model: nn.Module, stand_ins: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.randomised = capabilities.randomised(model)
        self._stand_ins = dict(stand_ins)  # no sub-modules: their weights are the model's own

    def forward(self, x: Images) -> Logits:
        """The model's outputs."""
        logits: Tensor = self.model(x)
        return logits

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor | None]:
        """The model's outputs and its members', if it offers them."""
        return capabilities.forward_with_members(self.model, x)

    def members(self) -> Sequence[nn.Module]:
        """The model's members."""
        return capabilities.members(self.model)

    def surrogates(self) -> dict[str, nn.Module]:
        """What the model declares, and the stand-ins besides."""
        return {**capabilities.surrogates(self.model), **self._stand_ins}

    def weights(self) -> Sequence[float]:
        """The probabilities of the model's members."""
        return capabilities.weights(self.model)

    def rejects(self, x: Images) -> Tensor | None:
        """What the model refuses."""
        return capabilities.rejects(self.model, x)

    def reset(self) -> None:
        """Let the model forget, if it offers that."""
        capabilities.reset(self.model)

    def reseed(self, seed: int) -> None:
        """Reseed the model, if it offers that."""
        capabilities.reseed(self.model, seed)


class Inside(nn.Module):
    """A network inside a model, with what the model really feeds it, and gradients as if that were the image (BPDA).

    Where the model calls it several times for an image, the mean of its logits.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Images) -> Logits:
        """The inner network's logits."""
        network = self.model.get_submodule(self.name)
        fed: list[Tensor] = []
        with torch.no_grad(), _hooked([(network, lambda inputs, _: fed.append(inputs[0].detach().clone()))]):
            self.model(x.clone())
        seen = [capabilities.answer(network, x + (u - x.detach()).to(x.dtype)) for u in fed if u.shape == x.shape]
        if not seen:
            raise RuntimeError(f"{self.name} is not fed images any more")
        return rows.average(seen)


class Without(nn.Module):
    """A model without some of its steps, which answer what they are fed; attacked at the image itself."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Images) -> Logits:
        """The logits without these steps."""
        handles = [
            self.model.get_submodule(name).register_forward_hook(lambda _, inputs, output: inputs[0])
            for name in self.names
        ]
        try:
            return capabilities.answer(self.model, x)
        finally:
            for handle in handles:
                handle.remove()


class Purified(nn.Module):
    """A model that purifies, by the mean over its steps, each with gradients as if it were the image (BPDA).

    The gradient is then averaged over the whole course of the purification: Croce et al. 2022, arXiv:2202.13711.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Logits:
        """The mean logits over the steps."""
        with torch.no_grad():
            steps = [one.detach().clone() for one in capabilities.purify(self.model, x.clone())]
        return rows.average([capabilities.classify(self.model, x + (one - x.detach())) for one in steps])


class Refusal(nn.Module):
    """What a model refuses, as a decision between accepting (0) and refusing (1); nothing, of one that never does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Logits:
        """Two logits an image, whose difference is the score."""
        score = capabilities.rejects(self.model, x.clone())
        if score is None:
            score = 0 * rows.flat(x).sum(1) - 1
        return torch.stack([torch.zeros_like(score), score], 1)


class Smoothed(nn.Module):
    """The mean outputs over fixed noisy copies of the image, noise of standard deviation `sigma`; deterministic."""

    def __init__(self, model: nn.Module, sigma: float, copies: int) -> None:
        super().__init__()
        self.model, self.sigma, self.copies = model, sigma, copies

    def forward(self, x: Images) -> Logits:
        """The mean outputs."""
        copies = torch.arange(self.copies, device=x.device)
        noise = SampleDraws(key_of("robustkit audit smoothing"), copies).normal(x.shape[1:]).to(x)
        return rows.average([capabilities.answer(self.model, (x + self.sigma * one).clamp(0, 1)) for one in noise])


class Features(nn.Module):
    """How near an image's features are to those of one image of each class, as logits: what a head hides, they show.

    The features are what the layer `name` is fed; `classes` decisions of the reference images give their classes.
    """

    def __init__(self, model: nn.Module, name: str, references: Images, decisions: Tensor, classes: int) -> None:
        super().__init__()
        self.model, self.name, self.classes = model, name, classes
        self._known = torch.unique(decisions)
        first = torch.stack([(decisions == one).nonzero()[0, 0] for one in self._known])
        with torch.no_grad():
            self._wanted = self._features(references)[first]
        distances = torch.cdist(self._wanted, self._wanted)
        self._unit = distances[distances > 0].square().mean().clamp_min(1e-12) if len(first) > 1 else 1.0

    def forward(self, x: Images) -> Logits:
        """Minus the squared distance to each class's reference, in their mean; far below for a class without one."""
        near = -(self._features(x)[:, None] - self._wanted).square().sum(2) / self._unit
        return torch.full_like(near[:, :1], -1e3).repeat(1, self.classes).index_copy(1, self._known, near)

    def _features(self, x: Images) -> Tensor:
        fed: list[Tensor] = []
        with _hooked([(self.model.get_submodule(self.name), lambda inputs, _: fed.append(inputs[0]))]):
            capabilities.answer(self.model, x)
        return fed[-1].flatten(1)


def head_inside(model: nn.Module, x: Images, classes: int) -> str:
    """The name of the last linear layer whose output has the shape of logits; empty if there is none."""
    found: list[str] = []

    def look(name: str) -> Any:
        return lambda inputs, output: found.append(name) if _shape(output) == (len(x), classes) else None

    parts = [(part, look(name)) for name, part in model.named_modules() if name and isinstance(part, nn.Linear)]
    with torch.no_grad(), _hooked(parts):
        model(x.clone())
    return found[-1] if found else ""


def networks_inside(model: nn.Module, x: Images, classes: int) -> list[str]:
    """The names of sub-modules that turn something of the images' shape into logits, the outermost first."""
    return _parts(model, x, (len(x), classes))[:MOST_INSIDE]


def steps_inside(model: nn.Module, x: Images) -> list[str]:
    """The names of sub-modules, none inside another, that turn something of the images' shape into as much.

    Those of torch.nn are a network's own layers.
    """
    found: list[str] = []
    for name in _parts(model, x, tuple(x.shape)):
        own = type(model.get_submodule(name)).__module__.startswith("torch.nn.")
        if not own and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    return found


def _parts(model: nn.Module, x: Images, shape: tuple[int, ...]) -> list[str]:
    """The names of sub-modules that turn something of the images' shape into this one, the outermost first."""
    found: dict[str, None] = {}

    def look(name: str) -> Any:
        def hook(inputs: tuple[Any, ...], output: Any) -> None:
            fed = inputs[0] if inputs else None
            if _shape(fed) == tuple(x.shape) and _shape(output) == shape:
                found[name] = None

        return hook

    parts = [(part, look(name)) for name, part in model.named_modules() if name]
    with torch.no_grad(), _hooked(parts):
        model(x.clone())
    return sorted(found, key=lambda name: name.count("."))


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


@contextmanager
def _hooked(parts: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Call a function with the inputs and the output of each part, whenever it is called."""
    handles = [
        part.register_forward_hook(lambda _, inputs, output, tell=tell: tell(inputs, output)) for part, tell in parts
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
