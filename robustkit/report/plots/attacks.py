"""The accuracy that each attack leaves, beside the clean accuracy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkit.errors import UsageError
from robustkit.report.plots import source, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROVED = "certified"  # the row of what is proved, below what the attacks left


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure: a row an attack, a mark a run; in a run, what stands after it and those before it.

    Last, in runs with certificates, what is proved.

    Raises:
        UsageError: if no accuracy is established.
    """
    runs = source.runs(sources, "attacks")
    rows = ["no attack", *dict.fromkeys(row.name for _, record in runs for row in record.by_attack)]
    rows += [PROVED] if any(record.certified_accuracy for _, record in runs) else []
    figure, axes = style.new(width, 0.28 + 0.11 * len(rows) * max(1.0, len(runs) / 2.5))
    for place, (name, record) in enumerate(runs):
        known = [(0, record.clean_accuracy)]
        known += [(rows.index(row.name), row.robust) for row in record.by_attack if row.robust is not None]
        if len(known) == 1:
            raise UsageError(f"{name}: no accuracy under attack is established: {record.why_no_robust_accuracy}")
        if record.certified_accuracy is not None:
            known.append((rows.index(PROVED), record.certified_accuracy))
        shift = 0.7 * ((place + 0.5) / len(runs) - 0.5)
        shares, y = [share for _, share in known], [row + shift for row, _ in known]
        ends = [[float(s) - s.low for s in shares], [s.high - float(s) for s in shares]]
        axes.errorbar(
            [float(s) for s in shares],
            y,
            xerr=ends,
            fmt=style.MARKS[place % len(style.MARKS)],
            label=style.label(source.marked(name, record)),
        )
    axes.set_yticks(range(len(rows)), [style.label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    style.percent(axes, "x", "accuracy")
    style.legend(axes, len(runs), doubted=any(record.warning for _, record in runs))
    return figure
