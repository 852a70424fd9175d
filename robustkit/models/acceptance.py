"""The first call of a model: in which type it takes the images, and what to do about it where it refuses them.

What is wrong is found by trying, not by reading what a foreign network raises: another type, number of channels, size
of the batch or of the images, one at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError, first_line
from robustkit.models.oracle import Network
from robustkit.numerics import devices

_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SIZES = (224, 32, 28, 8, 16, 64, 96, 256, 299, 384)


def first_call(network: Network, x: Images, input_shape: Sequence[int] = ()) -> tuple[Network, Any]:
    """The network in the type of images that it takes, and what it answers for them, at most a tile.

    The type of its first parameter is tried first, then those of the others and the usual ones: a network may hide
    behind a function, or keep a parameter of another type than it computes in.

    Args:
        network: what is called, a tile at a time.
        x: images; the first tile of them is shown, filled up as every tile is.
        input_shape: (channels, height, width) that the model's card names, or empty.

    Raises:
        UsageError: if the model takes them in no type, with torch's reason and what to do.
    """
    shape = tuple(x.shape[1:])
    if input_shape and input_shape[0] != shape[0]:
        raise UsageError(
            f"the model takes images of {input_shape[0]} channels (its card says {sizes(input_shape)}), the dataset's "
            f"are {sizes(shape)}; choose ones that fit"
        )
    x = x[: network.tile]
    reason = ""
    for dtype in _types(network.module):
        tried = replace(network, dtype=dtype)
        raw, refused = _answer(tried, x)
        if not refused:
            whole = isinstance(raw, torch.Tensor) and raw.dim() > 0 and len(raw) == network.tile
            return tried, raw[: len(x)] if whole else raw
        reason = reason or refused
    advice = _advice(network, x, input_shape, reason)
    raise UsageError(f"the model does not accept images of shape {shape}: {reason}; {advice}")


def resize_hint(shape: Sequence[int], input_shape: Sequence[int]) -> str:
    """What to do about images of another size than the model's card says it was made for."""
    height, width = input_shape[1:]
    size = f"{height}" if height == width else f"{height}x{width}"
    return f"it is made for {sizes(input_shape)} (its card): resize={size} in its spec resizes them inside the model"


def sizes(shape: Sequence[int]) -> str:
    """A shape as it is written: 3×32×32."""
    return "×".join(map(str, shape))


def _types(module: nn.Module) -> list[torch.dtype]:
    own = (tensor.dtype for tensor in module.parameters() if tensor.is_floating_point())
    return list(dict.fromkeys((*own, *_TYPES)))


def _answer(network: Network, x: Images) -> tuple[Any, str]:
    """What the model answers for one tile of images, and why it refuses them; empty if it does not."""
    try:
        with torch.no_grad():
            return network.module(network.tiles(x)[0]), ""
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign network raises on images that it was not made for
        if devices.out_of_memory(error):
            raise
        return None, first_line(error)


def _advice(network: Network, x: Images, input_shape: Sequence[int], reason: str) -> str:
    if input_shape:
        if tuple(input_shape) == tuple(x.shape[1:]):
            return f"its card says that it is made for {sizes(input_shape)}, which they are"
        return resize_hint(x.shape[1:], input_shape)
    for tried, images, advice in _changes(network, x):
        if not _answer(tried, images)[1]:
            return advice
    if "shape" in reason or "size" in reason:
        return "if that is for their size: resize=224 in its spec resizes them inside the model"
    return "it must take images (n, channels, height, width) in [0,1] and return logits (n, classes)"


def _changes(network: Network, x: Images) -> Iterator[tuple[Network, Images, str]]:
    """What may be wrong, one thing at a time: the network and images to try, and what to do if they are accepted."""
    for n in _BATCHES:
        if n != network.tile:
            yield replace(network, tile=n), x[:n], f"it takes batches of exactly {n}: tile={n}"
    alone, image, channels = replace(network, tile=1), x[:1].float(), x.shape[1]
    for c in (3, 1):
        if c != channels:
            advice = f"these have {channels}: choose data that fits, or convert them inside the model"
            images = image.mean(1, keepdim=True).expand(-1, c, -1, -1)
            yield alone, images, f"it takes images of {c} channel{'s' * (c > 1)}, {advice}"
    for size in _SIZES:
        advice = f"it takes images of {size}×{size}: resize={size} in its spec resizes them inside the model"
        yield alone, F.interpolate(image, (size, size)), advice
