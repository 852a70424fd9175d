"""How commands end: one line for any error, and no exit code that is not ours, whatever is thrown at them."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from robustkit import cli, plugins
from robustkit.cli import endings, evaluate, main, show
from robustkit.errors import ExitCode, NoGradientError, RobustkitError, Terminated
from robustkit.plugins import Entry, Plugin
from tests.test_plugins import installed, point  # noqa: F401 (a fixture)

ROOT = Path(__file__).parent.parent
OTHER = ["eval", "--model", "digits-cnn", "--quiet"]


class Foreign(BaseException):
    """No Exception: as asyncio's cancellation is none."""


@pytest.fixture
def raising(monkeypatch):
    """Make `robustkit eval` raise an error."""

    def arrange(error):
        def broken(asked):
            raise error

        monkeypatch.setattr(evaluate, "complete", broken)
        return CliRunner().invoke(main, OTHER)

    return arrange


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("x"), 70, "unexpected KeyError: 'x' at test_endings.py:"),
        (NotImplementedError("not yet"), 70, "unexpected NotImplementedError: not yet"),
        (RecursionError(), 70, "unexpected RecursionError at"),
        (AssertionError("two\nlines"), 70, "unexpected AssertionError: two lines"),
        (GeneratorExit(), 70, "unexpected GeneratorExit"),
        (Foreign("odd"), 70, "unexpected Foreign: odd"),
        (BrokenPipeError(32, "Broken pipe"), 70, "unexpected BrokenPipeError"),
        (MemoryError(), 70, "out of memory (MemoryError) at test_endings.py:"),
        (SystemExit(0), 70, "a model, data set or plugin ended the process, sys.exit(0)"),
        (SystemExit(1), 70, "sys.exit(1)"),
        (SystemExit("bye"), 70, "sys.exit('bye')"),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 2, "x.npz: No such file or directory"),
        (click.FileError("x", "hm"), 2, "Could not open file 'x': hm"),
        (click.Abort(), 2, "no answer was given"),
        (RobustkitError("the disk is gone"), 3, "Error: the disk is gone"),
        (NoGradientError("none flows"), 3, "Error: none flows"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "ended by SIGTERM; run the same command to continue"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_one_line_and_a_code_of_ours(raising, error, code, words):
    done = raising(error)
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert done.exit_code in set(ExitCode)


def test_sigterm_is_raised_in_a_command_and_nowhere_else():
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with endings.terminable(), pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        for own in (signal.SIG_IGN, lambda number, frame: None):  # what starts us may have its own way with it
            signal.signal(signal.SIGTERM, own)
            with endings.terminable():
                assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_was_unexpected_can_be_reported(raising):
    line = raising(KeyError("x")).stderr
    assert re.search(r"at test_endings\.py:\d+, called at robustkit/cli/evaluate\.py:\d+; --debug shows", line)
    assert "please report it with the command (robustkit 0.1.0, Python 3." in line


@pytest.mark.parametrize("arguments", [["--debug", "show", "x"], ["show", "x", "--debug"], ["show", "--debug", "x"]])
def test_a_traceback_is_shown_only_with_debug(monkeypatch, arguments):
    def broken(target, name):
        raise KeyError("x")

    monkeypatch.setattr(show.show, "callback", lambda **given: broken(**{"target": "", "name": ""}))
    plain = CliRunner().invoke(main, ["show", "x"])
    assert "Traceback" not in plain.stderr
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 70
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == plain.stderr.strip()


def test_a_broken_plugin_is_named_and_a_usage_error(installed, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "falls_over.py").write_text("raise ValueError('at import')")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    paths = {"a": "falls_over:A", "b": "leaves:B", "c": "os.path:Nothing"}
    installed(point("mine", Plugin(attacks={name: Entry(path, "") for name, path in paths.items()})))
    for name, words in (("a", "ValueError: at import"), ("b", "SystemExit: 0"), ("c", "no attribute 'Nothing'")):
        done = CliRunner().invoke(main, ["show", "attack", name])
        assert done.exit_code == 2, done.output
        assert f"the attack {name!r} of plugin 'mine' does not load ({paths[name]})" in done.stderr
        assert words in done.stderr
    for wrong in (Plugin(attacks={"a": "falls_over:A"}), Plugin(attacks=["a"])):
        installed(point("mine", wrong))
        done = CliRunner().invoke(main, ["show", "attack", "a"])
        assert done.exit_code == 2
        assert "plugin 'mine' (mine:PLUGIN): its attacks must map names to plugins.Entry" in done.stderr
    plugins.clear()


def test_a_model_that_leaves_passes_no_gate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("goes.py").write_text("import sys\ndef make():\n    sys.exit(0)\n")
    Path("script.py").write_text("import sys\nsys.exit(0)\n")
    for model, code in (("python/goes.make", 70), ("python/script.make", 2)):
        done = CliRunner().invoke(main, ["eval", "--model", model, "--dataset", "digits", "-n", "4", "--quiet"])
        assert done.exit_code == code, done.output
        assert "goes.py:3" in done.stderr or "SystemExit: 0" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        ("{robustkit} list attacks | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        (
            "{robustkit} list models --source robustbench | head -1; exit ${{PIPESTATUS[0]}}",
            0,
            "",
        ),  # over a pipe's room
        ("PYTHONUNBUFFERED=1 {robustkit} list attacks | head -1; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{robustkit} list attacks >&-", 0, ""),
        ("{robustkit} list attacks >&- 2>&-", 0, ""),
        ("{robustkit} list attacks > /dev/full", 2, "Error: stdout: No space left on device\n"),
        ("{robustkit} gate --baseline a.json --run b | true; exit ${{PIPESTATUS[0]}}", 1, ""),
        ("{robustkit} nothing 2>&1 | true; exit ${{PIPESTATUS[0]}}", 2, ""),
        ("_ROBUSTKIT_COMPLETE=no_such {robustkit}", 2, ""),
    ],
)
def test_nobody_has_to_read_the_output(command, code, err, tmp_path):
    from robustkit.records import baseline
    from robustkit.records.folder import RunFolder
    from tests.records import record

    if "gate" in command:
        baseline.save(record("RR"), tmp_path / "a.json")
        (tmp_path / "b").mkdir()
        RunFolder(tmp_path / "b").save(record("RB"), {})
    program = f"{sys.executable} -c 'from robustkit.cli import main; main(prog_name=\"robustkit\")'"
    done = subprocess.run(
        ["bash", "-c", command.format(robustkit=program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, err)


def test_one_page_says_every_code_and_each_help_only_those():
    page = (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == sorted(ExitCode)
    for name, command in main.commands.items():
        said = re.search(r"Exit codes: (.*)", command.help or "", re.DOTALL)
        if said:
            codes = {int(code) for code in re.findall(r"\b(\d+) \w", said[1])}
            assert codes <= set(ExitCode), name
            assert (1 in codes) == (name == "gate"), name


def test_only_the_gate_ends_with_1():
    for file in Path(cli.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert ("GATE_FAILED" in text) == (file.name == "gate.py")
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        assert ("sys.exit" in calls) == (file.name == "__init__.py")
