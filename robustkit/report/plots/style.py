"""The style of every figure, and files that are the same bytes each time. Needs matplotlib."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustkit.errors import UsageError
from robustkit.report import facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustkit.report.facts import Curve

Width = Literal["one", "two"]
INCHES: Mapping[str, float] = {"one": 3.25, "two": 6.75}
STYLE = Path(__file__).parent.parent / "paper.mplstyle"
MARKS = "osD^vP*"
LINES = ("-", "--", "-.", ":")
METADATA: Mapping[str, Mapping[str, Any]] = {
    # What would tell two drawings of one record apart is left out.
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
    ".png": {"Software": None},
}


def check(path: Path) -> None:
    """Whether a figure can be drawn there.

    Raises:
        UsageError: for an ending that is not .pdf, .svg or .png, a folder that is not there, or without matplotlib.
    """
    if path.suffix not in METADATA:
        raise UsageError(f"{path}: a figure is a {', '.join(METADATA)} file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if not ready():
        raise UsageError("figures need 'matplotlib', which is not installed: pip install 'robustkit-bench[plots]'")


def ready() -> bool:
    """Whether matplotlib is installed; it is imported even where MPLBACKEND names a backend that is not there.

    A notebook hands its backend down to the commands in it. No figure here needs one.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    if "matplotlib" not in sys.modules:
        named = os.environ.pop("MPLBACKEND", None)
        try:
            import matplotlib
        finally:
            os.environ.update({} if named is None else {"MPLBACKEND": named})
        if named:
            with contextlib.suppress(ValueError):
                matplotlib.rcParams["backend"] = named  # as it would be: this process may draw more than we do
    return True


@contextmanager
def paper() -> Iterator[None]:
    """The paper's style, not the reader's own, so that a record looks the same everywhere."""
    from matplotlib import style

    with style.context(["default", str(STYLE)]):
        yield


def save(figure: "Figure", path: Path) -> None:
    """Write a figure, inside `paper()`; the same figure gives the same bytes with the same matplotlib."""
    from robustkit.records.files import write_atomic

    write_atomic(path, lambda part: figure.savefig(part, format=path.suffix[1:], metadata=METADATA[path.suffix]))


def new(width: Width, ratio: float = 0.72) -> tuple["Figure", "Axes"]:
    """A figure as wide as one column or two, and its axes."""
    from matplotlib.figure import Figure

    inches = INCHES[width]
    figure = Figure(figsize=(inches, inches * ratio * (1.0 if width == "one" else 0.7)), layout="constrained")
    return figure, figure.add_subplot()


def percent(axes: "Axes", axis: Literal["x", "y"], label: str) -> None:
    """Make an axis one of shares in percent, from 0 to 100."""
    from matplotlib.ticker import PercentFormatter

    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_formatter(PercentFormatter(1.0, decimals=0))
    which.set_label_text(label)
    (axes.set_xlim if axis == "x" else axes.set_ylim)(0, 1.02)


def written(axes: "Axes", values: Mapping[float, str]) -> None:
    """Ticks of x at these values, as they are written, as far as they have room; with fewer than two, x stays."""
    low, high = axes.get_xlim()
    kept = facts.spaced(values, low, high, 0.11)
    if len(kept) > 1:
        axes.set_xticks(kept, [values[value] for value in kept], parse_math=False)


def logarithmic(axes: "Axes", at: Sequence[float] = ()) -> None:
    """Make x logarithmic, from 0 on, with plain numbers at its ticks: powers of ten, or `at`."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("symlog", linthresh=1)
    if at:
        axes.set_xticks(at)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curves(axes: "Axes", found: Sequence["Curve"]) -> None:
    """Lines with their intervals as bands; told apart by colour, dash and mark."""
    for place, curve in enumerate(found):
        y = [float(share) for share in curve.y]
        low, high = [share.low for share in curve.y], [share.high for share in curve.y]
        (line,) = axes.plot(
            curve.x,
            y,
            linestyle=LINES[place % len(LINES)],
            marker="" if curve.steps else MARKS[place % len(MARKS)],
            drawstyle="steps-post" if curve.steps else "default",
            label=label(curve.name),
        )
        axes.fill_between(
            curve.x, low, high, step="post" if curve.steps else None, color=line.get_color(), alpha=0.18, lw=0
        )


def legend(axes: "Axes", entries: int, *, doubted: bool = False) -> None:
    """A legend where there is more than one thing to tell apart, or a name says that an audit doubts the number."""
    if entries > 1 or doubted:
        axes.legend()


def label(text: str) -> str:
    """A name that matplotlib shows as it is: it hides what begins with '_'."""
    short = " ".join(text.split())
    short = short if len(short) <= 40 else f"{short[:26]}…{short[-13:]}"  # at the end stand eps, and an audit's doubt
    return f" {short}" if short.startswith("_") else short
