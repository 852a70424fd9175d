"""The report files of a stored record of any kind: which there are, and what each is called."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from robustkit.errors import UsageError
from robustkit.records.bounds import BoundsRecord
from robustkit.records.certificate import CertifiedRecord
from robustkit.records.corruption import CorruptionRecord
from robustkit.records.findings import Audited
from robustkit.records.run import RunRecord
from robustkit.records.sweep import Sweep, run_folder
from robustkit.records.transfer import TransferRecord
from robustkit.report import (
    audit,
    bounds,
    certificate,
    corruptions,
    page,
    sweeps,
    tables,
    text,
    transfer,
    transfer_page,
)
from robustkit.report.fill import available

Format = Literal["html", "md", "tex", "csv"]
NAMES: Mapping[Format, str] = {"html": "report.html", "md": "report.md", "tex": "tables.tex", "csv": "tables.csv"}
_MATRIX: Mapping[Format, str] = {**NAMES, "tex": "matrix.tex", "csv": "matrix.csv"}  # of a transfer run
Files = Mapping[str, str]
Makers = Mapping[Format, Callable[[], str]]


def of_run(record: RunRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a run, by its name; without `formats` all that can be made here.

    Raises:
        UsageError: for "html" among `formats` if jinja2 is not installed.
    """
    return made(
        {
            "html": lambda: page.run_page(record),
            "md": lambda: text.markdown(record),
            "tex": lambda: tables.latex(record),
            "csv": lambda: tables.csv_text(record),
        },
        formats,
    )


def of_sweep(sweep: Sweep, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a sweep, which lies beside the folders of its runs.

    Raises:
        UsageError: as `of_run`.
    """
    eps, records = sweep.eps, sweep.records
    folders = [run_folder(Path(), place).name for place in range(len(records))]
    return made(
        {
            "html": lambda: page.sweep_page(eps, records, folders),
            "md": lambda: sweeps.markdown(eps, records),
            "tex": lambda: sweeps.latex(eps, records),
            "csv": lambda: sweeps.csv_text(eps, records),
        },
        formats,
    )


def of_transfer(record: TransferRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a transfer run.

    Raises:
        UsageError: as `of_run`.
    """
    return made(
        {
            "html": lambda: transfer_page.page(record),
            "md": lambda: transfer.markdown(record),
            "tex": lambda: transfer.latex(record),
            "csv": lambda: transfer.csv_text(record),
        },
        formats,
        _MATRIX,
    )


def of_corruptions(record: CorruptionRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a corruption record.

    Raises:
        UsageError: as `of_run`.
    """
    return made(
        {
            "html": lambda: corruptions.page(record),
            "md": lambda: corruptions.markdown(record),
            "tex": lambda: corruptions.latex(record),
            "csv": lambda: corruptions.csv_text(record),
        },
        formats,
    )


def of_certificate(record: CertifiedRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a record of certificates.

    Raises:
        UsageError: as `of_run`.
    """
    return made(
        {
            "html": lambda: certificate.page(record),
            "md": lambda: certificate.markdown(record),
            "tex": lambda: certificate.latex(record),
            "csv": lambda: certificate.csv_text(record),
        },
        formats,
    )


def of_bounds(record: BoundsRecord, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of a record of bounds.

    Raises:
        UsageError: as `of_run`.
    """
    return made(
        {
            "html": lambda: bounds.page(record),
            "md": lambda: bounds.markdown(record),
            "tex": lambda: bounds.latex(record),
            "csv": lambda: bounds.csv_text(record),
        },
        formats,
    )


def of_audit(record: Audited, formats: Sequence[Format] | None = None) -> Files:
    """The text of each report file of an audit by itself; it has no LaTeX.

    Raises:
        UsageError: as `of_run`, and for "tex".
    """
    return made(
        {
            "html": lambda: audit.page(record),
            "md": lambda: audit.markdown(record),
            "csv": lambda: audit.csv_text(record),
        },
        formats,
    )


def made(makers: Makers, formats: Sequence[Format] | None, names: Mapping[Format, str] = NAMES) -> Files:
    """The text of each file by its name; without `formats` all there are, the page only where jinja2 is installed.

    Raises:
        UsageError: for a format that there is not.
    """
    chosen = formats or [one for one in makers if one != "html" or available()]
    if lacking := [one for one in chosen if one not in makers]:
        raise UsageError(f"there is no {lacking[0]} of this kind of record; there are {', '.join(makers)}")
    return {names[one]: makers[one]() for one in chosen}
