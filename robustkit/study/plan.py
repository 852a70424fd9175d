"""What a study is: its axes, and the cells that their product makes. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NO_DEFENSE = "none"


@dataclass(frozen=True, slots=True)
class Threat:
    """A norm and a radius, as it was written: 8/255."""

    norm: str
    eps: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One evaluation of a study; model, defense and attack are the study's labels, the defense may be "none"."""

    model: str
    defense: str
    attack: str
    norm: str
    eps: str
    seed: int

    def __str__(self) -> str:
        behind = "" if self.defense == NO_DEFENSE else f" behind {self.defense}"
        return f"{self.model}{behind} · {self.attack} · {self.norm} {self.eps} · seed {self.seed}"

    @property
    def chain(self) -> tuple[object, ...]:
        """What the cells share that differ in eps alone."""
        return (self.model, self.defense, self.attack, self.norm, self.seed)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TransferCell:
    """One transfer run of a study: all surrogate sets, attacks and victims under one threat model and seed."""

    norm: str
    eps: str
    seed: int

    def __str__(self) -> str:
        return f"transfer · {self.norm} {self.eps} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Transfer:
    """The models and attacks of a study's transfer runs: specs by name, and surrogate sets of these names."""

    surrogates: Mapping[str, str]
    victims: Mapping[str, str]
    attacks: Mapping[str, str]
    sets: Mapping[str, tuple[str, ...]] | None


@dataclass(frozen=True, slots=True)
class Study:
    """A whole study. `models`, `defenses` and `attacks` map labels to specs, a defense to several.

    `options` are those of an evaluation that hold for every cell, `source` is the file's content, defaults of another
    file included, from which the study can be read again.
    """

    name: str
    title: str
    provenance: str
    data: str
    threats: tuple[Threat, ...]
    seeds: tuple[int, ...]
    models: Mapping[str, str]
    defenses: Mapping[str, tuple[str, ...]]
    attacks: Mapping[str, str]
    skip: Sequence[Mapping[str, str]]
    transfer: Transfer | None
    threads: int | None
    carry: bool
    options: Mapping[str, Any]
    source: Mapping[str, Any] = field(repr=False)

    def cells(self) -> list[Cell]:
        """The evaluations, those that differ in eps alone next to each other, by growing eps."""
        norms = list(dict.fromkeys(threat.norm for threat in self.threats))
        every = [
            Cell(model, defense, attack, threat.norm, threat.eps, seed)
            for model in self.models
            for defense in self.defenses
            for attack in self.attacks
            for norm in norms
            for seed in self.seeds
            for threat in self.threats
            if threat.norm == norm
        ]
        return [cell for cell in every if not any(matches(rule, cell) for rule in self.skip)]

    def transfers(self) -> list[TransferCell]:
        """The transfer runs."""
        if self.transfer is None:
            return []
        return [TransferCell(threat.norm, threat.eps, seed) for threat in self.threats for seed in self.seeds]


def matches(rule: Mapping[str, str], cell: Cell) -> bool:
    """Whether a `skip` rule means a cell: all that it names is the cell's."""
    return all(getattr(cell, axis) == label for axis, label in rule.items())
