"""One display of a study's progress: all cells and the one at work; plain lines without a terminal. Goes to stderr."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from robustkit import events
from robustkit.report.live import about
from robustkit.study.events import CellDone, CellStarted, Event, Started, Within


class Display:
    """A context that is called with the events of a study."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console, self.quiet = Console(stderr=True), quiet
        self.progress: Progress | None = None
        self.whole = self.cell = TaskID(0)
        self.total = self.fresh = 0
        self.spent = self.cell_began = 0.0
        self.attacks, self.steps = 1, dict[str, float]()

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.live.transient = kind is None  # what stood when it was stopped stays to be read
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self.quiet:
            return
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, CellStarted):
            self.cell_began, self.steps = time.monotonic(), {}
            if self.progress is not None:
                title = f"{event.number}/{self.total} {event.title}"
                self.progress.reset(self.cell, description=title[:100], total=100, left="")
        elif isinstance(event, Within):
            self._within(event.event)
        elif isinstance(event, CellDone):
            self._done(event)

    def _start(self, event: Started) -> None:
        self.total = event.total
        self._say(f"{event.title}: {event.total} cells")
        if event.note:
            self._say(f"note: {event.note}")
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
            left = TextColumn("{task.fields[left]}", markup=False)
            self.progress = Progress(*columns, TimeElapsedColumn(), left, console=self.console, transient=True)
            self.whole = self.progress.add_task("cells", total=event.total, left="")
            self.cell = self.progress.add_task("", total=100, left="")

    def _within(self, event: events.Event | events.TransferEvent) -> None:
        if isinstance(event, events.Started):
            self.attacks = max(1, len(event.attacks))
            if self.progress is not None:  # not earlier: a download of the cell's model draws a bar of its own
                self.progress.start()
        elif isinstance(event, events.Progress) and self.progress is not None:
            self.steps[event.attack] = event.fraction
            share = f"{event.attack}: robust so far {event.robust_accuracy}"
            self.progress.update(self.cell, completed=round(100 * sum(self.steps.values()) / self.attacks), left=share)
        elif isinstance(event, events.Making) and self.progress is not None:
            self.progress.update(self.cell, completed=round(100 * event.fraction), left=event.attack)

    def _done(self, event: CellDone) -> None:
        if event.computed:
            self.fresh, self.spent = self.fresh + 1, self.spent + time.monotonic() - self.cell_began
        left = self.total - event.number
        eta = f"about {about(left * self.spent / self.fresh)} left" if self.fresh and left else ""
        if self.progress is not None:
            self.progress.update(self.whole, completed=event.number, left=eta)
            self.progress.stop()
        known = "" if event.computed or event.outcome.failed else " (as it was)"
        result = f"FAILED: {event.outcome.failed}" if event.outcome.failed else f"{event.result}{known}"
        self._say(f"[{event.number}/{self.total}] {event.outcome.cell}: {result}")

    def _say(self, text: str) -> None:
        console = self.progress.console if self.progress is not None else self.console
        console.print(text, highlight=False, markup=False, soft_wrap=True)
