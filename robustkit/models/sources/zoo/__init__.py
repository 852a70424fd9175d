"""The bundled networks: weights in .safetensors, each with a card that says how it was trained and its sha256."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
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
        from robustkit.models.sources import trained  # which needs this package's architectures

        known = self.card(name, options)
        card = trained.read_card(self.folder / f"{name}.json")
        return trained.network(card, self.folder / f"{name}.safetensors", "install robustkit again"), known

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a network, without making it.

        Raises:
            UsageError: for an unknown name, or any option.
        """
        from robustkit.models.sources import trained

        if name not in self.names():
            raise UsageError(suggest(name, self.names(), "zoo network"))
        if options:
            raise UsageError(f"{name} takes no options, not {', '.join(options)}; a zoo network is as it was trained")
        return trained.model_card(trained.read_card(self.folder / f"{name}.json"), "zoo")
