"""Every command's help: an example, at once, without torch; what the shell completes; errors on one line."""

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import robustkit
from robustkit import cli, plugins
from robustkit.cli import main
from robustkit.models.sources.zoo import Zoo

HEAVY = "{'torch', 'numpy', 'pandas', 'rich', 'sklearn', 'pyarrow', 'matplotlib'}"


def commands(command, path=("robustkit",)):
    yield path, command
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, (*path, name))


ALL = {" ".join(path): command for path, command in commands(main)}


def shown(path, *more):
    done = CliRunner().invoke(main, [*path.split()[1:], *more], prog_name="robustkit")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_there_are_the_commands_that_we_know():
    assert {f"robustkit {name}" for name in ("eval", "run", "transfer", "gate", "data pull")} <= set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_each_has_help_with_an_example_and_each_option_says_what_it_is(path):
    text = shown(path, "--help")
    assert shown(path, "-h") == text
    example = rf"^  {re.escape(path)}(?! \[OPTIONS\])( |$)"
    assert re.search(example, text, re.MULTILINE), f"{path} --help has no line of an example:\n{text}"
    about = (ALL[path].help or "").strip()
    assert about, path
    for option in ALL[path].params:
        if isinstance(option, click.Option):
            plain = (
                option.help or isinstance(option.type, click.Choice) or option.name in ("seed", "device", "severity")
            )
            assert plain, f"{path} {option.opts[0]} says nothing"


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if isinstance(command, click.Group)])
def test_a_group_lists_its_commands_with_their_whole_first_sentence(path):
    listed = " ".join(shown(path, "--help").partition("Commands:")[2].split())
    for name, command in ALL[path].commands.items():
        first = " ".join((command.help or "").partition("\n\n")[0].replace("\b", "").split())
        sentence = first.partition(". ")[0] if ". " in first else first
        assert f"{name} {sentence}" in listed
    assert "..." not in listed


# Prints a script for the shell, whatever it is called.
NO_JSON = {"robustkit completion"}


def test_every_command_has_json_and_a_label():
    for path, command in ALL.items():
        if not isinstance(command, click.Group) and path not in NO_JSON:
            names = {name for option in command.params for name in option.opts}
            assert {"--json", "--label"} <= names, path


def test_json_has_one_envelope(tmp_path):
    def printed(*arguments):
        done = CliRunner().invoke(main, [*arguments, "--json", "-"], prog_name="robustkit")
        return json.loads(done.stdout)

    fixtures = Path(__file__).parent / "fixtures"
    run, transfer = str(fixtures / "run-1"), str(fixtures / "transfer-1")
    found = {
        "list attacks": printed("list", "attacks", "pgd", "--label", "mine"),
        "show": printed("show", run),
        "show attack": printed("show", "attack", "pgd"),
        "runs": printed("runs", str(fixtures)),
        "report": printed("report", transfer, "--out", str(tmp_path)),
        "plot": printed("plot", "transfer", transfer, "-o", str(tmp_path / "a.svg")),
        "compare": printed("compare", run, run, "--label", "old", "--label", "new"),
        "data ls": printed("data", "ls"),
    }
    for command, data in found.items():
        assert list(data)[:4] == ["schema", "robustkit", "command", "label"], command
        assert data["schema"].startswith("robustkit/")
        assert data["robustkit"] == robustkit.__version__
        assert data["command"] == f"robustkit {command.removesuffix(' attack').removesuffix(' attacks')}"
    assert found["list attacks"]["label"] == "mine"
    assert found["compare"]["label"] == "old, new"
    assert [entry["name"] for entry in found["list attacks"]["entries"]] == ["pgd", "apgd"]


def test_bare_json_is_json_on_stdout():
    done = CliRunner().invoke(main, ["list", "recipes", "--json"])
    assert json.loads(done.stdout)["kind"] == "recipes"


def test_models_are_listed_bundled_first_then_sources_with_their_counts():
    lines = CliRunner().invoke(main, ["list", "models"]).stdout.splitlines()
    bundled = len(Zoo().names())
    assert [line.split()[0] for line in lines[:bundled]] == list(Zoo().names())
    sources = {line.split("/")[0]: line for line in lines[bundled:]}
    assert set(sources) == set(plugins.table("sources")) - {"zoo"}
    counts = {name: re.search(r"\(([\d,]+) models; list models --source", line) for name, line in sources.items()}
    assert counts["file"] is None
    for name in ("robustbench", "timm", "torchvision"):
        if "not installed" not in sources[name]:
            assert int(counts[name][1].replace(",", "")) == len(plugins.load("sources", name)().names())


def test_each_help_is_the_same_from_the_module():
    """`python -m robustkit` with each command's path; in one process, as a start of Python takes long."""
    program = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [*path.split(), '--help']\n"
        "    try: runpy.run_module('robustkit', run_name='__main__')\n"
        "    except SystemExit as end: print(f'END {path} {end.code}')\n"
    )
    wide = {**os.environ, "COLUMNS": "82"}  # 80 and click's margin: as wide as the runner of `shown` prints
    done = subprocess.run([sys.executable, "-c", program, *ALL], capture_output=True, text=True, env=wide)
    assert done.stdout == "".join(f"{shown(path, '--help')}END {path} 0\n" for path in ALL), done.stderr


def test_each_help_is_there_at_once_and_loads_nothing_heavy():
    """Each command's help in a process of its own, in less than 0.3 s of CPU."""
    program = (
        "import sys, time, os; import robustkit.cli as c\n"
        "for path in sys.argv[1:]:\n"
        "    began = time.process_time()\n"  # of this process and its own start, which os.fork leaves behind
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        sys.stdout = open(os.devnull, 'w')\n"
        "        try: c.main([*path.split()[1:], '--help'], prog_name='robustkit')\n"
        "        except SystemExit: pass\n"
        f"        heavy = {HEAVY} & set(sys.modules)\n"
        "        print(f'{path}: {heavy or None} {time.process_time():.3f}', file=sys.stderr)\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('START', time.process_time())\n"
    )
    best: dict[str, float] = {}
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program, *ALL], capture_output=True, text=True, check=True)
        start = float(done.stdout.split()[1])
        lines = done.stderr.splitlines()
        assert len(lines) == len(ALL), done.stderr
        for line in lines:
            path, _, rest = line.rpartition(": ")
            heavy, seconds = rest.rsplit(" ", 1)
            assert heavy == "None", line
            best[path] = min(best.get(path, 9.0), start + float(seconds))
    assert max(best.values()) < 0.3, best


def completed(words, shell, tmp_path):
    """What the shell is told, and whether that took torch; by the protocol of click's scripts."""
    program = (
        "import sys\n"
        "from robustkit.cli import main\n"
        "try: main(prog_name='robustkit')\n"
        "finally: print('TORCH' if 'torch' in sys.modules else 'LIGHT', file=sys.stderr)\n"
    )
    split = words.split(" ")
    environment = {**os.environ, "_ROBUSTKIT_COMPLETE": f"{shell}_complete"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(split) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stderr.strip() == "LIGHT", done.stderr
    lines = done.stdout.splitlines()
    return [line.partition(",")[2] for line in lines] if shell == "bash" else lines[1::3]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes_names_of_the_tables_without_torch(shell, tmp_path):
    def complete(words):
        return completed(words, shell, tmp_path)

    assert complete("robustkit eval --attack apg") == ["apgd"]
    assert complete("robustkit eval --attack fgsm+apg") == ["fgsm+apgd"]
    assert complete("robustkit eval --norm l") == ["linf", "l2", "l1", "l0"]
    assert complete("robustkit eval --target ") == ["least-likely", "random"]
    assert complete("robustkit eval --defense ") == list(plugins.table("defenses"))
    assert complete("robustkit show defense cross") == ["crossmax"]
    if shell == "zsh":
        return
    assert complete("robustkit eval --model digits-") == [name for name in Zoo().names() if name.startswith("digits-")]
    assert {*Zoo().names(), "timm/", "robustbench/"} <= set(complete("robustkit doctor --model "))
    assert complete("robustkit transfer --victim torchv") == ["torchvision/"]
    assert complete("robustkit gate --dataset cifar10-") == ["cifar10-c"]
    assert set(complete("robustkit eval --dataset ")) >= {*plugins.table("datasets"), "folder/"}
    assert complete("robustkit show attack surr") == ["surrogate-swap"]
    assert complete("robustkit train ") == list(plugins.table("recipes"))
    assert complete("robustkit audit --model digits-cnn-a") == ["digits-cnn-at"]
    assert complete("robustkit corru") == ["corruptions"]
    assert "--dry-run" in complete("robustkit run --d")


def test_bash_itself_completes_with_the_script(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    program = tmp_path / "robustkit"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        '\'import sys; from robustkit.cli import main; main(prog_name="robustkit")\' "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = shown("robustkit completion", "bash")
    assert script
    test = (
        f"{script}\nCOMP_WORDS=(robustkit eval --attack multi)\nCOMP_CWORD=3\n_robustkit_completion robustkit\n"
        'echo "${COMPREPLY[@]}"\ncomplete -p robustkit\n'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([bash, "-c", test], capture_output=True, text=True, env={**os.environ, "PATH": path})
    first, second = done.stdout.splitlines()
    assert first == "multi-targeted", done.stderr
    assert "_robustkit_completion" in second


def test_zsh_itself_reads_the_script(tmp_path):
    script = shown("robustkit completion", "zsh")
    assert script.startswith("#compdef robustkit")
    assert "_ROBUSTKIT_COMPLETE=zsh_complete" in script
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("there is no zsh")
    done = subprocess.run([zsh, "-n", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evl"], "did you mean eval"),
        (["--bogus"], "see robustkit --help"),
        (["eval", "--modl", "x"], "no option --modl; did you mean --model? See robustkit eval --help"),
        (["eval"], "Missing option '--model'; see robustkit eval --help"),
        (["eval", "--model", "digits-cnn", "--norm", "l7"], "'l7' is not one of linf, l2, l1, l0; did you mean"),
        (["eval", "--model", "digits-cnn", "-n", "ten"], "'ten' is not a valid integer"),
        (["run"], "Missing argument 'STUDY'; see robustkit run --help"),
        (["run", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["data", "nope"], "no command called 'nope'. There are: ls, pull, rm, verify"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_errors_of_the_module_are_those_of_the_command(arguments, words, tmp_path):
    module = subprocess.run(
        [sys.executable, "-m", "robustkit", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert module.returncode == 2
    assert module.stdout == ""
    assert words in module.stderr
    assert module.stderr.startswith("Error: ")
    assert len(module.stderr.strip().splitlines()) == 1
    called = CliRunner().invoke(main, arguments, prog_name="robustkit")
    assert called.exit_code == 2
    assert called.stderr == module.stderr


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m robustkit list attacks | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("fgsm")
    assert "Error" not in done.stderr


# Names that two options share which have nothing else in common.
HOMONYMS = {
    "--label",  # of what a command makes, and one for each of several stored things
    "--check",  # a board's README as it is, and the test images of a training
    "--baseline",  # of the gate, and of a mean corruption error
    "--outputs",  # of the one model, and of each of several by its name
}


def first_long(names):
    return next(name.partition("/")[0] for name in names if name.startswith("--") or name == "-n")


def test_no_option_is_written_twice():
    written: Counter[str] = Counter()
    for file in Path(cli.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "click.option":
                written[first_long(name.value for name in call.args if isinstance(name, ast.Constant))] += 1
    options = [option for command in ALL.values() for option in command.params if isinstance(option, click.Option)]
    assert set(written) == {first_long(option.opts) for option in options} - {"--version"}  # which is click's own
    assert {name: count for name, count in written.items() if count > 1} == dict.fromkeys(HOMONYMS, 2)
