"""Bounds of a network on regions of its images: intervals forward, lines backward (IBP and CROWN).

Sources: IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN: Zhang et al. 2018, arXiv:1811.00866, over general graphs as Xu
et al. 2020, arXiv:2002.12920. Slopes are adaptive: a crossing ReLU's lower line has slope 1 where its interval reaches
further right than left.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certificates.graph import Graph, Pulled
from robustkit.certificates.operations import Activation, Affine, Lines, MaxPool, Windows
from robustkit.certificates.regions import Pick, Region, picker

OUTWARD = 1e-6  # of an intermediate bound, relative to what it was summed from
BUDGET = (
    5_000.0  # passes of the network that an image may take for intermediate bounds; a layer beyond it keeps intervals
)
IN_MEMORY = 2**21  # entries of a chunk of rows at the widest node, on CPU; a GPU takes as many as fill it
IN_MEMORY_CUDA = 2**27


class Box(NamedTuple):
    """The ends of each entry of a node, (batch, …)."""

    low: Tensor
    high: Tensor


class Bound(NamedTuple):
    """Lower bounds of some rows, the sum of the absolute contributions that each was made of."""

    low: Tensor
    size: Tensor


@dataclass(slots=True)
class Bounds:
    """What is known of a batch: the box of each node, and the lines of each activation.

    `work` (batch) is what that took, in passes of the whole network, forward or backward, of one row.
    """

    graph: Graph
    region: Region
    boxes: dict[int, Box] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)
    windows: dict[int, Windows] = field(default_factory=dict)
    work: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        self.work = torch.zeros(len(self.region.x), dtype=torch.float64, device=self.region.x.device)

    def at(self, rows: Tensor) -> "Bounds":
        """The same of some of the samples."""
        return Bounds(
            self.graph, self.region.at(rows),
            {place: Box(*(end[rows] for end in box)) for place, box in self.boxes.items()},
            {place: _lines_at(lines, rows) for place, lines in self.lines.items()},
            {place: Windows(*(t[rows] for t in windows)) for place, windows in self.windows.items()},
        )  # fmt: skip


def intervals(graph: Graph, region: Region) -> Bounds:
    """Interval bounds of every node."""
    return _propagated(Bounds(graph, region), refine=False)


def crown(graph: Graph, region: Region) -> Bounds:
    """The same with a backward bound of every entry that an interval leaves loose before an activation."""
    return _propagated(Bounds(graph, region), refine=True)


def margins(bounds: Bounds, y: Tensor, *, stop_at_boxes: bool = False) -> Bound:
    """Lower bounds of logit y minus each other logit, (batch, classes − 1); `stop_at_boxes` is the interval bound.

    The last layer is folded into the differences: each is bounded as one function.
    """
    others = graph_rows(bounds.graph.classes, y, bounds.graph.dtype)
    n, rows, classes = others.shape
    owner = torch.arange(n, device=y.device).repeat_interleave(rows)
    pulled = bounds.graph.through(len(bounds.graph.nodes) - 1, others.view(-1, classes))
    found = backward(bounds, pulled, owner, stop_at_boxes=stop_at_boxes)
    return Bound(found.low.view(n, rows), found.size.view(n, rows))


def graph_rows(classes: int, y: Tensor, dtype: torch.dtype) -> Tensor:
    """The differences of logit y to each other one, (batch, classes − 1, classes)."""
    eye = torch.eye(classes, dtype=dtype, device=y.device)
    every = torch.arange(classes - 1, device=y.device)
    other = every[None] + (every[None] >= y[:, None]).long()
    return eye[y][:, None] - eye[other]


def backward(
    bounds: Bounds, rows: Pulled, owner: Tensor, *, stop_at_boxes: bool = False,
    slopes: Mapping[int, Tensor] | None = None,
) -> Bound:  # fmt: skip
    """Lower bounds of linear functions of some nodes, each on the region of the sample at `owner`.

    `slopes` replace the lower slopes of free activations, a row each. With `stop_at_boxes` the first activation that is
    met counts by its box.
    """
    graph, pick = bounds.graph, picker(owner)
    given, low, size = dict(rows.given), rows.added, rows.size
    while given:
        here = max(given)  # whatever depends on it has been pulled through
        a, operation = given.pop(here), graph.nodes[here].operation
        if operation is None:
            least = bounds.region.least(a, pick)
            low, size = low + least.bound, size + least.size
            continue
        if stop_at_boxes:
            box = bounds.boxes[here]
            part = a * torch.where(a > 0, pick(box.low), pick(box.high))
            low, size = low + _total(part), size + _total(part.abs())
            continue
        (source,) = graph.nodes[here].inputs
        if isinstance(operation, Activation):
            pulled, added = _through(a, bounds.lines[here], pick, None if slopes is None else slopes.get(here))
        else:
            pulled, added = _through_pool(a, bounds.windows[here], pick, graph.nodes[source].shape)
        before = graph.through(source, pulled)
        low, size = low + _total(added) + before.added, size + _total(added.detach().abs()) + before.size
        for i, one in before.given.items():
            given[i] = given[i] + one if i in given else one
    return Bound(low, size)


def _propagated(bounds: Bounds, *, refine: bool) -> Bounds:
    graph, region = bounds.graph, bounds.region
    straight, work = graph.straight, graph.work
    for here, node in enumerate(graph.nodes):
        operation = node.operation
        boxes = [bounds.boxes[i] for i in node.inputs]
        if operation is None:
            bounds.boxes[here] = Box(region.lower, region.upper)
        elif isinstance(operation, Affine):
            bounds.boxes[here] = _affine(bounds, here, operation, boxes, ball=straight[here])
        else:
            (source,) = node.inputs
            if refine and not straight[source] and isinstance(graph.nodes[source].operation, Affine):
                _refined(bounds, source, operation, work[source])
            box = bounds.boxes[source]
            if isinstance(operation, Activation):
                bounds.lines[here] = operation.lines(*box)
                bounds.boxes[here] = Box(*(operation.function(end) for end in box))
            else:
                bounds.windows[here] = operation.windows(*box)
                bounds.boxes[here] = Box(*(operation.value(end) for end in box))
    bounds.work += 2
    return bounds


def _affine(bounds: Bounds, here: int, operation: Affine, boxes: list[Box], *, ball: bool) -> Box:
    centre = operation.value(*((box.low + box.high) / 2 for box in boxes))
    radius = operation.absolute(*((box.high - box.low) / 2 for box in boxes))
    radius = radius + OUTWARD * (centre.abs() + radius)
    low, high = centre - radius, centre + radius
    region = bounds.region
    if ball and region.norm != "linf":  # what is affine in the images is bounded by the ball, too
        middle = _at_centre(bounds, here)
        within = bounds.graph.reach(here, region.norm, region.radius) * (1 + OUTWARD) + OUTWARD * middle.abs()
        low, high = torch.maximum(low, middle - within), torch.minimum(high, middle + within)
    return Box(low, high)


def _at_centre(bounds: Bounds, place: int) -> Tensor:
    """The value of a straight node at the centres of the balls."""
    node = bounds.graph.nodes[place]
    if not isinstance(node.operation, Affine):
        return bounds.region.x
    return node.operation.value(*(_at_centre(bounds, i) for i in node.inputs))


def _refined(bounds: Bounds, source: int, operation: Activation | MaxPool, work: float) -> None:
    """Bound the loose entries of a node backward, from below and above, and keep the better of old and new."""
    box = bounds.boxes[source]
    shape = box.low.shape
    loose = _loose(operation, box).flatten(1)
    cost = 2 * work * loose.sum(1)
    loose &= (bounds.work + cost <= BUDGET)[:, None]
    owner, entry = loose.nonzero(as_tuple=True)
    low, high = (end.flatten(1).clone() for end in box)
    for rows in _chunks(bounds.graph, source, owner):
        at, own = entry[rows], owner[rows]
        up = bounds.graph.entries(source, at)
        down = Pulled({i: -a for i, a in up.given.items()}, -up.added, up.size)
        below, above = backward(bounds, up, own), backward(bounds, down, own)
        low[own, at] = torch.maximum(low[own, at], below.low - OUTWARD * (1 + below.size))
        high[own, at] = torch.minimum(high[own, at], -above.low + OUTWARD * (1 + above.size))
    bounds.work += torch.where(bounds.work + cost <= BUDGET, cost, 0.0)
    # Rounding may turn the ends of a very narrow interval around; both were sound, so either may give.
    bounds.boxes[source] = Box(low.view(shape), torch.maximum(low, high).view(shape))


def _loose(operation: Activation | MaxPool, box: Box) -> Tensor:
    if isinstance(operation, Activation):
        return operation.loose(*box)
    wide = box.high - box.low > 1e-6
    if (
        operation.kernel != operation.stride
        or any(operation.padding)
        or any(size % part for size, part in zip(box.low.shape[2:], operation.kernel, strict=True))
    ):
        return wide
    doubtful = torch.where(operation.windows(*box).sure, torch.inf, operation.value(box.low))
    return wide & (
        box.high > doubtful.repeat_interleave(operation.kernel[0], 2).repeat_interleave(operation.kernel[1], 3)
    )


def _chunks(graph: Graph, place: int, owner: Tensor) -> Iterator[Tensor]:
    """The rows in parts that fit into memory; on CPU of one sample each, whose lines then need no copies."""
    widest = max(int(torch.Size(node.shape).numel()) for node in graph.nodes[: place + 1])
    every = torch.arange(len(owner), device=owner.device)
    if owner.is_cuda:
        parts: Iterable[Tensor] = [every]
    else:
        parts = (
            torch.split(every, torch.unique_consecutive(owner, return_counts=True)[1].tolist()) if len(owner) else []
        )
    most = max(1, (IN_MEMORY_CUDA if owner.is_cuda else IN_MEMORY) // widest)
    for part in parts:
        yield from torch.split(part, most) if len(part) else ()


def _through(a: Tensor, lines: Lines, pick: Pick, slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of an activation's output as rows of its input, and what is added."""
    low = pick(lines.low)
    if slope is not None and lines.free is not None:
        low = torch.where(pick(lines.free), slope, low)
    up = a > 0
    return a * torch.where(up, low, pick(lines.high)), a * torch.where(up, pick(lines.low_rise), pick(lines.high_rise))


def _through_pool(a: Tensor, windows: Windows, pick: Pick, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    at = pick(windows.at).expand_as(a)
    chosen = torch.where((a > 0) | pick(windows.sure), a, 0.0)
    pulled = a.new_zeros(len(a), shape[0], shape[1] * shape[2]).scatter_add(2, at.flatten(2), chosen.flatten(2))
    return pulled.view(len(a), *shape), (a - chosen) * pick(windows.most)


def _lines_at(lines: Lines, rows: Tensor) -> Lines:
    free = None if lines.free is None else lines.free[rows]
    return Lines(lines.low[rows], lines.low_rise[rows], lines.high[rows], lines.high_rise[rows], free)


def _total(a: Tensor) -> Tensor:
    return a.flatten(1).sum(1)
