"""What is asked of a measurement: a `Request` decides the numbers, an `Execution` only how they come about."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustkit import spec
from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.events import Event
from robustkit.records.run import RunRecord


@dataclass(frozen=True, slots=True)
class Request:
    """All that decides the numbers before a model was seen; with what was found out about it, it becomes the `Job`.

    `attack` is a spec, an Attack, a Suite, or a list of these; `target` is empty, "random", "least-likely" or a class;
    `quantize` is empty or "8bit"; `data` is how the samples' dataset was named. `carry` is the same measurement at a
    smaller eps: what it broke counts as broken. `eps` is the radius as it was written. `certify` is empty or says how
    samples are proved, see `robustkit.engine.proofs`.

    Raises:
        UsageError: for a seed or a number of draws that is no whole number, or below 0 or 1.
    """

    attack: Any
    threat: ThreatModel
    data: str
    eps: str = ""
    target: str = ""
    seed: int = 0
    quantize: str = ""
    draws: int = spec.DEFAULT_DRAWS
    carry: RunRecord | None = None
    certify: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", spec.whole(self.seed, "seed", 0))  # plain ints: they go into the job
        object.__setattr__(self, "draws", spec.whole(self.draws, "draws"))


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Execution:
    """What changes no number: how many samples are in flight, where facts are kept, and who is told of progress.

    `label` is what the run is called in its record and reports.

    `out` is a folder that is continued if it holds this very run, or a function from the job to it; None keeps nothing.

    Raises:
        UsageError: for a size that is no whole number of at least 1.
    """

    batch_size: int | Literal["auto"] = "auto"
    shard_size: int | None = None
    out: str | os.PathLike[str] | Callable[[spec.Job], Path] | None = None
    fresh: bool = False
    save_adversarial: bool = False
    label: str = ""
    tell: Callable[[Event], None] = _ignore

    def __post_init__(self) -> None:
        if self.batch_size != "auto":
            object.__setattr__(self, "batch_size", spec.whole(self.batch_size, "batch_size"))
        if self.shard_size is not None:
            object.__setattr__(self, "shard_size", spec.whole(self.shard_size, "shard_size"))


def threat_of(norm: str, eps: float | str | None) -> ThreatModel:
    """The threat model of a norm and a radius as a caller gives them: None is the norm's default, text may be 8/255.

    Raises:
        UsageError: for an unknown norm, or a radius that it cannot have.
    """
    if eps is None:
        eps = spec.DEFAULT_EPS.get(norm, "")
    try:
        radius = spec.number(eps) if isinstance(eps, str) and eps else float(eps or 0)
    except (TypeError, ValueError):
        radius = math.nan
    if isinstance(eps, bool) or math.isnan(radius):
        raise UsageError(f"eps must be a number such as 8/255, not {eps!r}")
    return ThreatModel(norm, radius)  # type: ignore[arg-type]  # which refuses an unknown norm


def check_counts(**values: Any) -> None:
    """Refuse settings that count something and are no whole numbers of at least 1; None is not given.

    Raises:
        UsageError: for the first that is not.
    """
    for what, value in values.items():
        if value is not None:
            spec.whole(value, what)
