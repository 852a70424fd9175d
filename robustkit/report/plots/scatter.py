"""Clean against robust accuracy, a mark a run, with both intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkit.errors import UsageError
from robustkit.report.plots import source, style
from robustkit.stats import Proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure.

    Raises:
        UsageError: if a robust accuracy is not established.
    """
    runs = source.runs(sources, "scatter")
    figure, axes = style.new(width, 0.95 + 0.06 * len(runs))
    for place, (name, record) in enumerate(runs):
        robust = record.robust_accuracy
        if robust is None:
            raise UsageError(f"{name}: the robust accuracy is not established: {record.why_no_robust_accuracy}")
        clean = record.clean_accuracy
        mark, label = style.MARKS[place % len(style.MARKS)], style.label(source.marked(name, record))
        axes.errorbar([float(clean)], [float(robust)], xerr=_ends(clean), yerr=_ends(robust), fmt=mark, label=label)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.6, linestyle=":")
    style.percent(axes, "x", "clean accuracy")
    style.percent(axes, "y", "robust accuracy")
    figure.legend(loc="outside upper left", ncols=1 if width == "one" else 2)
    return figure


def _ends(share: Proportion) -> list[list[float]]:
    return [[float(share) - share.low], [share.high - float(share)]]
