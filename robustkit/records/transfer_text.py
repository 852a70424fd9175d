"""A transfer record as plain text, and the words that every report of it shares."""

import re
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from robustkit.records.text import labelled_as, percent
from robustkit.spec import is_path

if TYPE_CHECKING:
    from robustkit.records.transfer import Cell, Of, TransferRecord

WHITE_BOX = "*"


def heading(record: "TransferRecord") -> str:
    """What was attacked, with what."""
    job = record.job
    target = f", target {job['target']}" if job["target"] else ""
    # Without options: a table that is published names no folder of somebody's.
    data = re.split(r":(?![/\\])", job["data"])[0]
    data = PureWindowsPath(data).name if is_path(data) else data
    behind = f", victims behind {job['defense']}" if job.get("defense") else ""
    return (
        f"{labelled_as(record.about.label)}transfer on {data} (n = {record.n}), {job['norm']} eps "
        f"{record.eps}{target}{behind}, seed {job['seed']}"
    )


def brief(record: "TransferRecord") -> list[tuple[str, str]]:
    """A transfer run in four lines, each with its name."""
    job, found = record.job, list(record.cells.values())
    black = [cell for cell in found if not cell.white_box and cell.of_all is not None]
    rates = "not established"
    if black:
        low, high = (100 * end(float(cell.of_all or 0) for cell in black) for end in (min, max))
        rates = f"{low:.1f} to {high:.1f} % of all images in {len(black)} cells that are not white-box"
    best = max(black, key=lambda cell: float(cell.of_all or 0), default=None)
    open_ = f"; {count} not established" if (count := sum(cell.of_all is None for cell in found)) else ""
    models = f"{len(job['surrogates'])} surrogate sets, {len(job['attacks'])} attacks, {len(record.columns)} models"
    return [
        ("models", models),
        ("success", rates + open_),
        ("most", f"{best.surrogates} · {best.attack} on {best.victim}: {best.of_all}" if best else "none"),
        ("made", " · ".join(part for part in (record.about.date, record.folder) if part) or "here"),
    ]


def denominator(record: "TransferRecord", of: "Of") -> str:
    """What a success rate is a share of, in words."""
    hit = f"decided as the target ({record.job['target']})" if record.job["target"] else "misclassified"
    if of == "correct":
        return f"Success rate of the images that the victim classifies correctly unattacked: the share {hit}."
    also = "" if record.job["target"] else "; 1 − accuracy, so clean errors count"
    return f"Success rate of all {record.n} images: the share {hit}{also}."


def summary(record: "TransferRecord") -> str:
    """Both matrices and what the attacks took, as plain text."""
    lines = [heading(record), "", "victims and surrogates, clean accuracy:"]
    lines += [f"  {i:>2}  {name}  {share}" for i, (name, share) in enumerate(record.clean_accuracy.items(), start=1)]
    for of in ("all", "correct"):
        lines += ["", f"{denominator(record, of)} In percent.", *_matrix(record, of)]
    lines += ["", "passes through surrogates, forward and backward, an image:", *_costs(record)]
    lines += ["", f"95 % Wilson intervals; {WHITE_BOX} white-box: the victim is one of the surrogates"]
    lines += [f"note: {flag['message']}" for flag in record.flags]
    lines += [f"note: {text}" for text in record.notes]
    lines += [f"not established: {text}" for text in unsettled(record)]
    return "\n".join(lines)


def _matrix(record: "TransferRecord", of: "Of") -> list[str]:
    heads = ["", *(str(i) for i in range(1, len(record.columns) + 1))]
    rows = [
        [" · ".join(row), *(_plain(record.cells[(*row, name)], of) for name in record.columns)] for row in record.rows
    ]
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))])
        for line in [heads, *rows]
    ]


def _plain(found: "Cell", of: "Of") -> str:
    value = found.rate(of)
    return percent(value) + ("" if value is None else WHITE_BOX if found.white_box else " ")


def _costs(record: "TransferRecord") -> list[str]:
    return [
        f"  {surrogates} · {attack}: {cost.forwards:.1f} and {cost.backwards:.1f}, {cost.seconds:.1f} s"
        for (surrogates, attack), cost in record.costs.items()
    ]


def unsettled(record: "TransferRecord") -> list[str]:
    """The cells that have no success rate, each with the reason."""
    return [f"{c.surrogates} · {c.attack} on {c.victim}: {c.why}" for c in record.cells.values() if c.why]
