"""One item of a dataset as people make them: a pair, a dict, an image of Pillow's, a label that is one-hot or text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.datasets.images import Framing
from robustkit.errors import UsageError

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "target", "y")


def parts(item: Any, index: int, what: str) -> tuple[Any, Any]:
    """The image and the label of an item.

    What stands behind them is left alone where it can be no label: the item's own index, text, a dict, an array.

    Raises:
        UsageError: if it is not clear which they are.
    """
    if isinstance(item, Mapping):
        return keyed(item, f"{what}: item {index}")
    if isinstance(item, tuple | list) and len(item) >= 2:
        rivals = [part for part in item[2:] if _is_number(part) and int(part) != index]
        if not rivals:
            return item[0], item[1]
        shown = ", ".join(["image", *(repr(part) for part in item[1:])])
        raise UsageError(f"{what}: which part of item {index} is its label? ({shown:.60}); give (image, label)")
    raise UsageError(f"{what}: item {index} is {_kind(item)}; it must be (image, label), or a dict with these keys")


def keyed(found: Mapping[Any, Any], what: str) -> tuple[Any, Any]:
    """The images and the labels of a dict, by the names that they usually have.

    Raises:
        UsageError: if none or several of its keys are such names.
    """
    chosen = []
    for role, keys in (("image", IMAGE_KEYS), ("label", LABEL_KEYS)):
        present = [key for key in keys if key in found]
        if len(present) != 1:
            has = ", ".join(map(str, found))
            raise UsageError(
                f"{what} is a dict of {has}; which is the {role}? name one of them {role!r} and drop others"
            )
        chosen.append(found[present[0]])
    return chosen[0], chosen[1]


def image(value: Any, index: int, what: str) -> Tensor:
    """An item's image as a tensor: of Pillow's its pixels, (channels, height, width), float32 in [0,1].

    Raises:
        UsageError: if it is no image.
    """
    if hasattr(value, "convert"):
        try:
            pixels = Framing(grey=value.mode in ("1", "L")).apply(value)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them on a broken image
            raise UsageError(f"{what}: the image of item {index} cannot be read: {error}") from error
        return torch.from_numpy(pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1))
    if not isinstance(value, Tensor | np.ndarray):
        raise UsageError(f"{what}: the image of item {index} is {_kind(value)}; give a tensor or an image of Pillow's")
    return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def label(value: Any, index: int, names: Sequence[str], what: str) -> Tensor:
    """An item's label as a tensor of no axis, or of one if it is one-hot; text by its place among the classes' names.

    Raises:
        UsageError: if it is no label.
    """
    if isinstance(value, str) and value in names:
        return torch.tensor(list(names).index(value))
    if isinstance(value, str):
        known = f"one of the dataset's classes ({', '.join(names[:5])} …)" if names else "a class number"
        raise UsageError(f"{what}: the label of item {index} is {value!r}; it must be {known}")
    try:
        found = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what}: the label of item {index} is {_kind(value)}; give a class number") from error
    return found.reshape(()) if found.numel() == 1 else found


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, int | np.integer) or (isinstance(value, Tensor) and value.dim() == 0)
    return scalar and not isinstance(value, bool) and not (isinstance(value, Tensor) and value.is_floating_point())


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"
