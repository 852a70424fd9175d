"""The report files of a study: report.html, report.md, tables.csv, tables.tex, and its curves. No torch."""

from collections.abc import Sequence
from pathlib import Path

from robustkit.records.files import write_text
from robustkit.report.files import Format, made
from robustkit.study import figures, page, report
from robustkit.study.results import Results
from robustkit.study.tables import Tables


def write(
    results: Results, folder: Path, formats: Sequence[Format] | None = None, out: Path | None = None
) -> dict[str, str]:
    """Write the files into the study's folder, or `out`; returns their paths by name.

    Raises:
        UsageError: for a page without jinja2.
    """
    tables, place = Tables(results), out or folder
    drawn = figures.draw(tables, place) if formats is None or "md" in formats else []
    texts = made(
        {
            "html": lambda: page.page(tables),
            "md": lambda: report.markdown(tables, drawn),
            "tex": lambda: report.latex(tables),
            "csv": lambda: report.csv_text(tables),
        },
        formats,
    )
    for name, text in texts.items():
        write_text(place / name, text)
    return {name: str(place / name) for name in (*texts, *drawn)}
