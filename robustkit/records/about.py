"""What stands beside a record's facts and decides none: its label, dates, eps as it was written, names of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from robustkit import spec
from robustkit.errors import UsageError

MOST_CLASSES = 10_000  # names that are kept: those of a data set, not a list of everything


@dataclass(frozen=True, slots=True)
class About:
    """It is no part of a run's identity. Older records lack it, or some of it: then it is empty.

    Attributes:
        label: what the run is called by who ran it.
        eps: the radius as it was given.
        started: when it was begun first, UTC in ISO 8601.
        finished: when its record was written.
        classes: the data set's names of its classes, by class.
    """

    label: str = ""
    eps: str = ""
    started: str = ""
    finished: str = ""
    classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is known, as in a record's file."""
        return {name: list(value) if name == "classes" else value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, data: Any) -> "About":
        """What a record's file says; what is no text there is not known."""
        known = data if isinstance(data, Mapping) else {}
        texts = {name: str(known.get(name) or "") for name in ("label", "eps", "started", "finished")}
        return cls(**texts, classes=class_names(known.get("classes")))

    @property
    def date(self) -> str:
        """When it was finished, or else begun, for people; empty if neither is known."""
        return day(self.finished or self.started)

    def told(self) -> dict[str, str]:
        """The label and the dates, as far as they are known, for people."""
        found = {"label": self.label, "begun": day(self.started), "finished": day(self.finished)}
        return {name: text for name, text in found.items() if text}

    def written(self, eps: float) -> str:
        """An eps of the run as it was given, or else as one would write it."""
        try:
            return self.eps if self.eps and spec.number(self.eps) == eps else spec.written(eps)
        except UsageError:
            return spec.written(eps)

    def named(self, label: int) -> str:
        """A class by its name, which nothing else is called, or by its number."""
        if not 0 <= label < len(self.classes):
            return str(label)
        name = self.classes[label]
        return name if self.classes.count(name) == 1 else f"{name} ({label})"


def class_names(names: Any) -> tuple[str, ...]:
    """Names of classes as they are stored: each on one line; none if they are no list of texts, or far too many."""
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) > MOST_CLASSES:
        return ()
    found = tuple(" ".join(str(name).split()) for name in names)
    return found if all(found) else ()


def now() -> str:
    """The time, UTC to the second, in ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def day(time: str) -> str:
    """A time of ours for people: 2026-01-31 12:00 UTC."""
    return f"{time[:10]} {time[11:16]} UTC" if len(time) >= 16 else time
