"""The share of the attacked samples that is broken within so many forward passes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robustkit.errors import UsageError
from robustkit.report import facts
from robustkit.report.facts import Curve
from robustkit.report.plots import source, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure: a curve for each run and attack that broke anything.

    Raises:
        UsageError: if none did.
    """
    runs = source.runs(sources, "queries")
    several = len(runs) > 1
    curves = []
    for name, record in runs:
        for attack in record.job["attacks"]:
            found = facts.query_curve(record, attack)
            if isinstance(found, Curve):
                called = f"{name}, {attack}" if several else attack
                curves.append(replace(found, name=source.marked(called, record)))
    if not curves:
        raise UsageError("no attack of these runs broke a sample, so there is no curve over forward passes")
    figure, axes = style.new(width)
    style.curves(axes, curves)
    style.logarithmic(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("forward passes of a sample")
    style.percent(axes, "y", "broken, of those attacked")
    style.legend(axes, len(curves), doubted=any(record.warning for _, record in runs))
    return figure
