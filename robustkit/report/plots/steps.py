"""Whether an attack has converged: accuracy, or an audit's measure, over the steps it was given."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from robustkit import spec
from robustkit.errors import UsageError
from robustkit.records.run import RunRecord
from robustkit.report import facts
from robustkit.report.facts import Curve
from robustkit.report.plots import source, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = ("steps", "iterations")  # not "step", which is a size


class Series(NamedTuple):
    """An audit's series over steps."""

    name: str
    x: list[float]
    y: list[float]
    x_label: str
    y_label: str


def audited(runs: Sequence[tuple[str, RunRecord]]) -> list[Series]:
    """The audits' series whose x counts steps, and whose y is that of the first."""
    rows = []
    for name, record in runs:
        for check in (record.audit or {}).get("checks", ()):
            points = facts.series(check)
            if points and any(word in str(check["series"]["x_label"]).lower() for word in WORDS):
                labels = str(check["series"]["x_label"]), str(check["series"]["y_label"])
                rows.append(Series(source.marked(f"{name}, {check['name']}", record), *points, *labels))
    return [row for row in rows if row.y_label == rows[0].y_label]


def by_steps(runs: Sequence[tuple[str, RunRecord]]) -> list[Curve]:
    """The robust accuracy over `steps`, of runs that differ in nothing else.

    Raises:
        UsageError: unless each has one attack with its steps named, and some differ in them.
    """
    groups: dict[tuple[str, str], dict[int, RunRecord]] = {}
    for name, record in runs:
        texts = record.job["attacks"]
        parsed = spec.parse(texts[0]) if len(texts) == 1 else None
        if parsed is None or not parsed.options.get("steps", "").isdecimal():
            raise UsageError(f"{name} names no steps of one attack; give runs with steps=10, steps=100 …, or an audit")
        if record.robust_accuracy is None:
            raise UsageError(f"{name}: the robust accuracy is not established: {record.why_no_robust_accuracy}")
        rest = {key: value for key, value in parsed.options.items() if key != "steps"}
        key = str(record.job["model"]), str(spec.Spec(parsed.source, parsed.name, rest))
        groups.setdefault(key, {})[int(parsed.options["steps"])] = record
    if all(len(group) < 2 for group in groups.values()):
        raise UsageError("plot steps needs runs of one attack with several steps, or an audited run")
    found = []
    for (model, attack), group in groups.items():
        shares = [(steps, record.robust_accuracy) for steps, record in sorted(group.items())]
        known = [(float(steps), share) for steps, share in shares if share is not None]
        called = source.marked(f"{model}, {attack}", *group.values())
        found.append(Curve(called, tuple(x for x, _ in known), tuple(y for _, y in known)))
    return found


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure: of audits if every run has a series over steps, else of the runs' own accuracies.

    Raises:
        UsageError: see `by_steps`.
    """
    runs = source.runs(sources, "steps")
    series, doubted = audited(runs), any(record.warning for _, record in runs)
    if len(series) >= len(runs):
        figure, axes = style.new(width)
        for place, row in enumerate(series):
            mark, line = style.MARKS[place % len(style.MARKS)], style.LINES[place % len(style.LINES)]
            axes.plot(row.x, row.y, line, marker=mark, label=style.label(row.name))
        axes.set_xlabel(series[0].x_label)
        axes.set_ylabel(series[0].y_label)
        if all(0 <= y <= 1 for row in series for y in row.y):
            axes.set_ylim(0, 1.02)
        style.legend(axes, len(series), doubted=doubted)
        return figure
    curves = by_steps(runs)
    figure, axes = style.new(width)
    style.curves(axes, curves)
    style.logarithmic(axes, sorted({x for curve in curves for x in curve.x}))
    axes.set_xlabel("steps")
    style.percent(axes, "y", "robust accuracy")
    style.legend(axes, len(curves), doubted=doubted)
    return figure
