"""Downloads on the terminal: a bar, or one line where there is no terminal. Goes to stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustkit import cache


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Within it, each download of `cache.fetch` is shown; or none, if quiet."""
    before = cache.progress.set(None if quiet else _bar)
    try:
        yield
    finally:
        cache.progress.reset(before)


@contextmanager
def _bar(remote: cache.Remote) -> Iterator[cache.Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"downloading {remote.place}", highlight=False, markup=False, soft_wrap=True)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(remote.place.rpartition("/")[2], total=remote.size)
        yield lambda done, total: progress.update(task, completed=done, total=total or remote.size)


def size(count: int) -> str:
    """A number of bytes for people."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
