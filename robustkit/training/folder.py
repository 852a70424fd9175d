"""The folder of a training: `recipe.json` from the start, a checkpoint while it runs, and at the end the model.

Every file appears whole or not at all, `card.json` last: what has a card is finished.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from robustkit.errors import UsageError
from robustkit.locks import besides, sweep
from robustkit.models.sources import checkpoint
from robustkit.models.sources.trained import CARD, RECIPE, WEIGHTS
from robustkit.records.files import dumps, write_atomic, write_text
from robustkit.spec import digest
from robustkit.training.loop import Checkpoint

SCHEMA = "robustkit/training/1"
CURVES, STATE = "curves.csv", "checkpoint.pt"
FILES = (RECIPE, STATE, WEIGHTS, CURVES, CARD)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingFolder:
    """The folder of one training."""

    path: Path

    def open(self, settings: Mapping[str, Any], command: str, *, fresh: bool) -> Checkpoint | None:
        """Start the training here, or return where it stands; who does it must be `at_work` in the folder.

        Raises:
            UsageError: if the folder holds something else, or another training.
        """
        content = {"schema": SCHEMA, "id": digest(settings), "command": command, "settings": dict(settings)}
        if besides(self.path):
            known = self._known()
            if not fresh and known["id"] == content["id"]:
                sweep(self.path)
                return self._checkpoint()
            if not fresh:
                text = _difference(known["settings"], settings)
                raise UsageError(
                    f"{self.path} holds another training ({text}); choose another --out, or --fresh to overwrite it"
                )
            for name in reversed(FILES):  # the card first: without it nothing counts as finished
                (self.path / name).unlink(missing_ok=True)
        sweep(self.path)
        write_text(self.path / RECIPE, dumps(content))
        return None

    @property
    def finished(self) -> bool:
        """Whether the training is done."""
        return (self.path / CARD).is_file()

    def keep(self, now: Checkpoint) -> None:
        """Store a checkpoint in the place of the one before."""
        state = {field.name: getattr(now, field.name) for field in dataclasses.fields(now)}
        write_atomic(self.path / STATE, lambda part: torch.save(state, part))
        self._write_curves(now.curves)

    def finish(self, network: nn.Module, curves: Sequence[Mapping[str, float]], card: Mapping[str, Any]) -> None:
        """Write the model and its card, which gets the sha256 and the size of the weights."""
        weights = weights_bytes(network)
        self._write_curves(curves)
        write_atomic(self.path / WEIGHTS, lambda part: _write(part, weights))
        content = {**card, "sha256": sha256(weights), "bytes": len(weights)}
        write_text(self.path / CARD, dumps(content))
        (self.path / STATE).unlink(missing_ok=True)

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
            if known["schema"] == SCHEMA and isinstance(known["settings"], dict):
                return dict(known)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UsageError(f"{self.path} is not empty and holds no training of ours; choose another --out")

    def _checkpoint(self) -> Checkpoint | None:
        file = self.path / STATE
        if not file.is_file():
            return None
        state = checkpoint.read(file)
        names = {field.name for field in dataclasses.fields(Checkpoint)}
        if not isinstance(state, dict) or set(state) != names:
            raise UsageError(f"{file} is no checkpoint of this version; start again with --fresh")
        return Checkpoint(**state)

    def _write_curves(self, curves: Sequence[Mapping[str, float]]) -> None:
        if curves:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(curves[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(curves)
            write_text(self.path / CURVES, text.getvalue())


def weights_bytes(network: nn.Module) -> bytes:
    """The network's state dict as .safetensors; the same network gives the same bytes."""
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    return save(state)


def sha256(content: bytes) -> str:
    """The hash in hexadecimal."""
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _write(part: Path, content: bytes) -> None:
    part.write_bytes(content)


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changed = [key for key in wanted if known.get(key) != wanted[key]]
    first = changed[0] if changed else "settings"
    return f"{first} differs: {str(known.get(first))[:80]} there, {str(wanted.get(first))[:80]} asked"
