"""What is known is said: notes of cards, commands to paste, folders that may only be read, damaged tables."""

import errno
import html
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from markdown_it import MarkdownIt
from torch import nn

from robustkit import UsageError, evaluate, plugins
from robustkit.api import ModelCard
from robustkit.cli import main
from robustkit.models import sources
from robustkit.models.opening import card_flags
from robustkit.plugins import Entry
from robustkit.records import files
from robustkit.records.folder import load_run
from robustkit.report.text import cell
from robustkit.spec import is_path, parse
from tests.test_engine import linear_case

NOTE = "no image processor is saved with it: [0,1] images go in as they are"


class Noted:
    """A source whose card says something."""

    def names(self):
        return ("net",)

    def load(self, name, options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), ModelCard(name, "noted", notes=NOTE)


@pytest.fixture
def noted(monkeypatch):
    known = {**plugins.table("sources"), "noted": plugins.Found(Entry(f"{__name__}:Noted", ""), "mine")}
    table = plugins.table
    monkeypatch.setattr(plugins, "table", lambda kind: known if kind == "sources" else table(kind))


def test_a_card_s_notes_are_printed_and_stand_in_the_record(noted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--dataset", "digits", "-n", "16"]
    done = CliRunner().invoke(main, ["eval", "--model", "noted/net", *common, "--attack", "fgsm", "--out", "run"])
    assert done.exit_code == 0, done.output
    assert f"note: its card says: {NOTE}" in done.stdout
    assert NOTE in [flag["message"].removeprefix("its card says: ") for flag in load_run("run").flags]
    done = CliRunner().invoke(main, ["doctor", "--model", "noted/net", *common])
    assert f"note: its card says: {NOTE}" in done.stdout
    asked = ["transfer", "--surrogate", "noted/net", "--victim", "digits-cnn", *common, "--attack", "fgsm"]
    done = CliRunner().invoke(main, [*asked, "--out", "t"])
    assert f"note: noted/net: its card says: {NOTE}" in done.stdout
    assert NOTE in json.dumps(json.loads(Path("t/transfer.json").read_text())["flags"])
    assert card_flags(sources.load_model("digits-cnn")[1]) == []  # figures of our own, which a listing has


def test_a_windows_path_is_a_path():
    for text in (r"C:\nets\a.pt", "C:/nets/a.pt", r"d:\x y\a.pt:arch=digits-cnn"):
        assert is_path(text)
        parsed = parse(text)
        assert parsed.source == "file"
        assert parse(str(parsed)) == parsed
    assert parse(r"d:\a.pt:arch=timm/x").options == {"arch": "timm/x"}
    assert parse(r"cifar10:path=C:\data,split=train").options == {"path": "C:\\data", "split": "train"}
    assert parse(r"folder/C:\photos:size=32").name == r"C:\photos"
    assert parse("python/my.net:width=3").options == {"width": "3"}


def test_commands_for_pasting_are_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["train", "standard", "--arch", "digits-cnn", "--data", "digits", "--epochs", "1", "--out", "my net (2)"]
    done = CliRunner().invoke(main, [*asked, "--check", "8", "--check-robust", "8", "--quiet"])
    assert done.exit_code == 0, done.output
    printed = done.stdout.partition("evaluate it: ")[2]
    assert shlex.split(printed) == ["robustkit", "eval", "--model", "./my net (2)"]
    kept = json.loads(Path("my net (2)/recipe.json").read_text())["command"]
    assert shlex.split(kept)[:3] == ["robustkit", "train", "standard"]
    assert shlex.split(kept)[-2:] == ["--out", "my net (2)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model, x, y = linear_case(20)
    place = tmp_path_factory.mktemp("said") / "run"
    evaluate(model, (x, y), "fgsm", eps=0.1, out=place, doctor=False)
    return place, (model, (x, y), "fgsm")


def test_a_run_that_may_only_be_read_gets_out(run, monkeypatch, tmp_path):
    def refuse(*given):
        raise PermissionError(errno.EROFS, "Read-only file system", str(run[0]))

    monkeypatch.setattr(files, "write_record", refuse)
    done = CliRunner().invoke(main, ["report", str(run[0]), "--format", "md"])
    assert done.exit_code == 2
    assert "cannot be written to (Read-only file system); write the reports elsewhere: --out DIR" in done.stderr
    done = CliRunner().invoke(main, ["report", str(run[0]), "--format", "md", "--out", str(tmp_path / "pages")])
    assert done.exit_code == 0, done.output


def test_a_notebook_s_backend_breaks_no_figure(run, tmp_path):
    command = [sys.executable, "-m", "robustkit", "plot", "attacks", str(run[0]), "-o", str(tmp_path / "x.svg")]
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.svg").stat().st_size > 1000


@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_a_damaged_table_names_fresh_and_is_made_again_from_the_journal(run, how):
    place, asked = run
    before = load_run(place)
    table = place / "samples.parquet"
    kept = table.read_bytes()
    if how == "gone":
        table.unlink()
    else:
        table.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"anew from the journal there \(with --fresh all is computed again\)"):
        load_run(place)
    said = []
    model, data, attack = asked
    record = evaluate(model, data, attack, eps=0.1, out=place, doctor=False, on_event=said.append)
    assert any("made again from the journal" in getattr(event, "message", "") for event in said)
    assert record.counts == before.counts
    assert load_run(place).job == before.job
    assert table.read_bytes() == kept


def test_lazy_layers_are_refused_in_words():
    _, x, y = linear_case(8)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UsageError, match=r"the model's 1.weight has no shape before its first call"):
        evaluate(lazy, (x, y), "fgsm", eps=0.1)
    lazy(x[:1])
    evaluate(lazy, (x, y % 3), "fgsm", eps=0.1, doctor=False)


HOSTILE = [
    "a|b", "*x*", "_x_", "a_b_c", "`x`", "<b>x</b>", "[x](y)", "![x](y)", "~~x~~", "# x", "- x", "+ x", "1. x", "12) x",
    "&amp;", "a\\|b", "\\", "x\\", "***", "-", "***x** y*", "pgd:steps=3,loss=margin", "0.5", "-1", "(a)+(b)",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_in_a_name_is_shown_as_the_name(name):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for source, due in (
        (f"| {cell(name)} | z |\n|---|---|\n| {cell(name)} | q |", name),
        (f"- {cell(name)}: 1", f"{name}: 1"),
        (f"# {cell(name)} z", f"{name} z"),
    ):
        texts = html.unescape(re.sub(r"<[^>]+>", "\0", parser.render(source))).split("\0")
        assert due in [text.strip() for text in texts]
