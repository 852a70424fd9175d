"""Progress of a run on the terminal: a live table, or plain lines where there is no terminal. Goes to stderr."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from robustkit import events


class Progress:
    """A context that is called with the engine's events."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.rows: dict[str, list[str]] = {}
        self.title, self.n = "", 0
        self.live: Live | None = None
        self.plain_at = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.transient = (
                self.live.transient and kind is None
            )  # what stood when it was stopped stays to be read
            self.live.stop()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if self.live is None and self.console.is_terminal:  # not earlier: a download may draw its bar before the run
            self.live = Live(console=self.console, refresh_per_second=8, transient=True)
            self.live.start()
        match event:
            case events.Started():
                self.title, self.n = event.title, event.n
                self._say(f"{event.title} · n = {event.n}" + (" · continued" if event.resumed else ""))
            case events.Noted():
                self._print(f"note: {event.message}")
            case events.Predicted():
                self._print(cost(event))
            case events.CleanDone():
                self.rows["clean"] = ["", str(event.clean), "", "", ""]
            case events.Progress():
                self._progress(event)
            case events.Auditing():
                self._print(f"audit of {event.n} samples, {cost(event)}")
            case events.Checked(outcome="suspect" | "invalid" | "undecided"):
                self._print(f"audit, {event.name}: {event.outcome.upper()}: {event.text}")
        if self.live is not None:
            self.live.update(self._table())

    def _progress(self, event: events.Progress) -> None:
        # At its very beginning a run's speed is not yet seen: a first call is slow, and what is weak breaks then.
        seen = event.fraction > 0.01 and (event.seconds > 1 or event.fraction > 0.1)
        left = event.seconds * (1 - event.fraction) / event.fraction if seen else None
        eta = "done" if event.fraction >= 1 else "…" if left is None else f"≤ {about(left)}"
        share = event.robust_accuracy
        before = self.rows.get(event.attack)
        self.rows[event.attack] = [str(event.broken), str(share), f"{event.queries:,}", clock(event.seconds), eta]
        if (
            self.live is None
            and self.rows[event.attack] != before
            and (event.fraction >= 1 or time.monotonic() - self.plain_at > 15)
        ):
            self.plain_at = time.monotonic()
            self._say(
                f"  {event.attack}: {100 * event.fraction:.0f} %, broke {event.broken}, robust accuracy so far "
                f"{share}, {event.queries:,} queries, {clock(event.seconds)}, ETA {eta}"
            )

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for name in ("", "broken", "accuracy [95 %]", "queries", "elapsed", "ETA"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        for name, cells in self.rows.items():
            table.add_row(name, *cells)
        return table

    def _say(self, text: str) -> None:
        if self.live is None:
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def cost(event: events.Predicted | events.Auditing) -> str:
    """A prediction in words: the range from where all breaks at once to where nothing does."""
    passes = f"if nothing breaks: {event.forwards:,} forwards, {event.backwards:,} backwards"
    most = about(event.seconds)
    if not event.least:
        return f"at most {most} ({passes})"
    least = about(event.least)
    if least == most:
        return f"about {most} ({passes})" if most[0].isdigit() else f"{most} ({passes})"
    return f"between {least}, if all breaks at once, and {most} ({passes})"


def about(seconds: float) -> str:
    """A duration that is only estimated: two digits of it, in the unit in which one thinks of it."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 1:
        return "less than 1 s"
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds / 86400:.2g}'):g} days"


def clock(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
