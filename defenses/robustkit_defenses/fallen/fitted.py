"""What a defense fitted on training images, as a file: statistics, neighbours, an autoencoder."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustkit.api import Dataset, Images, Labels
from robustkit.errors import UsageError


def save(file: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Write what a defense of this name was fitted to, as safetensors; atomically."""
    path = Path(file)
    part = path.with_name(f".{path.name}.part")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata={"robustkit": kind})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(file: str, kind: str) -> dict[str, Tensor]:
    """What such a file holds.

    Raises:
        UsageError: for no file, or one of something else.
    """
    if not file:
        raise UsageError(
            f"{kind}: fitted is needed, a file of what it learns from training images; "
            f"robustkit_defenses.fallen.{kind.replace('-', '_')}.fit finds it and "
            "robustkit_defenses.fallen.fitted.save writes it"
        )
    try:
        with safe_open(file, "pt") as opened:
            found = (opened.metadata() or {}).get("robustkit", "")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{kind}: cannot read {file}: {error}") from error
    if found != kind:
        raise UsageError(f"{kind}: {file} is of {found or 'something else'}; give a file that was fitted for {kind}")
    return tensors


def images_of(data: Dataset, most: int) -> tuple[Images, Labels]:
    """The first images of a dataset and their labels, at most so many."""
    return data.batch(range(min(most, len(data))))


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
