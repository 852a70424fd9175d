"""The evidence of an audit as plots, from what a record stores. Needs matplotlib, and no torch."""

from functools import partial
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError
from robustkit.records.files import write_atomic
from robustkit.records.findings import Audit, Check
from robustkit.report.plots.style import ready

FORMATS = ("pdf", "png")
_LOGARITHMIC = ("eps-sweep", "step-convergence", "zero-gradient", "misleading-gradient", "gradient-steadiness")


def check_matplotlib() -> None:
    """Refuse early, before an audit is computed for plots that cannot be drawn.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    if not ready():
        raise UsageError("plots need matplotlib, which is not installed: pip install 'robustkit-bench[plots]'")


def draw(audit: Audit, folder: Path) -> list[Path]:
    """One file of each format for each check that has a series; gives their paths.

    Raises:
        UsageError: if matplotlib is not installed, or `folder` is a file.
    """
    check_matplotlib()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --plots wants a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return [path for check in audit.checks if check.series is not None for path in _drawn(check, folder)]


def _drawn(check: Check, folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    _plot(figure.subplots(), check)
    paths = [folder / f"{check.name}.{kind}" for kind in FORMATS]
    for path in paths:
        # Without the time of day, and the same file for the same audit.
        dates: dict[str, Any] = {"CreationDate": None} if path.suffix == ".pdf" else {}
        save = partial(figure.savefig, format=path.suffix[1:], dpi=150, metadata=dates)
        write_atomic(path, save)
    return paths


def _plot(axes: Any, check: Check) -> None:
    series = check.series
    assert series is not None
    axes.plot(
        series.x, series.y, marker="o", color="tab:red" if check.outcome in ("suspect", "invalid") else "tab:blue"
    )
    if check.limit is not None and check.name != "step-convergence":  # whose limit is of a difference
        axes.axhline(check.limit, linestyle="--", linewidth=1, color="grey", label=f"limit {check.limit:g}")
        axes.legend(frameon=False)
    if check.name in _LOGARITHMIC:
        axes.set_xscale("log")
    low, high = min(0.0, *series.y), max(1.0, *series.y)
    axes.set_ylim(low - 0.03, high + 0.03)
    axes.set_xlabel(_escaped(series.x_label))
    axes.set_ylabel(_escaped(series.y_label))
    axes.set_title(f"{check.name}: {check.outcome}")


def _escaped(text: str) -> str:
    """Names of a model's parts, in which a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
