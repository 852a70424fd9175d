"""The tutorials' blocks, run in order in one folder: what is printed is what the page says is printed."""

import os
import re
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("tutorial", "defenses")
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    return [match.groups() for match in BLOCK.finditer((DOCS / f"{page}.md").read_text(encoding="utf-8"))]


def pattern(expected):
    """A line of … stands for any lines, … in a line for any text."""
    parts = []
    for line in expected.splitlines():
        parts.append("(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + " *\n")
    return "".join(parts)


def test_the_pattern_is_strict_but_for_what_varies():
    assert re.fullmatch(pattern("a … c\n…\nd"), "a b c\nx\ny\nd\n")
    assert re.fullmatch(pattern("a\n…"), "a\n")
    assert not re.fullmatch(pattern("a\n…\nd"), "a\nx\n")
    assert not re.fullmatch(pattern("12 %"), "13 %\n")


@pytest.mark.parametrize("page", PAGES)
def test_there_are_blocks_of_each_kind(page):
    kinds = [kind for kind, _, _ in blocks(page)]
    assert min(kinds.count(kind) for kind in ("bash", "python", "text")) >= 3
    assert set(kinds) <= {"bash", "python", "text", "toml"}
    outputs = [i for i, kind in enumerate(kinds) if kind == "text"]
    assert all(kinds[i - 1] in ("bash", "python") for i in outputs)


def an_environment(folder):
    """An environment of its own in which the packages of this one are found: what a page installs stays in it."""
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = [path for path in sys.path if path and Path(path).is_dir() and "python3" not in Path(path).name]
    (site / "ours.pth").write_text("\n".join(paths) + "\n")
    program = folder / "bin/robustkit"
    program.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m robustkit "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_and_prints_what_the_page_says(page, tmp_path):
    programs = an_environment(tmp_path / "environment")
    here = tmp_path / "work"
    here.mkdir()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    printed, wrong = "", []
    for kind, file, text in blocks(page):
        if file:
            (here / file).write_text(text, encoding="utf-8")
        elif kind in ("bash", "python"):
            command = ["bash", "-e", "-c", text] if kind == "bash" else [str(programs / "python"), "-c", text]
            done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
            assert done.returncode == 0 or "robustkit audit" in text, f"{text}\n{done.stdout}{done.stderr}"
            printed = done.stdout
        elif kind == "text" and not re.fullmatch(pattern(text), printed):
            wrong.append(f"the page says:\n{text}\nprinted was:\n{printed}")
    assert not wrong, "\n".join(wrong)
