"""What the cells of a study will cost at most, before they run: passes, and seconds where the model is at hand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustkit import datasets
from robustkit.api import ModelFacts, ThreatModel
from robustkit.datasets.choice import choose_indices
from robustkit.engine import plan
from robustkit.engine.costs import bound, seconds_of_a_tile
from robustkit.errors import RobustkitError, UsageError
from robustkit.models import defended, sources
from robustkit.models.examination import examine, lent
from robustkit.models.opening import choose_device
from robustkit.models.sources.evaluating import evaluating
from robustkit.spec import number
from robustkit.study.plan import Cell, Study

CLASSES = 10  # of data and a model that are not at hand


@dataclass(frozen=True, slots=True)
class Cost:
    """The most that a cell takes, if no sample breaks. None is not known; `why` says why, or why it cannot run."""

    cell: Cell
    forwards: int | None
    backwards: int | None
    seconds: float | None
    why: str


@dataclass(frozen=True, slots=True)
class _Ready:
    """A defended model that was looked at, or what is assumed of one that is not at hand."""

    facts: ModelFacts
    tile: int
    speed: tuple[float, float] | None
    why: str


def forecast(study: Study) -> Iterator[Cost]:
    """The cost of each evaluation of a checked study; loads each defended model once, and attacks nothing.

    Seconds are those of the threads that torch has now.
    """
    ready: dict[tuple[str, str], _Ready] = {}
    n: int | None = study.options.get("n")
    try:
        data = datasets.resolve(study.data)
        chosen = choose_indices(data, n, study.options.get("indices"))
        first, n, absent = data.batch(chosen[:64]), len(chosen), ""
    except RobustkitError as error:
        absent = str(error)
    for cell in study.cells():
        key = (cell.model, cell.defense)
        if key not in ready:
            ready[key] = _Ready(_assumed(0), 1, None, absent) if absent else _look(study, cell, data, first)
        yield _cost(study, cell, ready[key], n)


def _assumed(classes: int) -> ModelFacts:
    return ModelFacts(classes or CLASSES, False, True, 0, ())


def _look(study: Study, cell: Cell, data: Any, first: Any) -> _Ready:
    options: Mapping[str, Any] = study.options
    try:
        with evaluating(data.name, cell.norm):
            module, card = sources.load_model(study.models[cell.model], trust=options.get("trust", False))
        device = choose_device(options.get("device", "auto"), module, named=True)
        module = defended.protect(module.to(device), defended.resolve(study.defenses[cell.defense]))
        with lent(module):
            subject = examine(
                module, *first, classes=data.classes or None, outputs=options.get("outputs", "logits"),
                tile=options.get("tile"), seed=cell.seed, device=device, input_shape=card.input_shape,
            )  # fmt: skip
            return _Ready(subject.facts, subject.reference.tile, seconds_of_a_tile(subject, first[0]), "")
    except RobustkitError as error:
        return _Ready(_assumed(data.classes), 1, None, str(error))


def _cost(study: Study, cell: Cell, ready: _Ready, n: int | None) -> Cost:
    try:
        threat = ThreatModel(cell.norm, number(cell.eps))  # type: ignore[arg-type]
        attacks = plan.resolve_attacks(study.attacks[cell.attack], threat, ready.facts)
    except UsageError as error:
        unsure = f" (if the model is an ordinary one, which is not at hand: {ready.why})" if ready.why else ""
        return Cost(cell, None, None, None, f"cannot run: {error}{unsure}")
    if n is None:
        return Cost(cell, None, None, None, ready.why)
    found = bound(ready.facts, attacks, n, ready.tile, ready.speed or (0.0, 0.0))
    return Cost(cell, found.forwards, found.backwards, found.seconds if ready.speed else None, ready.why)
