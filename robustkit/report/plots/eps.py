"""Accuracy over eps, with bands."""

import itertools
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

# What runs on one line share: all but eps that decides a number.
_SAME = ("model", "defense", "attack", "norm", "data", "target", "seed", "draws", "outputs", "quantize", "data_sha256",
         "model_sha256")  # fmt: skip


def found(sources: Sequence[source.Source]) -> list[Curve]:
    """A curve for each sweep, each run with distances, and runs that differ in eps alone.

    Raises:
        UsageError: for a record that gives none.
    """
    curves: list[Curve] = []
    single: dict[tuple[str, ...], list[tuple[str, RunRecord]]] = {}
    for name, stored in sources:
        if isinstance(stored, TransferRecord):
            raise UsageError(f"{name} is a transfer run; plot eps draws runs and sweeps")
        if isinstance(stored, Sweep):
            curves.append(_named(facts.sweep_curve(stored.records), source.marked(name, *stored.records)))
        elif isinstance(curve := facts.distance_curve(stored), Curve):
            curves.append(replace(curve, name=source.marked(name, stored)))
        else:
            single.setdefault(tuple(str(stored.job.get(key) or 0) for key in _SAME), []).append((name, stored))
    differ = [place for place in range(1, len(_SAME)) if len({key[place] for key in single}) > 1]
    for key, rows in single.items():
        name, first = rows[0]
        if len({record.job["eps"] for _, record in rows}) < 2:
            _named(facts.distance_curve(first), f"{name}, for want of a sweep,")
        records = sorted((record for _, record in rows), key=lambda record: float(record.job["eps"]))
        for one, other in itertools.pairwise(records):
            if one.job["eps"] == other.job["eps"]:
                raise UsageError(f"{name}: two runs at eps {one.eps} would be one line's; leave one of them out")
        called = ", ".join([key[0], *filter(None, (_told(_SAME[place], key[place]) for place in differ))])
        curves.append(_named(facts.sweep_curve(records), source.marked(called, *records)))
    return curves


def _named(curve: Curve | LeftOut, name: str) -> Curve:
    if isinstance(curve, LeftOut):
        raise UsageError(f"{name} gives no curve: {curve.reason}")
    return replace(curve, name=name)


def _told(key: str, value: str) -> str:
    """What a line's name says of a setting in which the lines differ; nothing of a hash, or of one that is not set."""
    if key == "seed":
        return f"seed {value}"
    return "" if value == "0" or key.endswith("sha256") else value


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure."""
    curves = found(sources)
    figure, axes = style.new(width)
    style.curves(axes, curves)
    norms = sorted({str(source.job_of(stored)["norm"]) for _, stored in sources})
    axes.set_xlabel(f"eps ({', '.join(norms)})")
    axes.set_xlim(left=0)
    style.written(axes, {0.0: "0", **{float(each.job["eps"]): each.eps for _, each in source.runs(sources, "eps")}})
    style.percent(axes, "y", "robust accuracy")
    records = [record for _, record in source.runs(sources, "eps")]
    style.legend(axes, len(curves), doubted=any(record.warning for record in records))
    return figure
