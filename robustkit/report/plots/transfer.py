"""The success rates of a transfer run as a heat map."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkit.errors import UsageError
from robustkit.records.transfer import TransferRecord
from robustkit.report.plots import source, style
from robustkit.report.transfer import heatmap_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(sources: Sequence[source.Source], width: style.Width) -> "Figure":
    """The figure, of one transfer run.

    Raises:
        UsageError: for anything else.
    """
    if len(sources) != 1 or not isinstance(sources[0].found, TransferRecord):
        given = " and ".join(f"a {source.word(each.found)}" for each in sources[:3])
        raise UsageError(f"plot transfer draws one transfer run; give the folder of one, not of {given}")
    return heatmap_figure(sources[0].found, "all", width)
