"""Networks with a card of ours: what `robustkit train` leaves in a folder, and the bundled ones.

A card names the architecture and, where the trained classifier is more than that, the recipe that builds it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from robustkit import plugins, spec
from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.sources import load_model
from robustkit.models.sources.python import held_or_made
from robustkit.models.sources.trust import reading_card
from robustkit.models.sources.untrained import architecture
from robustkit.models.sources.weights import fill
from robustkit.training.recipes import Recipe, Task

CARD, WEIGHTS, RECIPE = "card.json", "model.safetensors", "recipe.json"
_CODE = re.compile(r"(?<![\w./~-])python/[\w.]+")  # a callable as a source, also within another spec
_NEEDED = ("name", "architecture", "classes", "input_shape", "sha256")


def read_card(file: Path) -> dict[str, Any]:
    """A card.

    Raises:
        UsageError: if it is no card.
    """
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a card: {error}") from error
    if lacking := [key for key in _NEEDED if not isinstance(card, dict) or key not in card]:
        raise UsageError(f"{file} is no card of a trained model: it lacks {', '.join(lacking)}")
    return dict(card)


def model_card(card: Mapping[str, Any], source: str) -> ModelCard:
    """What a card says, as all sources say it."""
    return ModelCard(
        name=card["name"],
        source=source,
        dataset=card.get("dataset", ""),
        classes=card["classes"],
        input_shape=tuple(card["input_shape"]),
        threat=card.get("threat", ""),
        licence=card.get("licence", ""),
        sha256=card["sha256"],
        notes=card.get("notes", ""),
    )


def network(card: Mapping[str, Any], weights: Path, advice: str) -> nn.Module:
    """The network of a card with the weights of a file, in eval mode.

    Raises:
        UsageError: if the file is not the card's, or the weights do not fit; `advice` says what to do.
    """
    content = weights.read_bytes() if weights.is_file() else b""
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise UsageError(f"{weights.name} is not the file of its card (sha256 differs); {advice}")
    module = empty(card)
    try:
        fill(module, load(content), f"{weights} as its card says: {card['architecture']}")
    except SafetensorError as error:
        raise UsageError(f"{weights} is no .safetensors file ({error})") from error
    return module.eval()


def empty(card: Mapping[str, Any]) -> nn.Module:
    """The network of a card without its weights.

    Raises:
        UsageError: for an architecture or a recipe that is not there any more, or that is code which is not trusted.
    """
    built_by = card.get("built_by", "")
    with reading_card(card["name"]):
        if not built_by:
            return architecture(card["architecture"])
        made = recipe(built_by)
        shape = tuple(card["input_shape"])
        task = Task(
            card["classes"], shape, lambda: architecture(card["architecture"]), lambda s: load_model(s), filled=True
        )
        return made.result(made.build(task))


def code_of(card: Mapping[str, Any]) -> str:
    """The callable that a card names, as architecture or within the recipe; empty if there is none."""
    found = _CODE.search(f"{card['architecture']} {card.get('built_by', '')}")
    return found[0] if found else ""


def recipe(text: str) -> Recipe:
    """The recipe of a spec: `at:eps=0.1,steps=10`, or `python/package.module.callable`.

    Raises:
        UsageError: for an unknown name or option, a value that is none, or a callable that returns no recipe.
    """
    parsed = spec.parse(plugins.spelled("recipes", text))
    if parsed.source == "python":
        made = held_or_made(parsed.name, parsed.options, "recipe", (Recipe,))
    elif parsed.source:
        raise UsageError(f"{text!r} is no recipe; name one of `robustkit list recipes`, or python/package.callable")
    else:
        made = spec.build(plugins.load("recipes", parsed.name), parsed.options, parsed.name)
    if not isinstance(made, Recipe):
        raise UsageError(f"{text} is of type {type(made).__name__}, no recipe; see robustkit.training.recipes.Recipe")
    return made


def recipe_text(text: str) -> str:
    """The same recipe spec with the settings that differ from the defaults, typed and in the order of the fields.

    Raises:
        UsageError: see `recipe`.
    """
    parsed = spec.parse(plugins.spelled("recipes", text))
    if parsed.source:
        return str(parsed)
    return str(spec.Spec("", parsed.name, spec.settings(recipe(text))))
