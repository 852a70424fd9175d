"""Accuracy over eps, with bands."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robustkit.errors import UsageError
from robustkit.records.run import RunRecord
from robustkit.records.sweep import Sweep
from robustkit.records.transfer import TransferRecord
from robustkit.report import facts
from robustkit.report.facts import Curve, LeftOut
from robustkit.report.plots import source, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def found(sources: Sequence[source.Source]) -> list[Curve]:
    """A curve for each sweep, each run with distances, and each model that has runs at several eps.

    Raises:
        UsageError: for a record that gives none.
    """
    curves: list[Curve] = []
    single: dict[tuple[str, str], list[tuple[str, RunRecord]]] = {}
    for name, stored in sources:
        if isinstance(stored, TransferRecord):
            raise UsageError(f"{name} is a transfer run; plot eps draws runs and sweeps")
        if isinstance(stored, Sweep):
            curves.append(_named(facts.sweep_curve(stored.records), name))
        elif isinstance(curve := facts.distance_curve(stored), Curve):
            curves.append(replace(curve, name=name))
        else:
            job = stored.job
            single.setdefault((job["model"] + (job.get("defense") or ""), job["attack"]), []).append((name, stored))
    for (model, _), rows in single.items():
        name, first = rows[0]
        if len({record.job["eps"] for _, record in rows}) < 2:
            _named(facts.distance_curve(first), f"{name}, for want of a sweep,")
        records = sorted((record for _, record in rows), key=lambda record: float(record.job["eps"]))
        curves.append(_named(facts.sweep_curve(records), model))
    return curves


def _named(curve: Curve | LeftOut, name: str) -> Curve:
    if isinstance(curve, LeftOut):
        raise UsageError(f"{name} gives no curve: {curve.reason}")
    return replace(curve, name=name)


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure."""
    curves = found(sources)
    figure, axes = style.new(width)
    style.curves(axes, curves)
    norms = sorted({str(source.job_of(stored)["norm"]) for _, stored in sources})
    axes.set_xlabel(f"eps ({', '.join(norms)})")
    axes.set_xlim(left=0)
    style.percent(axes, "y", "robust accuracy")
    style.legend(axes, len(curves))
    return figure
