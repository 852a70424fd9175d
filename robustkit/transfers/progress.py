"""How much of a transfer run is done, by what its attacks may cost, as events a few times a second."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from robustkit import events
from robustkit.events import Guard
from robustkit.models.oracle import Counts
from robustkit.transfers.plan import Row

TELL_EVERY_S = 0.25


class Progress:
    """Tells how far the adversarials of all rows are. Progress is counted in passes of single surrogates."""

    def __init__(self, rows: Sequence[Row], n: int, tell: Callable[[events.TransferEvent], None]) -> None:
        self._tell, self._total = tell, n * sum(row.cost for row in rows)
        self._done, self._told = 0, 0.0
        self._passes: Counter[tuple[str, str]] = Counter()
        self.guard = Guard()

    def judging(self, row: Row | None, victim: str) -> None:
        """A model is shown a row's adversarials, or the clean images."""
        self._tell(events.Judging(*(row.key if row else ("", "")), victim))

    def at_work(self, row: Row, counts: Counts) -> None:
        """A batch is at work."""
        if time.perf_counter() - self._told >= TELL_EVERY_S:
            self._emit(row, len(counts.forwards) * min(row.cost, counts.calls), counts.spent)

    def made(self, row: Row, facts: Mapping[str, np.ndarray], *, new: bool) -> None:
        """Some of a row's adversarials are there; unless they are `new`, the journal had them."""
        self._done += len(facts["violated"]) * row.cost
        self._passes[row.key] += int(facts["forwards"].sum() + facts["backwards"].sum())
        if new:
            self._emit(row, 0, 0)

    def _emit(self, row: Row, ahead: int, passes: int) -> None:
        self._told = time.perf_counter()
        done = (self._done + ahead) / self._total
        self._tell(events.Making(*row.key, done, self._passes[row.key] + passes))
