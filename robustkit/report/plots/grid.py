"""Broken samples as images: the original, the adversarial, and what was added, amplified around grey."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from robustkit.errors import UsageError
from robustkit.records.run import RunRecord
from robustkit.report import facts, gallery
from robustkit.report.plots import source, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {"one": 4, "two": 8}


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure, of one run: a column a sample.

    Raises:
        UsageError: unless the run kept its adversarials with their originals, and broke a sample.
    """
    runs = source.runs(sources, "grid")
    if len(runs) != 1:
        raise UsageError(f"plot grid draws one run, not {len(runs)}")
    name, record = runs[0]
    if record.adversarial is None or "clean" not in record.adversarial:
        what = "its adversarials" if record.adversarial is None else "the originals beside its adversarials"
        raise UsageError(f"{name} did not keep {what}; run it again with --save-adversarial")
    rows = gallery.chosen(record, COLUMNS[width])
    if not rows or record.adversarial["adv"].shape[1] not in (1, 3):
        raise UsageError(
            f"{name} has no picture to draw: {'they are not grey or coloured' if rows else 'nothing broke'}"
        )
    figure = _figure(record, rows, width)
    if record.warning:
        figure.suptitle(style.label(source.marked(name, record)), size=7)
    return figure


def _figure(record: RunRecord, rows: Sequence[int], width: style.Width) -> "Figure":
    from matplotlib.figure import Figure

    images = record.adversarial or {}
    known = facts.decisions(record)
    decided = {} if isinstance(known, facts.LeftOut) else known
    label = dict(zip(record.samples["index"].tolist(), record.samples["label"].tolist(), strict=True))
    inches = style.INCHES[width]
    figure = Figure(figsize=(inches, inches / COLUMNS[width] * 3.6), layout="constrained")
    for column, row in enumerate(rows):
        index = int(images["index"][row])
        clean, adv = np.asarray(images["clean"][row]), np.asarray(images["adv"][row])
        added, factor = gallery.amplified(clean, adv)
        said = f"as {decided[index]}" if index in decided else "adversarial"
        titles = (f"class {label[index]}", said, f"× {factor:.3g}")
        for line, (image, title) in enumerate(zip((clean, adv, added), titles, strict=True)):
            axes = figure.add_subplot(3, COLUMNS[width], line * COLUMNS[width] + column + 1)
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(title, size=7, pad=2)
            axes.set_axis_off()
    return figure
