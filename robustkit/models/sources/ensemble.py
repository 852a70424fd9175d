"""Ensembles of models: `ensemble/(timm/a)+(./b.pt:arch=…)+(c):mean=logits|probs|vote`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.ensembles import Ensemble, Mean
from robustkit.models.sources import load_model
from robustkit.models.sources.names import members_of
from robustkit.spec import build


@dataclass(frozen=True, slots=True)
class Options:
    """What a spec may say: what of the members is averaged."""

    mean: Mean = "logits"


class Ensembles:
    """Ensembles of models that are named by their specs; each member takes [0,1] images and normalises by itself."""

    own_options = ("mean", "std")  # a member's normalisation is written in the member's spec

    def names(self) -> Sequence[str]:
        """None: any models."""
        return ()

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The ensemble in eval mode and a card made of the members' cards.

        Raises:
            UsageError: for an unknown option, fewer than two members, or members with different classes or channels.
        """
        wanted: Options = build(Options, options, f"ensemble/{name}")
        specs = members_of(name)
        loaded = [load_model(spec) for spec in specs]
        cards = [card for _, card in loaded]
        _agree("classes", specs, [card.classes for card in cards])
        _agree("numbers of channels", specs, [card.input_shape[0] if card.input_shape else None for card in cards])
        return Ensemble([module for module, _ in loaded], wanted.mean).eval(), ModelCard(
            name=f"{wanted.mean} of {', '.join(card.name for card in cards)}",
            source="ensemble",
            dataset=_common([card.dataset for card in cards]),
            classes=next((card.classes for card in cards if card.classes), None),
            input_shape=cards[0].input_shape if len({card.input_shape for card in cards}) == 1 else (),
            threat=_common([card.threat for card in cards]),
            licence=_listing([card.licence for card in cards]),
            paper=_listing([card.paper for card in cards]),
            sha256=_listing([card.sha256 for card in cards]),
            notes=_listing([card.notes for card in cards]),
            caution="; ".join(dict.fromkeys(card.caution for card in cards if card.caution)),
        )


def _agree(what: str, specs: Sequence[str], values: Sequence[object]) -> None:
    if len({value for value in values if value is not None}) > 1:
        text = ", ".join(f"{spec}: {value}" for spec, value in zip(specs, values, strict=True))
        raise UsageError(f"the members of the ensemble have different {what} ({text}); choose ones that fit")


def _common(values: Sequence[str]) -> str:
    """The one value of all the members, or nothing."""
    return values[0] if len(set(values)) == 1 else ""


def _listing(values: Sequence[str]) -> str:
    """The different values, in the members' order."""
    return "; ".join(dict.fromkeys(value for value in values if value))
