"""What a module may offer besides `forward`, and one function each that asks for it.

An attack that knows a network's members, stand-ins or randomness attacks it as what it is. A module offers such a thing
by having the attribute or the method of a protocol below; nothing is inherited or registered. What does not answer as
documented (a sub-module called `members`, a method that wants more arguments or answers something else) is another
library's attribute of the same name, and no capability: then a function answers as for a module without it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustkit.api import Images, Logits


@runtime_checkable
class Randomised(Protocol):
    """Says whether two calls on the same images differ. One that does not say so is found out, and reported for it."""

    randomised: bool


@runtime_checkable
class Reseeds(Protocol):
    """Has generators of its own besides torch's, numpy's and `random`'s, which are seeded for each call anyway."""

    def reseed(self, seed: int) -> None:
        """Fix all random numbers of the next call."""


@runtime_checkable
class HasMembers(Protocol):
    """An ensemble: classifiers of the same images, which an attack may take one by one."""

    def members(self) -> Sequence[nn.Module]:
        """The classifiers, in a fixed order."""


@runtime_checkable
class HasSurrogates(Protocol):
    """Declares stand-ins for itself, through which gradients flow and mean something (BPDA)."""

    def surrogates(self) -> Mapping[str, nn.Module]:
        """Classifiers of the same images by name, in a fixed order."""


@runtime_checkable
class AnswersWithMembers(Protocol):
    """Tells the members' outputs that its own were made of, from one pass; it is called in place of `forward`."""

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor | None]:
        """The outputs, and each member's (members, batch, classes); None where a network behind it offers none."""


@runtime_checkable
class AnswersFirstMembers(Protocol):
    """Tells the first members' outputs by as much of a pass as these take."""

    def first_members(self, x: Images, n: int) -> Tensor:
        """The outputs of the first n members (members, batch, classes)."""


@runtime_checkable
class Resets(Protocol):
    """Keeps a state that its answers depend on, and can forget it: it is asked to before every call."""

    def reset(self) -> None:
        """Forget all that calls have left."""


@runtime_checkable
class HasWeights(Protocol):
    """A mixture: each answer is that of one member, drawn with these probabilities. It has `members()` too."""

    def weights(self) -> Sequence[float]:
        """The members' probabilities, in their order; they sum to 1."""


@runtime_checkable
class HasCost(Protocol):
    """Says what an answer of it takes, where that is more than a pass of the network inside."""

    def cost(self) -> tuple[float, float]:
        """Passes of the network inside that one answer takes, and one gradient, of which a backward pass is two."""


@runtime_checkable
class Purifies(Protocol):
    """Changes its images in steps before it classifies them."""

    def purify(self, x: Images) -> Sequence[Images]:
        """The images after each step; the last are those that are classified."""

    def classify(self, x: Images) -> Logits:
        """The logits of images as they are."""


@runtime_checkable
class Rejects(Protocol):
    """May refuse to decide. A threshold is in the score, and fixed before any attack."""

    def rejects(self, x: Images) -> Tensor:
        """A score for each image, (batch,): above zero where it is refused. Gradients may flow through it."""


def randomised(module: nn.Module) -> bool:
    """Whether a module says that it is randomised."""
    return getattr(module, "randomised", False) is True


def reseed(module: nn.Module, seed: int) -> None:
    """Reseed a module that has generators of its own."""
    _answer(module, Reseeds.reseed, seed)


def members(module: nn.Module) -> list[nn.Module]:
    """The members of an ensemble; empty for any other module."""
    found = _answer(module, HasMembers.members)
    listed = list(found) if isinstance(found, Sequence | nn.ModuleList) else []
    return listed if _all_modules(listed) else []


def surrogates(module: nn.Module) -> dict[str, nn.Module]:
    """The stand-ins that a module declares, by name; empty where it declares none."""
    found = _answer(module, HasSurrogates.surrogates)
    named = dict(found.items()) if isinstance(found, Mapping | nn.ModuleDict) else {}
    return named if _all_modules(named.values()) and all(isinstance(name, str) for name in named) else {}


def reset(module: nn.Module) -> None:
    """Let a module forget all that calls have left, if it offers that."""
    _answer(module, Resets.reset)


def weights(module: nn.Module) -> list[float]:
    """The probabilities of a mixture's members; empty for any other module."""
    found = _answer(module, HasWeights.weights)
    listed = [float(one) for one in found] if isinstance(found, Sequence | Tensor) else []
    sound = all(one >= 0 for one in listed) and abs(sum(listed) - 1) < 1e-6
    return listed if listed and sound and len(listed) == len(members(module)) else []


def cost(module: nn.Module) -> tuple[float, float] | None:
    """What a module says that an answer and a gradient of it take, in passes of the network inside."""
    match _answer(module, HasCost.cost):
        case (int() | float() as answering, int() | float() as climbing) if answering >= 1 and climbing >= 1:
            return float(answering), float(climbing)
    return None


def purify(module: nn.Module, x: Images) -> list[Images]:
    """The images after each step of a module that purifies them; empty for any other."""
    if not callable(getattr(module, Purifies.classify.__name__, None)):
        return []
    found = _answer(module, Purifies.purify, x)
    listed = list(found) if isinstance(found, Sequence | Tensor) else []
    return listed if all(isinstance(one, Tensor) and one.shape == x.shape for one in listed) else []


def classify(module: nn.Module, x: Images) -> Logits:
    """The logits of a module that purifies, of images as they are."""
    logits: Logits = _answer(module, Purifies.classify, x)
    return logits


def rejects(module: nn.Module, x: Images) -> Tensor | None:
    """The score of each image, above zero where it is refused; None of a module that refuses nothing."""
    found = _answer(module, Rejects.rejects, x)
    return found if isinstance(found, Tensor) and found.shape == x.shape[:1] else None


def answer(module: nn.Module, x: Images) -> Logits:
    """One of several answers of modules to the same images, or of one module: nothing is shared among them.

    A module may write into its input, or answer from a buffer that its next call fills anew.
    """
    logits: Logits = module(x.clone()).clone()
    return logits


def forward_with_members(module: nn.Module, x: Images) -> tuple[Logits, Tensor | None]:
    """The outputs of a module, and its members' (members, batch, classes) where it tells them."""
    match _answer(module, AnswersWithMembers.forward_with_members, x):
        case (Tensor() as logits, None):
            return logits, None
        case (Tensor() as logits, Tensor() as each) if each.shape[1:] == logits.shape:
            return logits, each
    return module(x), None


def member_outputs(module: nn.Module, x: Images, first: int | None = None) -> Tensor:
    """The outputs of an ensemble's members, or of the first ones: (members, batch, classes), as cheaply as it offers.

    That is as much of one pass as they take (`first_members`), one pass (`forward_with_members`), or a pass of each.
    """
    if first is not None:
        some = _answer(module, AnswersFirstMembers.first_members, x, first)
        if isinstance(some, Tensor):
            return some
    match _answer(module, AnswersWithMembers.forward_with_members, x):
        case (Tensor(), Tensor() as each):
            return each[:first]
    return torch.stack([answer(member, x) for member in members(module)[:first]])


def _answer(module: nn.Module, method: Callable[..., Any], *arguments: object) -> Any:
    """What the module's method of this name answers; None where it has no method that takes these arguments."""
    offered = getattr(module, method.__name__, None)
    if isinstance(offered, nn.Module) or not callable(offered):
        return None
    try:
        inspect.signature(offered).bind(*arguments)
    except (TypeError, ValueError):  # ValueError: a builtin that does not tell
        return None
    return offered(*arguments)


def _all_modules(found: Any) -> bool:
    return all(isinstance(item, nn.Module) for item in found)
