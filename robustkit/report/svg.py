"""Small line charts as inline SVG, coloured by the page's style sheet so that they follow its light or dark scheme."""

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from robustkit.report.facts import Curve, spaced

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 240, 68, 14, 10, 42
COLOURS, DASHES = 4, 3  # classes .c0 … and .d0 … of the style sheet
APART = 40  # pixels between two ticks that have room for their texts
TICKS = 5


class Axis(NamedTuple):
    """One axis: what it is called, its range, and where its ticks stand."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    text: Callable[[float], str]


def curves(
    found: Sequence[Curve], x_label: str, y_label: str, *, title: str, ticks: Mapping[float, str] | None = None,
    bands: bool = True,
) -> str:  # fmt: skip
    """Shares in [0,1] over x, each with its interval as a band if `bands`; lines beyond the colours are dashed.

    `ticks` are values of x with how they are written, of which as many are shown as fit; else round numbers.
    """
    xs = [x for curve in found for x in curve.x]
    x_axis = _axis(x_label, min(xs), max(xs))
    if ticks:
        x_axis = _ticked(x_axis, ticks)
    y_axis = Axis(y_label, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), lambda value: f"{100 * value:.0f} %")
    parts = []
    for place, curve in enumerate(found):
        upper = _line(curve.x, [share.high for share in curve.y], curve.steps)
        lower = _line(curve.x, [share.low for share in curve.y], curve.steps)
        middle = _line(curve.x, [float(share) for share in curve.y], curve.steps)
        parts.append(f'<g class="c{place % COLOURS} d{place // COLOURS % DASHES}">')
        if bands:
            parts.append(f'<polygon class="band" points="{_points([*upper, *reversed(lower)], x_axis, y_axis)}"/>')
        parts.append(f'<polyline class="line" points="{_points(middle, x_axis, y_axis)}"/>')
        if not curve.steps:
            parts += [
                f'<circle class="mark" cx="{_place_x(x, x_axis):.1f}" cy="{_place_y(float(y), y_axis):.1f}" r="3">'
                f"<title>{html.escape((ticks or {}).get(x) or _short(x))}: {html.escape(str(y))}</title></circle>"
                for x, y in zip(curve.x, curve.y, strict=True)
            ]
        parts.append("</g>")
    return _chart(parts, x_axis, y_axis, title)


def line(
    x: Sequence[float], y: Sequence[float], x_label: str, y_label: str, *, title: str, limit: float | None = None
) -> str:
    """One line through points, over a range of y that has 0 and 1 in it; with a `limit`, that as a dashed one."""
    x_axis, y_axis = _axis(x_label, min(x), max(x)), _axis(y_label, min(0.0, *y), max(1.0, *y))
    points = list(zip(x, y, strict=True))
    parts = [f'<g class="c0"><polyline class="line" points="{_points(points, x_axis, y_axis)}"/>']
    parts += [
        f'<circle class="mark" cx="{_place_x(a, x_axis):.1f}" cy="{_place_y(b, y_axis):.1f}" r="3">'
        f"<title>{_short(a)}: {_short(b)}</title></circle>"
        for a, b in points
    ]
    parts.append("</g>")
    if limit is not None and y_axis.low <= limit <= y_axis.high:
        at, ends = _place_y(limit, y_axis), (LEFT, WIDTH - RIGHT)
        parts.append(f'<line class="limit" x1="{ends[0]}" x2="{ends[1]}" y1="{at:.1f}" y2="{at:.1f}"/>')
    return _chart(parts, x_axis, y_axis, title)


def bar(share: float, low: float | None = None, high: float | None = None, place: int = 0) -> str:
    """A bar for a share in [0,1] of its width, with a whisker where it has an interval."""
    whisker = ""
    if low is not None and high is not None:
        ends = 100 * low, 100 * high
        whisker = (
            f'<path class="whisker" vector-effect="non-scaling-stroke" d="M{ends[0]:.2f} 6H{ends[1]:.2f}'
            f'M{ends[0]:.2f} 3V9M{ends[1]:.2f} 3V9"/>'
        )
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="12"/>'
        f'<rect class="c{place % COLOURS} fill" width="{100 * min(1.0, max(0.0, share)):.2f}" height="12"/>'
        f"{whisker}</svg>"
    )


def split(shares: Sequence[float]) -> str:
    """A bar of several parts, one colour each, what is left of its width empty."""
    drawn, at = [], 0.0
    for place, share in enumerate(shares):
        drawn.append(f'<rect class="c{place % COLOURS} fill" x="{at:.2f}" width="{100 * share:.2f}" height="12"/>')
        at += 100 * share
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="12"/>{"".join(drawn)}</svg>'
    )


def _line(x: Sequence[float], y: Sequence[float], steps: bool) -> list[tuple[float, float]]:
    """The points of a line; in steps, each value holds until the next x."""
    points = list(zip(x, y, strict=True))
    if not steps:
        return points
    held = [points[0]]
    for (_, before), (at, now) in itertools.pairwise(points):
        held += [(at, before), (at, now)]
    return held


def _axis(label: str, low: float, high: float) -> Axis:
    if not high > low:
        low, high = min(0.0, 1.25 * low), max(0.0, 1.25 * high) or (0.0 if low < 0 else 1.0)  # one value: beside zero
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) <= TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(label, low, high, [i * step for i in range(first, last + 1)], _short)


def _ticked(axis: Axis, written: Mapping[float, str]) -> Axis:
    """The axis with ticks at these values, as many as have room, the last among them."""
    kept = spaced(written, axis.low, axis.high, APART / (WIDTH - LEFT - RIGHT))
    return axis if len(kept) < 2 else axis._replace(ticks=kept, text=lambda value: written[value])


def _short(value: float) -> str:
    return f"{value:.4g}"


def _place_x(value: float, axis: Axis) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _place_y(value: float, axis: Axis) -> float:
    return TOP + (axis.high - value) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _points(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join(f"{_place_x(x, x_axis):.1f},{_place_y(y, y_axis):.1f}" for x, y in points)


def _chart(parts: Sequence[str], x_axis: Axis, y_axis: Axis, title: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    grid = []
    for tick in y_axis.ticks:
        y = _place_y(tick, y_axis)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(y_axis.text(tick))}</text>')
    for tick in x_axis.ticks:
        x = _place_x(tick, x_axis)
        grid.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        grid.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{html.escape(x_axis.text(tick))}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    names = (
        f'<text x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(_cut(x_axis.label))}</text>'
        f'<text transform="translate(11 {middle_y:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(_cut(y_axis.label, 30))}</text>"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{html.escape(title)}</title>'
        f"{''.join(grid)}{names}{''.join(parts)}</svg>"
    )


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
