"""Going back through a model: from the gradients of its outputs to those of its images, a tile at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images, Outputs
from robustkit.errors import NoGradientError


class Tile(NamedTuple):
    """Some images, a leaf, and the outputs that were recorded for them."""

    x: Images
    outputs: Outputs


def pulled_back(tiles: Sequence[Tile], cotangents: Sequence[Tensor], *, retain_graph: bool) -> Tensor:
    """The gradient of every tile's images, given the gradients of the joined outputs."""
    grads, start = [], 0
    for tile in tiles:
        roots, seeds = [], []
        for output, cotangent, axis in zip(tile.outputs, cotangents, (0, 1), strict=False):
            if output is None:
                continue
            width = tile.x.shape[0]
            real = cotangent.narrow(axis, start, min(width, cotangent.shape[axis] - start))
            seed = torch.zeros_like(output)
            seed.narrow(axis, 0, real.shape[axis]).copy_(real)
            if output.requires_grad:
                roots.append(output)
                seeds.append(seed)
        found = _backward(roots, tile.x, seeds, retain_graph=retain_graph)
        if found is None:  # the outputs hang on the weights alone
            raise NoGradientError("the model's outputs are detached from its input")
        grads.append(found)
        start += tile.x.shape[0]
    return torch.cat(grads) if len(grads) > 1 else grads[0]


def _backward(roots: Sequence[Tensor], x: Tensor, cotangents: Sequence[Tensor], *, retain_graph: bool) -> Tensor | None:
    """The gradient of a leaf; None if the roots do not depend on it."""
    try:
        return torch.autograd.grad(roots, x, cotangents, retain_graph=retain_graph, allow_unused=True)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # Reentrant checkpoints go back by backward() alone.
    x.grad = None
    torch.autograd.backward(roots, cotangents, retain_graph=retain_graph)
    grad, x.grad = x.grad, None
    return grad
