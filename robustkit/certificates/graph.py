"""A network as a graph of operations that can be bounded; `certificates.tracing` makes one of a module."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certificates.operations import Activation, Affine, MaxPool
from robustkit.certificates.regions import reach
from robustkit.errors import UsageError

Operation = Affine | Activation | MaxPool
KEPT = 2**24  # entries of the rows that a graph keeps of a node


class NotCertifiableError(UsageError):
    """A network holds what cannot be bounded; the message says what, and where."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, by the places of its inputs among the nodes; the input images are node 0 and have none."""

    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of a sample


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's operations in the order in which they can be computed; the last one gives the logits."""

    nodes: tuple[Node, ...]
    device: torch.device
    dtype: torch.dtype
    _reaches: dict[tuple[int, str], Tensor] = field(default_factory=dict, compare=False)
    _entries: dict[int, "Pulled"] = field(default_factory=dict, compare=False)

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.nodes[-1].shape[0]

    @property
    def work(self) -> list[float]:
        """What a pass from each node to the images costs, in passes of the whole network."""
        own = [n.operation.work if isinstance(n.operation, Affine) else 0 for n in self.nodes]
        before: list[set[int]] = []
        for place, node in enumerate(self.nodes):
            before.append({place}.union(*(before[i] for i in node.inputs)))
        whole = max(1, sum(own))
        return [sum(own[i] for i in places) / whole for places in before]

    @property
    def straight(self) -> list[bool]:
        """Whether each node is an affine function of the images."""
        found: list[bool] = []
        for node in self.nodes:
            found.append(
                node.operation is None or (isinstance(node.operation, Affine) and all(found[i] for i in node.inputs))
            )
        return found

    def values(self, x: Tensor) -> Tensor:
        """The logits of some images."""
        values: list[Tensor] = []
        for node in self.nodes:
            given = [values[i] for i in node.inputs]
            operation = node.operation
            if isinstance(operation, Activation):
                values.append(operation.function(*given))
            else:
                values.append(operation.value(*given) if operation is not None else x.to(self.dtype))
        return values[-1]

    def reach(self, place: int, norm: str, radius: float) -> Tensor:
        """By how much each entry of a `straight` node changes at most within an uncut ball, (1, …)."""
        if (place, norm) not in self._reaches:
            parts = torch.split(torch.arange(self.size(place), device=self.device), 256)
            found = [reach(self.entries(place, part).given[0], norm, 1.0) for part in parts]
            self._reaches[place, norm] = torch.cat(found).view(1, *self.nodes[place].shape)
        return radius * self._reaches[place, norm]

    def size(self, place: int) -> int:
        """How many entries a sample of a node has."""
        return int(torch.Size(self.nodes[place].shape).numel())

    def entries(self, place: int, which: Tensor) -> "Pulled":
        """Some entries of a node as functions of the activations, or images, that it is affine in.

        They are the same for every sample, so where they fit into memory all are kept.
        """
        if place not in self._entries:
            size = self.size(place)
            sources = self.through(place, torch.zeros(1, size, dtype=self.dtype, device=self.device)).given
            if size * sum(self.size(source) for source in sources) > KEPT:
                return self.through(place, _unit(which, size, self.dtype))
            every = torch.split(torch.arange(size, device=self.device), 256)
            parts = [self.through(place, _unit(part, size, self.dtype)) for part in every]
            given = {source: torch.cat([part.given[source] for part in parts]) for source in sources}
            added, sizes = torch.cat([part.added for part in parts]), torch.cat([part.size for part in parts])
            self._entries[place] = Pulled(given, added, sizes)
        kept = self._entries[place]
        return Pulled({source: a[which] for source, a in kept.given.items()}, kept.added[which], kept.size[which])

    def through(self, place: int, rows: Tensor) -> "Pulled":
        """Linear functions `rows` (rows, entries) of a node, pulled through the affine operations before it."""
        given: dict[int, Tensor] = {place: rows.reshape(len(rows), *self.nodes[place].shape)}
        ends: dict[int, Tensor] = {}
        added, size = rows.new_zeros(len(rows)), rows.new_zeros(len(rows))
        for here in range(place, -1, -1):
            a, node = given.pop(here, None), self.nodes[here]
            if a is None:
                continue
            if not isinstance(node.operation, Affine):
                ends[here] = a
                continue
            if node.operation.constant is not None:
                # Summed first over what the constant is the same for.
                one = (a.sum_to_size(len(a), *node.operation.constant.shape[1:]) * node.operation.constant).flatten(1)
                added, size = added + one.sum(1), size + one.detach().abs().sum(1)
            pulled = node.operation.pull(a, [self.nodes[i].shape for i in node.inputs])
            for i, one in zip(node.inputs, pulled, strict=True):
                given[i] = given[i] + one if i in given else one
        return Pulled(ends, added, size)


class Pulled(NamedTuple):
    """Rows as linear functions of some nodes (rows, …), what is added to them, and the absolute sum of that."""

    given: dict[int, Tensor]
    added: Tensor
    size: Tensor


def _unit(which: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(which, size).to(dtype)
