"""Progress of a training on the terminal: a bar and a line an epoch. Goes to stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from robustkit import events
from robustkit.report.live import clock


class TrainingProgress:
    """A context that is called with the events of a training."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=self.console, transient=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task: TaskID | None = None
        self.epochs = 0

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.live.transient = kind is None  # what stood when it was stopped stays to be read
        self.bar.stop()

    def __call__(self, event: events.TrainingEvent) -> None:
        """Show one event."""
        if isinstance(event, events.TrainingStarted):
            self.epochs = event.epochs
            more = f" · {event.done} done before" if event.done else ""
            self._say(f"{event.title} · {event.epochs} epochs{more}")
            self.task = self.bar.add_task("training", total=event.epochs, completed=event.done)
        elif isinstance(event, events.BatchDone) and self.task is not None:
            text = f"epoch {event.epoch}/{self.epochs} loss {event.loss:.4f}"
            self.bar.update(self.task, description=text, completed=event.epoch - 1 + event.share)
        elif isinstance(event, events.EpochDone) and self.task is not None:
            self.bar.update(self.task, completed=event.epoch)
            losses = ", ".join(f"{name} {value:.4f}" for name, value in event.losses.items())
            self._say(
                f"  {event.epoch}/{self.epochs}: {losses}; test {event.clean:.1%} clean, {event.robust:.1%} under "
                f"quick PGD; {clock(event.seconds)}"
            )

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
