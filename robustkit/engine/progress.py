"""The passes of a measurement's attacks, over all shards, as events a few times a second."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustkit import events
from robustkit.engine.judge import BROKEN, Judge
from robustkit.engine.plan import Named
from robustkit.models.opening import Opened
from robustkit.models.oracle import Counts
from robustkit.numerics import devices
from robustkit.stats import Proportion

TELL_EVERY_S = 0.25


@dataclass(slots=True)
class _Attack:
    """What one attack did in the shards so far."""

    broken: int = 0
    queries: int = 0
    robust: int = 0
    seen: int = 0
    seconds: float = 0.0


class Progress:
    """Tells how far each attack is and what it did.

    The robust accuracy of an attack is an estimate until the last shard: it counts as robust what still stands in the
    shards so far.
    """

    def __init__(self, attacks: Sequence[Named], opened: Opened, tell: Callable[[events.Event], None]) -> None:
        self._tell, self._n = tell, len(opened.samples)
        self._attacks = attacks
        self._most = [max(1, sum(named.attack.cost(opened.subject.facts.classes))) for named in attacks]
        self._done = [_Attack() for _ in attacks]
        self._correct = self._looked = 0
        self._at = self._before = 0
        self._total = self._finished = 0.0
        self._began = self._told = 0.0
        self.guard = events.Guard()

    def clean(self, correct: int, n: int) -> None:
        """The clean pass of a shard is done."""
        self._correct, self._looked = self._correct + correct, self._looked + n
        self._tell(events.CleanDone(Proportion(self._correct, self._looked)))

    def begin(
        self, step: int, size: int, standing: int, pending: int, facts: Sequence[Mapping[str, np.ndarray]]
    ) -> None:
        """An attack (the first is step 1) begins on some shards of `size` samples, some of it known by these facts."""
        self._at = step - 1
        one = self._done[self._at]
        known = sum(int((each["outcome"] == BROKEN).sum()) for each in facts)
        self._before, one.seen = one.seen, one.seen + size
        one.robust += standing - known
        one.broken += known
        one.queries += sum(int(each["forwards"].sum() + each["backwards"].sum()) for each in facts)
        self._total, self._finished = max(1, pending), 0
        self._began = time.perf_counter()
        self._emit(0, 0, 0)

    def at_work(self, counts: Counts, judge: Judge) -> None:
        """A batch is at work."""
        if time.perf_counter() - self._told < TELL_EVERY_S:
            return
        n = len(counts.forwards)
        if devices.is_host(counts.forwards.device):
            broken, busiest = int(judge.broken.sum()), int((counts.forwards + counts.backwards).max())
        else:  # an estimate: an attack must not wait for its device because somebody watches it
            broken, busiest = n - counts.asked, counts.calls
        # A broken sample is finished; the others are as far as the busiest of them.
        ahead = broken + (n - broken) * min(1.0, busiest / self._most[self._at])
        self._emit(ahead, broken, counts.spent)

    def batch_done(self, facts: Mapping[str, np.ndarray]) -> None:
        """A batch is judged."""
        one = self._done[self._at]
        broken = int((facts["outcome"] == BROKEN).sum())
        self._finished += len(facts["outcome"])
        one.broken, one.robust = one.broken + broken, one.robust - broken
        one.queries += int(facts["forwards"].sum() + facts["backwards"].sum())
        self._emit(0, 0, 0)

    def end(self) -> None:
        """The attack is done with these shards."""
        self._finished = self._total
        self._emit(0, 0, 0)
        self._done[self._at].seconds += time.perf_counter() - self._began

    def _emit(self, ahead: float, broken: int, queries: int) -> None:
        self._told = time.perf_counter()
        one = self._done[self._at]
        here = (self._finished + ahead) / self._total * (one.seen - self._before)
        self._tell(
            events.Progress(
                attack=self._attacks[self._at].name,
                fraction=min(1.0, (self._before + here) / self._n),
                broken=one.broken + broken,
                robust_accuracy=Proportion(one.robust - broken, one.seen),
                queries=one.queries + queries,
                seconds=one.seconds + time.perf_counter() - self._began,
            )
        )
