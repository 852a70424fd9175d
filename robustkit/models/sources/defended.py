"""Models behind inference-time defenses: `defended/(digits-cnn):by=(jpeg:quality=50)+(median)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from robustkit.api import ModelCard
from robustkit.models import defended
from robustkit.models.sources import load_model, normalized
from robustkit.models.sources.names import defenses_of
from robustkit.spec import build, unwrap


@dataclass(frozen=True, slots=True)
class Options:
    """What a spec may say: the defenses, in the order in which they are put around the model."""

    by: str = ""


class Defended:
    """Models that are named by their specs, behind defenses that are named by theirs."""

    own_options = normalized.OPTIONS  # the model's normalisation is written in the model's spec

    def names(self) -> Sequence[str]:
        """None: any model."""
        return ()

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The defended model in eval mode, and the model's card.

        Raises:
            UsageError: for an unknown option or defense, no defense, or a model that cannot be had or defended.
        """
        wanted: Options = build(Options, options, f"defended/{name}")
        defenses = defenses_of(name, wanted.by)
        module, card = load_model(unwrap(name))
        text = defended.text(defenses)
        return defended.protect(module, defenses), replace(card, name=f"{card.name} behind {text}")
