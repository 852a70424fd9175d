"""Progress of a run on the terminal: a live table, or plain lines where there is no terminal. Goes to stderr."""

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
        left = event.seconds * (1 - event.fraction) / event.fraction if event.fraction > 0.01 else None
        eta = "done" if event.fraction >= 1 else "…" if left is None else clock(left)
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
    """A prediction in words."""
    passes = f"{event.forwards:,} forwards, {event.backwards:,} backwards"
    return f"if nothing breaks: {passes}, about {clock(event.seconds)} (less for every sample that does)"


def clock(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
