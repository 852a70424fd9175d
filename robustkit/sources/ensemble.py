"""Ensembles of models: `ensemble/(timm/a)+(./b.pt:arch=…)+(c):mean=logits|probs|vote`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit import rows
from robustkit.api import Images, Logits, ModelCard
from robustkit.errors import UsageError
from robustkit.sources import load_model
from robustkit.spec import build, listed

Mean = Literal["logits", "probs", "vote"]


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
        specs = listed(name)
        if len(specs) < 2 or not all(specs):
            raise UsageError(f"ensemble/{name} needs two models or more: ensemble/(A)+(B):mean=logits|probs|vote")
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
        )


class Ensemble(nn.Module):
    """Several classifiers as one.

    `logits` averages logits; `probs` averages softmax outputs and answers their logarithm; `vote` counts the members'
    decisions (of several classes with the most votes the first wins), through which no gradient flows: its declared
    stand-in is the mean of the logits.
    """

    def __init__(self, members: Sequence[nn.Module], mean: Mean = "logits") -> None:
        super().__init__()
        self.networks = nn.ModuleList(members)
        self.mean = mean
        self.randomised = any(getattr(member, "randomised", False) for member in members)

    def forward(self, x: Images) -> Logits:
        """The ensemble's logits."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """The ensemble's logits, and each member's (members, batch, classes).

        Raises:
            UsageError: if the members have different classes.
        """
        outputs = [network(x) for network in self.networks]
        if len(widths := {output.shape[1:] for output in outputs}) > 1:
            found = ", ".join(str(*width) for width in sorted(widths))
            raise UsageError(f"the members of the ensemble have different numbers of classes: {found}")
        members = torch.stack(outputs)
        return _averaged(outputs, self.mean), members

    def first_members(self, x: Images, n: int) -> Tensor:
        """The logits of the first n members (members, batch, classes), without a pass of the others."""
        return torch.stack([network(x) for network in self.networks[:n]])

    def members(self) -> Sequence[nn.Module]:
        """The classifiers."""
        return list(self.networks)

    def surrogates(self) -> dict[str, nn.Module]:
        """The mean of the logits, which stands in for a vote."""
        return {"mean-logits": Ensemble(list(self.networks)).eval()} if self.mean == "vote" else {}

    def reseed(self, seed: int) -> None:
        """Reseed the members that offer it, each on its own."""
        for place, network in enumerate(self.networks):
            offered = getattr(network, "reseed", None)
            if callable(offered):
                offered(seed + place)


def _averaged(outputs: Sequence[Logits], mean: Mean) -> Logits:
    if mean == "vote":
        return rows.added([F.one_hot(output.argmax(1), output.shape[1]).to(output.dtype) for output in outputs])
    if mean == "logits":
        return rows.average(outputs)
    # The logarithm of a mean of softmaxes, by logsumexp: finite where every probability underflows.
    total = torch.log_softmax(outputs[0], 1)
    for output in outputs[1:]:
        total = torch.logaddexp(total, torch.log_softmax(output, 1))
    return total - math.log(len(outputs))


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
