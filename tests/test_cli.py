"""The command line: what it prints where, its exit codes, and that nothing heavy is imported to say hello."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit import __version__
from robustkit.cli import main
from robustkit.records.folder import load_run

FAST = ["eval", "--model", "digits-cnn-at", "--attack", "pgd:steps=3", "--eps", "0.2", "-n", "40", "--quiet"]


def robustkit(*arguments, cwd, check=None):
    done = subprocess.run(
        [sys.executable, "-m", "robustkit", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    if check is not None:
        assert done.returncode == check, done.stderr + done.stdout
    return done


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_help_and_import_load_no_torch_and_answer_at_once(tmp_path):
    program = (
        "import sys, time; import robustkit, robustkit.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'rich', 'sklearn', 'pyarrow'} & set(sys.modules)\n"
        "print('HEAVY', heavy, 'SECONDS', time.process_time())"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout for _ in range(3)]
    assert all("HEAVY set()" in out for out in runs)
    assert min(float(out.split("SECONDS")[1]) for out in runs) < 0.3


def test_json_on_stdout_is_one_object_and_nothing_else_and_the_same_as_run_json(tmp_path):
    done = robustkit(*FAST[:-1], "--json", "-", "--out", "run", cwd=tmp_path, check=0)
    shown = json.loads(done.stdout)
    stored = json.loads((tmp_path / "run/run.json").read_text())
    envelope = {key: shown.pop(key) for key in ("robustkit", "command", "label")}
    assert envelope == {"robustkit": __version__, "command": "robustkit eval", "label": ""}
    assert {**shown, **{key: stored[key] for key in ("files", "digest")}} == stored
    assert "digits-cnn-at" in done.stderr
    summary = shown["summary"]
    assert {"schema", "job", "environment", "summary", "flags", "errors"} <= set(shown)
    assert set(summary["robust_accuracy"]) == set(summary["clean_accuracy"]) == {"value", "low", "high", "n"}
    assert summary["verdict"] == "not audited"
    assert summary["unknown"] == 0
    assert {"name", "broken", "robust_accuracy", "forwards", "backwards", "seconds"} <= set(summary["attacks"][0])
    assert 0 < summary["robust_accuracy"]["value"] < 1


def test_a_run_s_folder_holds_the_facts_in_the_promised_columns(inside):
    assert inside.invoke(main, [*FAST, "--out", "run", "--save-adversarial", "--quantize", "8bit"]).exit_code == 0
    record = load_run("run")
    assert list(record.samples)[:6] == ["index", "label", "status", "broken_by", "distance", "sha256"]
    assert list(record.attacks)[:7] == ["index", "attack", "outcome", "distance", "margin", "forwards", "backwards"]
    assert "quantized_status" in record.samples
    assert (Path("run") / "adversarial.safetensors").exists()
    assert "Robust accuracy" in (Path("run") / "report.md").read_text()
    broken = record.samples["status"] == "BROKEN"
    assert (record.samples["broken_by"][broken] == "pgd:steps=3").all()
    assert np.isnan(record.samples["distance"][~broken]).all()


def test_the_same_command_twice_computes_nothing_the_second_time(inside):
    first = inside.invoke(main, FAST)
    (run,) = Path("robustkit-runs").iterdir()
    written = (run / "run.json").stat().st_mtime_ns
    second = inside.invoke(main, FAST)
    assert first.stdout == second.stdout
    assert (run / "run.json").stat().st_mtime_ns == written
    inside.invoke(main, [*FAST, "--fresh"])
    assert (run / "run.json").stat().st_mtime_ns != written


def test_show_prints_what_eval_printed(inside):
    ran = inside.invoke(main, [*FAST, "--out", "run"])
    shown = inside.invoke(main, ["show", "run"])
    assert shown.stdout.strip() in ran.stdout
    as_json = json.loads(inside.invoke(main, ["show", "run", "--json"]).stdout)
    assert as_json["summary"]["clean_accuracy"]["n"] == 40


def test_lists_name_what_there_is(inside):
    assert "autoattack" in inside.invoke(main, ["list", "attacks"]).stdout
    assert "digits-cnn-at" in inside.invoke(main, ["list", "models"]).stdout
    assert "cifar10" in inside.invoke(main, ["list", "datasets", "cifar"]).stdout
    assert inside.invoke(main, ["list", "defenses"]).exit_code == 0
    assert "complete" in inside.invoke(main, ["completion", "bash"]).stdout


def test_a_result_that_is_not_established_exits_3(inside):
    Path("cheat.py").write_text(
        "import torch\n"
        "def model() -> torch.nn.Module:\n"
        "    class Hard(torch.nn.Module):\n"
        "        def forward(self, x):\n"
        "            return torch.nn.functional.one_hot(x.flatten(1)[:, :10].argmax(1), 10).float()\n"
        "    return Hard()\n"
    )
    done = inside.invoke(main, ["eval", "--model", "python/cheat.model", "--dataset", "digits", *FAST[3:]])
    assert done.exit_code == 3, done.output
    assert "not established" in done.stdout
    assert "stand unattacked; try square or adaptive" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "digits-cnnn"], "did you mean digits-cnn"),
        (["--model", "digits-cnn", "--dataset", "digit"], "did you mean digits"),
        (["--model", "digits-cnn", "--attack", "autoatack"], "did you mean autoattack"),
        (["--model", "digits-cnn", "--eps", "0"], "eps"),
        (["--model", "digits-cnn", "--eps", "8"], "8/255"),
        (["--model", "digits-cnn", "--indices", "5-2"], "0-199,400"),
        (["--model", "digits-cnn", "--indices", "@nowhere"], "nowhere"),
        (["--model", "digits-cnn", "--batch-size", "many"], "auto or a positive number"),
        (["--model", "digits-cnn", "--target", "12"], "least-likely"),
        (["--model", "tim/resnet18", "--dataset", "digits"], "did you mean timm"),
        (["--model", "./page.pt:arch=digits-cnn", "--dataset", "digits"], "HTML"),
        (["--model", "digits-cnn", "--dataset", "./nothing.npz"], "nothing.npz"),
        (["--model", "digits-cnn", "--json", "no/such/place.json"], "no folder"),
        (["--model", "digits-cnn", "--out", "page.pt"], "wants a folder"),
        (["--model", "digits-cnn", "--out", "foreign"], "no robustkit run"),
        (["--model", "digits-cnn", "--out", "broken"], "cannot be read"),
    ],
    ids=lambda a: " ".join(a[2:] or a) if isinstance(a, list) else a,
)
def test_bad_usage_is_one_line_exit_2_and_nothing_written(inside, arguments, words):
    Path("page.pt").write_text("<!DOCTYPE html><html>quota exceeded</html>")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("mine")
    Path("broken").mkdir()
    Path("broken/job.json").write_text("{")
    done = inside.invoke(main, ["eval", "--quiet", *arguments])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert sorted(p.name for p in Path().rglob("*")) == ["broken", "foreign", "job.json", "page.pt", "thesis.tex"]


def test_another_run_s_folder_is_refused_and_kept(inside):
    inside.invoke(main, [*FAST, "--out", "run"])
    before = (Path("run") / "run.json").read_bytes()
    done = inside.invoke(main, [*FAST, "--out", "run", "--seed", "7"])
    assert done.exit_code == 2
    assert "seed differs" in done.stderr
    assert (Path("run") / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted; "), (signal.SIGTERM, 143, "ended by SIGTERM; ")]
)
def test_ctrl_c_and_sigterm_keep_what_was_done(tmp_path, number, code, words):
    arguments = ["eval", "--model", "digits-cnn-at", "--attack", "fgsm+(square:queries=100000)", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "robustkit", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    part = tmp_path / "run/journal/shard-00000-01.npz"
    while process.poll() is None and not part.exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    try:
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == code, err
    assert f"Error: {words}what was computed is kept in run; run the same command to continue" in err
    assert "Traceback" not in err
    assert part.exists()


@pytest.mark.slow
def test_ctrl_c_s_tests_run_where_sigint_is_ignored():
    """As under nohup, in a shell's background and in some CI."""
    root = str(Path(__file__).parent.parent)
    files = (
        "tests/test_cli.py tests/test_cli_certify.py tests/test_transfer_cli.py tests/test_study.py tests/test_cache.py"
    )
    tests = f"{sys.executable} -m pytest -q -p no:cacheprovider {files} -k 'ctrl_c_and or ctrl_c_exits or interrupted'"
    done = subprocess.run(["sh", "-c", f"trap '' INT; exec {tests}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
