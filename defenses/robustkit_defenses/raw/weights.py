"""Weights of the learned parts: one .safetensors each, with a card beside it that says how it was trained."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from robustkit.errors import UsageError
from robustkit_defenses.raw.networks import NETWORKS

FOLDER = Path(__file__).parent


def load(name: str, folder: Path = FOLDER) -> nn.Module:
    """A trained part by its name in `NETWORKS`, in eval mode, its weights asking for no gradient.

    Raises:
        UsageError: if the folder has no such card or weights, or the weights are not the card's.
    """
    card, file = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        due = json.loads(card.read_text(encoding="utf-8"))["sha256"]
        data = file.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no trained {name!r} ({card.name} and {file.name}: {error}); make it with "
            f"python -m robustkit_defenses.raw.train {name}"
        ) from error
    if hashlib.sha256(data).hexdigest() != due:
        raise UsageError(f"{file} is not the file of its card (sha256 differs); install robustkit or train it again")
    network = NETWORKS[name]()
    try:
        network.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{file} holds no weights of {name!r}: {first}") from error
    return network.eval().requires_grad_(False)


def save(name: str, network: nn.Module, card: Mapping[str, Any], folder: Path) -> None:
    """Write the weights and the card, to which size and sha256 are added."""
    data = save_tensors({key: value.contiguous() for key, value in network.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(data)
    full = {"name": name, **card, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
