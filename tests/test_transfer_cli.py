"""`robustkit transfer`: what it prints and stores, its exit codes, and that it continues after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import robustkit
from robustkit.cli import main
from robustkit.records.transfer_folder import load_transfer
from tests.test_transfer import same

CLI = [
    "transfer", "--surrogate", "cnn=digits-cnn", "--victim", "at=digits-cnn-at", "--dataset", "digits", "--eps", "0.1",
    "-n", "100", "--quiet",
]  # fmt: skip


def test_a_heat_map_that_cannot_be_drawn_is_refused_before_the_run(tmp_path, monkeypatch):
    for name, words in (("map.gif", ".pdf, .svg, .png"), ("no/map.png", "no folder")):
        done = CliRunner().invoke(main, [*CLI, "--attack", "pgd", "--heatmap", str(tmp_path / name)])
        assert done.exit_code == 2
        assert words in done.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(main, [*CLI, "--attack", "pgd", "--heatmap", str(tmp_path / "map.png")])
    assert "pip install 'robustkit-bench[plots]'" in done.stderr


def test_the_command_prints_stores_and_shows_one_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = [*CLI, "--attack", "strong=pgd:steps=10", "--attack", "(fgsm)+(apgd:steps=5)"]
    done = CliRunner().invoke(main, [*run, "--json", "-", "--heatmap", "map.png"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    (folder,) = Path("robustkit-runs").iterdir()
    stored = json.loads((folder / "transfer.json").read_text())
    envelope = {key: shown.pop(key) for key in ("robustkit", "command", "label")}
    assert envelope["command"].endswith("transfer")
    assert {**shown, "files": stored["files"], "digest": stored["digest"]} == stored
    assert shown["schema"] == "robustkit/transfer/1"
    assert shown["job"]["attacks"] == {"strong": "pgd:steps=10", "fgsm": "fgsm", "apgd:steps=5": "apgd:steps=5"}
    matrix = {(c["attack"], c["victim"]): c for c in shown["summary"]["matrix"]}
    assert set(matrix["strong", "at"]["success_rate_of_all"]) == {"value", "low", "high", "n"}
    assert matrix["strong", "cnn"]["white_box"]
    rates = {key: cell["success_rate_of_all"]["value"] for key, cell in matrix.items()}
    assert rates["strong", "cnn"] > rates["strong", "at"]
    assert {p.name for p in folder.iterdir()} == {
        "job.json", "journal", "transfer.json", "samples.parquet", "attacks.parquet", "transfer.parquet", "report.md",
        "report.html", "matrix.csv", "matrix.tex",
    }  # fmt: skip
    assert Path("map.png").stat().st_size > 1000
    show = CliRunner().invoke(main, ["show", str(folder)])
    assert "strong" in show.stdout
    text = CliRunner().invoke(main, run)
    assert text.stdout == f"{show.stdout}in {folder}\n"  # from the journal: the times too are the same
    more = CliRunner().invoke(main, [*run, "--victim", "digits-cnn", "--json", "-"])
    assert [p.name for p in Path("robustkit-runs").iterdir()] == [folder.name]  # the same folder: it is added to
    assert json.loads(more.stdout)["summary"]["matrix"][0] == shown["summary"]["matrix"][0]


def test_a_config_gives_what_the_command_line_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(
        'dataset = "digits"\nattack = ["pgd:steps=2"]\neps = "0.1"\nn = 50\nbatch-size = "32"\n'
        '[surrogate]\nplain = "digits-cnn"\nrobust = "digits-cnn-at"\n[victim]\nat = "digits-cnn-at"\n'
        '[surrogates]\nwithout = ["plain"]\nwith = ["plain", "robust"]\n'
    )
    done = CliRunner().invoke(main, ["transfer", "--config", "run.toml", "-n", "20", "--quiet", "--json", "-"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["job"]["surrogates"] == {"without": ["plain"], "with": ["plain", "robust"]}
    assert shown["job"]["models"]["robust"]["spec"] == "digits-cnn-at"
    assert shown["summary"]["n"] == 20
    Path("bad.toml").write_text('victims = ["digits-cnn"]\n')
    refused = CliRunner().invoke(main, ["transfer", "--config", "bad.toml"])
    assert refused.exit_code == 2
    assert "did you mean victim" in refused.stderr
    Path("worse.toml").write_text("victim = [\n")
    assert "cannot be read" in CliRunner().invoke(main, ["transfer", "--config", "worse.toml"]).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--surrogate is needed"),
        (["--surrogate", "digits-cnn"], "--victim is needed"),
        (["--surrogate", "digits-cnn", "--victim", "digits-cnn-at"], "--attack is needed"),
        (["--surrogate", "digits-cnn", "--victim", "digits-cnn-at", "--attack", "pgd"], "--dataset is needed"),
        ([*CLI[1:], "--attack", "pgd", "--victim", "at=digits-cnn"], "'at' is named twice"),
        ([*CLI[1:], "--attack", "pgd", "--surrogates", "cnn"], "NAME=A+B"),
        ([*CLI[1:], "--attack", "pgd", "--surrogates", "x=digits-cnn-at"], "in no set"),
        ([*CLI[1:], "--attack", "pgd", "--surrogates", "x=cnn+digits-cnnn"], "did you mean"),
        ([*CLI[1:], "--attack", "cw"], "nearest adversarial"),
        ([*CLI[1:], "--attack", "pgd", "--outputs", "cn=probs"], "did you mean cnn"),
        ([*CLI[1:], "--attack", "pgd", "--outputs", "prob"], "there are: logits, probs"),
        ([*CLI[1:], "--attack", "pgd", "--outputs", "logits", "--outputs", "at=probs"], "no model called 'logits'"),
        ([*CLI[1:], "--attack", "pgd", "--outputs", "at=probs"], "at: outputs='probs' was said"),
        ([*CLI[1:], "--attack", "pgd", "--defense", "median", "--victim", "cnn=digits-cnn"], "a name of its own"),
        ([*CLI[1:], "--attack", "pgd", "--out", "foreign"], "no robustkit run"),
        ([*CLI[1:], "--attack", "pgd", "--out", "another"], "has schema"),
    ],
    ids=lambda a: " ".join(a[-2:]) if isinstance(a, list) else "",
)
def test_bad_usage_is_one_line_and_exit_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("mine")
    Path("another").mkdir()
    Path("another/job.json").write_text('{"schema": "robustkit/run/1", "job": {}, "plan": {}}')
    done = CliRunner().invoke(main, ["transfer", *arguments])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert sorted(p.name for p in Path().rglob("*")) == ["another", "foreign", "job.json", "thesis.tex"]


def test_a_rate_that_is_not_established_exits_3(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cheats", raising=False)
    Path("cheats.py").write_text("from tests.toys import LeavesBall\n\ndef attack():\n    return LeavesBall()\n")
    done = CliRunner().invoke(main, [*CLI, "--attack", "python/cheats.attack"])
    assert done.exit_code == 3, done.output
    assert "not established" in done.stdout
    assert "an image outside the ball" in done.stdout


SLOW = [
    "transfer", "--surrogate", "cnn=digits-cnn", "--surrogate", "at=digits-cnn-at", "--surrogates", "one=cnn",
    "--surrogates", "both=cnn+at", "--victim", "digits-cnn-at", "--attack", "pgd:steps=30", "--attack",
    "apgd:steps=30", "--dataset", "./images.npz", "--eps", "0.1", "--tile", "16", "--shard-size", "32", "--quiet",
]  # fmt: skip


GAINS = [
    "--surrogate", "soft=python/softened.net", "--surrogates", "soft=cnn+soft", "--outputs", "soft=probs",
    "--defense", "random-resize-pad", "--draws", "3",
]  # fmt: skip


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder with images.npz, to stand in; a file is read faster than the digits of scikit-learn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "softened", raising=False)
    Path("softened.py").write_text(
        "import torch, robustkit\n\n"
        "def net():\n    return torch.nn.Sequential(robustkit.load_model('digits-cnn')[0], torch.nn.Softmax(1))\n"
    )
    x, y = robustkit.load_dataset("digits").batch(range(150))
    np.savez("images.npz", x=x.numpy(), y=y.numpy())
    return tmp_path


def start(*more):
    return subprocess.Popen(
        [sys.executable, "-m", "robustkit", *SLOW, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_killed_at_any_moment_it_ends_with_the_record_of_an_undisturbed_run(inside):
    def finish(folder):
        done = CliRunner().invoke(main, [*SLOW, *GAINS, "--out", folder])
        assert done.exit_code == 0, done.output
        return load_transfer(folder)

    calm, journal = finish("calm"), inside / "killed/journal"
    moment, cut = random.Random(5), 0
    for kill in range(2):
        had, process = len(list(journal.glob("*.npz"))), start(*GAINS, "--out", "killed")
        while process.poll() is None and len(list(journal.glob("*.npz"))) < had + 1 + 3 * kill:
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.1))
        cut += process.poll() is None
        process.kill()
        process.communicate()
    assert cut == 2, "not every run was killed at work"
    parts = {path: path.stat().st_mtime_ns for path in journal.glob("*.npz")}
    resumed = finish("killed")
    assert len(parts) > 5
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    same(calm, resumed)
    victim, soft = (resumed.job["models"][name] for name in ("digits-cnn-at", "soft"))
    assert (victim["defense"], victim["randomised"], resumed.job["draws"]) == ("random-resize-pad", True, 3)
    assert (soft["defense"], soft["outputs"]) == ("", "probs")
    first, second = calm.to_json(), resumed.to_json()
    for record in (first, second):
        record.pop("seconds")
        record["about"].pop("started"), record["about"].pop("finished")
        for cost in record["summary"]["costs"]:
            cost.pop("seconds")
    assert first == second
    assert Path("calm/matrix.tex").read_bytes() == Path("killed/matrix.tex").read_bytes()


def test_ctrl_c_exits_130_and_keeps_what_was_made(inside):
    process = start("--attack", "pgd:steps=20000", "--out", "run")
    journal = inside / "run/journal"
    while process.poll() is None and not list(journal.glob("answers-*.npz")):
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert b"interrupted; what was computed is kept in run" in err
    assert b"Traceback" not in err
    assert list(journal.glob("adversarials-*.npz"))


def test_progress_is_told_on_stderr_unless_quiet(tmp_path):
    run = [*CLI, "--attack", "fgsm", "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(main, run).stderr == ""
    loud = CliRunner().invoke(main, [word for word in run if word != "--quiet"])
    assert "n = 100 · continued" in loud.stderr
    assert "continued" not in loud.stdout
