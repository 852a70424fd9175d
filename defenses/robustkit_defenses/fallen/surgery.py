"""Networks taken apart: other activations, or trunk and head. The parts share the weights of the network."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from robustkit.errors import UsageError


@contextlib.contextmanager
def searching() -> Iterator[None]:
    """Gradients inside a pass, also one that is made without any; clone what comes from outside."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def shared_copy(network: nn.Module) -> nn.Module:
    """A network of its own structure with the very weights of the other."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def with_activations(network: nn.Module, make: Callable[[int], nn.Module]) -> nn.Module:
    """The network with `make(i)` in place of its i-th ReLU, from 0, in the order in which they are defined.

    Raises:
        UsageError: if it has no ReLU that is a module.
    """
    changed = shared_copy(network)
    places = [
        (parent, name) for parent in changed.modules() for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]  # fmt: skip
    if not places:
        raise UsageError(
            f"{type(network).__name__} has no activations of type nn.ReLU as sub-modules, which this defense replaces; "
            "give a network such as digits-cnn, which has"
        )
    for number, (parent, name) in enumerate(places):
        setattr(parent, name, make(number))
    return changed


def trunk_and_head(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """All layers of a plain stack up to its last activation or flattening, and the rest, its linear head.

    Raises:
        UsageError: if it is no nn.Sequential that ends with a linear layer.
    """
    head = network[-1] if isinstance(network, nn.Sequential) else None
    if not isinstance(network, nn.Sequential) or not isinstance(head, nn.Linear):
        raise UsageError(
            f"{type(network).__name__} is no nn.Sequential that ends with nn.Linear, whose last features this defense "
            "takes; give a network such as digits-cnn"
        )
    return network[:-1], head
