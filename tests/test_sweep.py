"""A sweep over eps: what breaks at a small eps is not attacked at a larger one and counts as broken there."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit import UsageError, evaluate
from robustkit.cli import main
from robustkit.records.sweep import load_sweep, parse_eps

COMMAND = ["eval", "--model", "digits-cnn-at", "--attack", "pgd:steps=5", "-n", "60", "--quiet", "--out", "run"]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_each_eps_attacks_the_survivors_only_and_the_table_falls(inside):
    done = inside.invoke(main, [*COMMAND, "--eps", "0.1,0.2,3/10", "--json", "sweep-copy.json"])
    assert done.exit_code == 0, done.output
    sweep = load_sweep(Path("run"))
    shares = [float(record.robust_accuracy) for record in sweep.records]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    for before, after in zip(sweep.records, sweep.records[1:], strict=False):
        broken = set(before.samples["index"][before.samples["status"] == "BROKEN"])
        assert after.carried == len(broken)
        assert not broken & set(after.attacks["index"])
        assert broken <= set(after.samples["index"][after.samples["status"] == "BROKEN"])
        assert after.by_attack[-1].robust == after.robust_accuracy
        at = np.isin(after.samples["index"], list(broken))
        assert (after.samples["broken_at"][at] < after.job["eps"]).all()
    table = json.loads(Path("sweep-copy.json").read_text())["table"]
    assert [row["eps"] for row in table] == ["0.1", "0.2", "3/10"]
    assert "3/10" in done.stdout
    assert inside.invoke(main, ["show", "run"]).stdout.strip() in done.stdout


def test_the_first_eps_of_a_sweep_is_a_run_of_its_own(inside):
    inside.invoke(main, [*COMMAND, "--eps", "0.1,0.2"])
    alone = evaluate("digits-cnn-at", "digits", "pgd:steps=5", eps=0.1, n=60)
    assert alone.to_frame().equals(load_sweep(Path("run")).records[0].to_frame())


def test_a_sweep_run_again_computes_nothing(inside):
    first = inside.invoke(main, [*COMMAND, "--eps", "0.1,0.2"])
    written = {p: p.stat().st_mtime_ns for p in Path("run").rglob("run.json")}
    second = inside.invoke(main, [*COMMAND, "--eps", "0.1,0.2"])
    assert first.stdout == second.stdout
    assert written == {p: p.stat().st_mtime_ns for p in Path("run").rglob("run.json")}


def test_radii_must_grow():
    assert parse_eps("2/255, 4/255") == ["2/255", "4/255"]
    for bad in ("4/255,2/255", "0.1,0.1", "0.1,", "0.1,two"):
        with pytest.raises(UsageError):
            parse_eps(bad)


def test_only_a_smaller_eps_of_the_same_norm_can_be_carried():
    small = evaluate("digits-cnn", "digits", "fgsm", eps=0.2, n=20)
    with pytest.raises(UsageError, match="carried"):
        evaluate("digits-cnn", "digits", "fgsm", eps=0.1, n=20, carry=small)
    for other in ({"norm": "l2"}, {"target": "random"}, {"seed": 1}, {"indices": range(1, 21), "n": None}):
        with pytest.raises(UsageError, match="carried"):
            evaluate("digits-cnn", "digits", "fgsm", **{"eps": 0.5, "n": 20, "carry": small, **other})
