"""The report files of a stored run, sweep or transfer run: which there are, and what each is called."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from robustkit.records.run import RunRecord
from robustkit.records.sweep import Sweep, run_folder
from robustkit.records.transfer import TransferRecord
from robustkit.report import page, sweeps, tables, text, transfer

Format = Literal["html", "md", "tex", "csv"]
NAMES: Mapping[Format, str] = {"html": "report.html", "md": "report.md", "tex": "tables.tex", "csv": "tables.csv"}
Files = Mapping[str, str]


def of_run(record: RunRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a run, by its name; without `formats` all that can be made here.

    Raises:
        UsageError: for "html" among `formats` if jinja2 is not installed.
    """
    makers: Mapping[Format, Callable[[RunRecord], str]] = {
        "html": page.run_page, "md": text.markdown, "tex": tables.latex, "csv": tables.csv_text,
    }  # fmt: skip
    return {NAMES[format_]: makers[format_](record) for format_ in formats or _possible()}


def of_sweep(sweep: Sweep, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a sweep, which lies beside the folders of its runs.

    Raises:
        UsageError: as `of_run`.
    """
    eps, records = sweep.eps, sweep.records
    folders = [run_folder(Path(), place).name for place in range(len(records))]
    makers: Mapping[Format, Callable[[], str]] = {
        "html": lambda: page.sweep_page(eps, records, folders),
        "md": lambda: sweeps.markdown(eps, records),
        "tex": lambda: sweeps.latex(eps, records),
        "csv": lambda: sweeps.csv_text(eps, records),
    }
    return {NAMES[format_]: makers[format_]() for format_ in formats or _possible()}


def of_transfer(record: TransferRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a transfer run; it has no page."""
    makers: Mapping[str, tuple[str, Callable[[TransferRecord], str]]] = {
        "md": ("report.md", transfer.markdown),
        "tex": ("matrix.tex", transfer.latex),
        "csv": ("matrix.csv", transfer.csv_text),
    }
    return {name: make(record) for name, make in (makers[format_] for format_ in formats or makers)}


def _possible() -> list[Format]:
    return [format_ for format_ in NAMES if format_ != "html" or page.available()]
