"""A head in a file: weights in .safetensors, with the card in the file's own metadata, so that neither gets lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from robustkit.errors import UsageError
from robustkit.spec import is_path, suggest
from robustkit_defenses.contextual_fusion.model import Head

SCHEMA = "robustkit/fusion-head/1"
BUNDLED = Path(__file__).parent / "heads"


def save_head(head: Head, file: Path, card: Mapping[str, Any]) -> None:
    """Write a head with its card: plain JSON data that says what it was fitted on, how, and what it reaches."""
    own = {
        "schema": SCHEMA,
        "widths": head.widths,
        "classes": head.classes,
        "input_shape": head.input_shape,
        "dropout": head.dropout,
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    file.write_bytes(save(weights, {"card": json.dumps({**card, **own}, sort_keys=True)}))


def load_head(name: str) -> Head:
    """The head in a file (what begins with `.`, `/` or `~`), or a bundled one by its name, in eval mode.

    Raises:
        UsageError: for an unknown name, or a file that holds no head.
    """
    file = _file(name)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not iterable
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{name} is no .safetensors file ({error}); give one that save_head wrote") from error
    card = card_of(metadata, name)
    head = Head(tuple(card["widths"]), card["classes"], tuple(card["input_shape"]), tuple(card["dropout"]))
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"{name}: the weights are not those of its card ({first}); fit the head again") from error
    return head.eval()


def card_of(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The card in a file's metadata.

    Raises:
        UsageError: if there is none, or it does not say what a head must.
    """
    try:
        card = json.loads(metadata.get("card", "{}"))
        fits = card["schema"] == SCHEMA and len(card["widths"]) == 2 and len(card["input_shape"]) == 3
        fits = fits and len(card["dropout"]) == 2 and all(isinstance(n, int) and n > 0 for n in _counts(card))
    except (ValueError, TypeError, KeyError):
        fits = False
    if not fits:
        raise UsageError(f"{name} holds no head of contextual fusion ({SCHEMA}); give a file that save_head wrote")
    found: dict[str, Any] = card
    return found


def _counts(card: Mapping[str, Any]) -> list[Any]:
    return [*card["widths"], *card["input_shape"], card["classes"]]


def _file(name: str) -> Path:
    if not is_path(name):
        known = {path.stem: path for path in BUNDLED.glob("*.safetensors")}
        if name not in known:
            raise UsageError(suggest(name, known, "bundled head") + "; a file is written ./FILE.safetensors")
        return known[name]
    file = Path(name).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no file {name}; give a head that save_head wrote")
    return file
