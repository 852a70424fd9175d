"""An attack's attempt on a batch: it is lent copies, its crash is a fact about it, and what it changed is put back.

All that calls an attack does it here: measurements, whose judge confirms breaks, and transfer runs, where nobody does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from robustkit.api import Attack, Case, Handed, Images, Labels, Logits, Mask, ThreatModel
from robustkit.engine.world import World
from robustkit.errors import NoGradientError, NotEstablishedError, RobustkitError, UsageError, first_line
from robustkit.events import Guard
from robustkit.models.evidence import Climb
from robustkit.models.opening import Opened
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.numerics import devices
from robustkit.numerics.bare import bare
from robustkit.numerics.streams import SampleDraws

Result = TypeVar("Result")


class Batch(NamedTuple):
    """The samples of a batch: their indices in the dataset, images, labels, and wanted classes if there are."""

    indices: Tensor
    x: Images
    y: Labels
    target: Labels | None
    handed: Handed | None = None

    @property
    def rows(self) -> Tensor:
        """The positions of all samples in the batch."""
        return torch.arange(len(self.x), device=self.x.device)

    def copy(self) -> "Batch":
        """The same in memory of its own."""
        target = None if self.target is None else self.target.clone()
        handed = None if self.handed is None else Handed(*(known.clone() for known in self.handed))
        return Batch(self.indices.clone(), self.x.clone(), self.y.clone(), target, handed)


class Notes:
    """What an attack says of what it tried, a line of words a sample of a batch."""

    def __init__(self, n: int) -> None:
        self.texts = [""] * n

    def hear(self, row: int, text: str) -> None:
        """Words on one sample."""
        self.texts[row] += f"; {text}" if self.texts[row] else str(text)


class Attempt(NamedTuple, Generic[Result]):
    """What was concluded from an attack's answer, None after a crash; why it does not count, in the order found.

    `changed` says of what nothing may rest on ("the model", a function of the harness) that it was not what it was
    before; it has been put back.
    """

    result: Result | None
    failures: tuple[str, ...]
    changed: str


def oracle_for(
    opened: Opened, network: Network, batch: Batch, guard: Guard, at_work: Callable[[Counts], None], *,
    passes: int = 1, saw: Callable[[Tensor, Images, Logits], None] | None = None, climb: Climb | None = None,
) -> ModelOracle:  # fmt: skip
    """The oracle of a batch, which counts its passes; `at_work` is told after each call. See `ModelOracle`."""
    counts = Counts(len(batch.x), batch.x.device)
    counts.on_call = guard.watching(lambda: at_work(counts))
    facts = opened.subject.facts
    return ModelOracle(
        network,
        counts,
        batch.rows,
        facts.classes,
        facts.randomised,
        facts.differentiable,
        passes,
        watch=saw,
        no_gradient=facts.no_gradient,
        climb=climb,
    )


def attempt(
    attack: Attack, opened: Opened, batch: Batch, oracle: ModelOracle, *, threat: ThreatModel, key: tuple[int, int],
    submit: Callable[[Tensor, Any], Mask], conclude: Callable[[Any], Result], guard: Guard, notes: Notes | None = None,
) -> Attempt[Result]:  # fmt: skip
    """Run an attack on a batch of the model that its oracle is of; `key` is that of its random numbers.

    `notes` hears what it says, `submit` answers `Case.submit`,
    `conclude` takes what the attack returns, `guard` knows the caller's own errors.

    Raises:
        UsageError: of the attack, which is for the caller to read.
        NotEstablishedError: if what it did to the model cannot be undone.
        Exception: of the caller's callback; or out of memory, where fewer samples may fit.
    """
    lent = batch.copy()  # nothing that an attack writes to is read again
    draws = SampleDraws(key, lent.indices)
    # A function in between, for a method of the judge's would lead to the judge.
    case = Case(
        oracle, lent.x, lent.y, lent.target, replace(threat), draws, lambda *offer: submit(*map(bare, offer)),
        batch.rows, lent.handed, (notes or Notes(len(batch.x))).hear,
    )  # fmt: skip
    counts, world = oracle.counts, World(opened.module, opened.device).put_back
    result: Result | None = None
    failures: list[str] = []
    left: list[str] = []
    replaced: list[str] = []
    changed = ""
    try:
        try:
            with torch.inference_mode(False):  # at its end gradients, inference and autocast are as at its beginning
                answer = bare(attack(case))
        finally:
            left, replaced = world()
            counts.on_call = None  # it leads back to the counts and the judge: a ring that would keep their images
            changed = "the model" if opened.put_back() else ""
        result = conclude(answer)
    except (UsageError, NotEstablishedError, KeyboardInterrupt):
        raise
    except NoGradientError as error:  # says something of the model: the attack broke no rule, it could do nothing
        if oracle.climb is None:
            failures.append(f"NoGradientError: {first_line(error, 300)}")
        else:
            oracle.climb.none_flows()
    except BaseException as error:  # the one deliberate catch-all: a crash or an exit is a fact about the attack
        guard.raise_callers()
        if devices.out_of_memory(error) and len(batch.x) > opened.subject.reference.tile:
            raise
        ended = "" if isinstance(error, Exception) else "the attack ended the process: "
        failures.append(f"{ended}{type(error).__name__}: {first_line(error, 300)}")
    if not all(a is None or b is None or torch.equal(bare(a), b) for a, b in zip(lent[1:4], batch[1:4], strict=True)):
        failures.append("changed the images or labels it was lent")
    failures += [f"left {name} changed" for name in left]
    return Attempt(result, tuple(failures), replaced[0] if replaced else changed)


def whole(cohorts: Sequence[Tensor], run: Callable[[Tensor], Result]) -> Iterator[tuple[Tensor, Result]]:
    """What `run` makes of the rows of each cohort, which cannot be split.

    Raises:
        RobustkitError: if one does not fit into memory.
    """
    for now in cohorts:
        try:
            yield now, run(now)
        except (MemoryError, RuntimeError) as error:
            if not devices.out_of_memory(error):
                raise
            raise RobustkitError(
                f"out of memory with {len(now)} samples, which are ranked together; choose a smaller cohort "
                "(fast:cohort=128) or a smaller tile"
            ) from error


def in_batches(
    rows: Tensor, in_flight: int, tile: int, device: torch.device, run: Callable[[Tensor], Result]
) -> Iterator[tuple[Tensor, Result]]:
    """What `run` makes of some rows, at most `in_flight` at once; where memory runs out, in batches of half as many.

    Raises:
        RobustkitError: if not even one tile fits.
    """
    while len(rows):
        now, short = rows[:in_flight], False
        try:
            result = run(now)
        except (MemoryError, RuntimeError) as error:
            if not devices.out_of_memory(error):
                raise
            if len(now) <= tile:
                raise RobustkitError(f"out of memory with one tile of {tile} samples; choose a smaller tile") from error
            in_flight = max(1, min(in_flight, len(now)) // 2 // tile) * tile
            short = True
        if short:  # not above, where the error still holds what the attempt had in memory
            devices.let_go(device)
            continue
        rows = rows[len(now) :]
        yield now, result
