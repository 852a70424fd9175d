"""LaTeX takes the tables, whatever the names are; and prints names as they are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from robustkit.records.sweep import Sweep
from robustkit.records.transfer_folder import load_transfer
from robustkit.report import files
from robustkit.report.tex import latex_table, tex
from tests import records

UGLY = "a_b & 50 % of $x^2$ {#1} ~ \\input{x} | \"'`"
NAMES = ["<script>alert(1)</script>", "[2em] a row may begin so", "*", UGLY, "--x"]
FIXTURES = Path(__file__).parent / "fixtures"


def test_every_special_character_is_escaped():
    text = tex('\\&%$#_{}~^<>|"−[]*')
    assert text == (
        r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
        r"{\char34}$-${[}{]}{*}"
    )
    assert tex("a\n\n  b") == "a b"  # an empty line would end a paragraph inside a caption


@pytest.mark.parametrize("encoding", ["", r"\usepackage[T1]{fontenc}"], ids=["OT1", "T1"])
def test_latex_compiles_the_tables_of_runs_sweeps_and_transfer_runs(tmp_path, encoding):
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-recommended)")
    record = records.random_record(60, tuple(NAMES), audit=records.AUDIT, model=UGLY)
    runs = [records.random_record(30, model=NAMES[0], eps=eps) for eps in (0.1, 0.2)]
    texts = [
        files.of_run(record, ("tex",))["tables.tex"],
        files.of_sweep(Sweep(("[0.1]", "*0.2"), tuple(runs)), ("tex",))["tables.tex"],
        files.of_transfer(load_transfer(FIXTURES / "transfer-1"), ("tex",))["matrix.tex"],
        latex_table("names", "l", ["name"], [[tex(name)] for name in NAMES]),
    ]
    (tmp_path / "a.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}{encoding}\begin{{document}}"
        + "\n".join(texts)
        + r"\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, [line for line in done.stdout.splitlines() if line.startswith("!")]
    pypdf = pytest.importorskip("pypdf")
    pages = "".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "a.pdf").pages)
    if encoding:
        assert "<script>alert(1)</script>" in pages.replace("\n", "")
        assert "[2em] a row may begin so" in pages
