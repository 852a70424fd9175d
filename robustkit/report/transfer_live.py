"""Progress of a transfer run on the terminal: a live line, or plain lines without a terminal. Goes to stderr."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from robustkit import events
from robustkit.report.live import about, clock

PLAIN_EVERY_S = 15.0


class Line:
    """A context that is called with the events of a transfer run."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.began = self.told = time.monotonic()
        self.first: float | None = None

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.transient = (
                self.live.transient and kind is None
            )  # what stood when it was stopped stays to be read
            self.live.stop()

    def __call__(self, event: events.TransferEvent) -> None:
        """Show one event."""
        if isinstance(event, events.Started):
            self.began = time.monotonic()
            self._plain(f"{event.title} · n = {event.n}" + (" · continued" if event.resumed else ""))
            if self.console.is_terminal:
                self.live = Live(console=self.console, refresh_per_second=8, transient=True)
                self.live.start()
        elif isinstance(event, events.Making):
            self._say(f"{event.surrogates} · {event.attack}: {event.passes:,} passes · {self._clock(event.fraction)}")
        elif isinstance(event, events.Judging) and self.live is not None:
            row = f"{event.surrogates} · {event.attack}" if event.attack else "clean images"
            self.live.update(Text(f"{row}: judged on {event.victim}", no_wrap=True, overflow="ellipsis"))

    def _clock(self, fraction: float) -> str:
        """How far the whole run is; what the journal had already does not count for the time that is left."""
        self.first = fraction if self.first is None else self.first
        elapsed, fresh = time.monotonic() - self.began, fraction - self.first
        seen = fresh > 0.01 and elapsed > 1 and fraction < 1  # earlier the speed is not known
        left = f", about {about(elapsed * (1 - fraction) / fresh)} left" if seen else ""
        return f"{100 * fraction:.1f} % of the run · {clock(elapsed)}{left}"

    def _say(self, text: str) -> None:
        if self.live is not None:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self.told > PLAIN_EVERY_S:
            self.told = time.monotonic()
            self._plain(text)

    def _plain(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
