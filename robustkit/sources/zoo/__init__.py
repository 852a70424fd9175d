"""The bundled networks: weights in .safetensors, each with a card that says how it was trained and its sha256."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load
from torch import nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.sources.zoo.architectures import ARCHITECTURES
from robustkit.spec import suggest

FOLDER = Path(__file__).parent


class Zoo:
    """The bundled networks, by the name of their card; or those of another folder laid out the same."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def names(self) -> Sequence[str]:
        """The names of the cards."""
        return sorted(card.stem for card in self.folder.glob("*.json"))

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: for an unknown name, any option, or weights that are not the card's.
        """
        if name not in self.names():
            raise UsageError(suggest(name, self.names(), "zoo network"))
        if options:
            raise UsageError(f"{name} takes no options, not {', '.join(options)}; a zoo network is as it was trained")
        card = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        file = self.folder / f"{name}.safetensors"
        weights = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(weights).hexdigest() != card["sha256"]:
            raise UsageError(f"{file.name} is not the file of its card (sha256 differs); install robustkit again")
        module = ARCHITECTURES[card["architecture"]]()
        module.load_state_dict(load(weights))
        return module.eval(), ModelCard(
            name=name,
            source="zoo",
            dataset=card["dataset"],
            classes=card["classes"],
            input_shape=tuple(card["input_shape"]),
            licence=card["licence"],
            sha256=card["sha256"],
            notes=card["notes"],
        )
