"""What the shell completes of the options in a spec, `pgd:st`: from sources, and in a bash that is typed into."""

import dataclasses
import os
import select
import shutil
import sys
import time
import typing

import pytest

from robustkit import plugins
from robustkit.cli import completion, keys

FACTORIES = [(kind, name) for kind in ("attacks", "defenses", "recipes") for name in plugins.table(kind)]


@pytest.mark.parametrize(("kind", "name"), FACTORIES, ids=lambda part: part)
def test_the_keys_read_from_a_source_are_the_fields_and_the_values_their_words(kind, name):
    factory = plugins.load(kind, name)
    settings = factory if isinstance(factory, type) else type(factory())
    found = keys.options_of(plugins.table(kind)[name].entry.path)
    fields = {field.name for field in dataclasses.fields(settings) if field.init}
    assert set(found) == fields
    hints = typing.get_type_hints(settings)
    for key, values in found.items():
        parts = [hints[key], *typing.get_args(hints[key])]
        words = {str(word) for part in parts if typing.get_origin(part) is typing.Literal
                 for word in typing.get_args(part)}  # fmt: skip
        words |= {"true", "false"} if bool in parts else set()
        words |= {"none"} if type(None) in parts else set()
        if typing.get_origin(hints[key]) is not tuple:
            assert set(values) == words, key


@pytest.mark.parametrize(
    ("complete", "typed", "found"),
    [
        (completion.attack, "pgd:st", ["pgd:steps=", "pgd:step="]),
        (completion.attack, "pgd:steps=3,re", ["pgd:steps=3,restarts="]),
        (completion.attack, "fgsm+pgd:den", ["fgsm+pgd:density="]),
        (completion.attack, "pgd:random_start=", ["pgd:random_start=true", "pgd:random_start=false"]),
        (completion.attack, "pgd:eo", ["pgd:eot="]),
        (completion.attack, "pgd:steps=5,step", ["pgd:steps=5,step="]),  # steps is given already
        (completion.attack, "nothing:st", []),
        (completion.defense, "jpeg:q", ["jpeg:quality="]),
        (completion.dataset, "cifar10:spl", ["cifar10:split="]),
        (completion.dataset, "cifar10:split=", ["cifar10:split=test", "cifar10:split=train"]),
        (completion.recipe, "trades:be", ["trades:beta="]),
    ],
)
def test_keys_and_values_complete_behind_the_name(complete, typed, found):
    assert complete(None, None, typed) == found


def test_what_is_not_a_source_gives_no_keys():
    for path in ("nowhere.at.all:X", "json:JSONDecoder", "robustkit_attacks.pgd:Absent", "", "numpy:array"):
        assert not keys.options_of(path) or path == "json:JSONDecoder"


def typed_in_bash(tmp_path, *lines):
    """What stands on the line after each of these was typed into an interactive bash."""
    pty = pytest.importorskip("pty")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    program = tmp_path / "robustkit"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m robustkit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PS1": "READY ", "TERM": "dumb"}
    child, terminal = pty.fork()
    if not child:
        os.execve(bash, [bash, "--norc", "--noprofile", "-i"], environment)
    shown = []
    try:
        _read(terminal, "READY ")
        os.write(terminal, b'eval "$(robustkit completion bash)"\n')
        _read(terminal, "READY ")
        for line, until in lines:
            os.write(terminal, line.encode())
            shown.append(_read(terminal, until))
            os.write(terminal, b"\x15")  # the line is cleared
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return shown


def _read(terminal, until, seconds=60):
    text, end = "", time.monotonic() + seconds
    while until not in text and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            text += os.read(terminal, 65536).decode(errors="replace").replace("\x07", "")
    return text


def test_a_tab_completes_a_key_in_bash_which_takes_colons_for_ends_of_words(tmp_path):
    wanted = "robustkit eval --attack pgd:steps=3,restarts="
    (shown,) = typed_in_bash(tmp_path, ("robustkit eval --attack pgd:steps=3,re\t", wanted))
    assert wanted in shown
    assert f"{wanted} " not in shown  # a value follows
