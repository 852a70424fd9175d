"""The tutorial's blocks, run in order in one folder: what is printed is what the tutorial says is printed."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "docs/tutorial.md"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks():
    return [match.groups() for match in BLOCK.finditer(TUTORIAL.read_text(encoding="utf-8"))]


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


def test_there_are_blocks_of_each_kind():
    kinds = [kind for kind, _, _ in blocks()]
    assert min(kinds.count(kind) for kind in ("bash", "python", "text")) >= 3
    assert set(kinds) <= {"bash", "python", "text", "toml"}
    outputs = [i for i, kind in enumerate(kinds) if kind == "text"]
    assert all(kinds[i - 1] in ("bash", "python") for i in outputs)


@pytest.mark.slow
def test_every_block_runs_and_prints_what_the_tutorial_says(tmp_path):
    program = tmp_path / "bin/robustkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m robustkit "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    here = tmp_path / "work"
    here.mkdir()
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    printed, wrong = "", []
    for kind, file, text in blocks():
        if file:
            (here / file).write_text(text, encoding="utf-8")
        elif kind in ("bash", "python"):
            command = ["bash", "-e", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
            done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            printed = done.stdout
        elif kind == "text" and not re.fullmatch(pattern(text), printed):
            wrong.append(f"the tutorial says:\n{text}\nprinted was:\n{printed}")
    assert not wrong, "\n".join(wrong)
