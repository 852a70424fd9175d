"""The gate: chance does not trip it, a regression does, the same weights pass always, and what it refuses."""

import json
import shlex
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from robustkit.cli import main
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.models.sources import load_model
from robustkit.models.sources.trained import read_card
from robustkit.models.sources.zoo import FOLDER
from robustkit.records import baseline, gate
from robustkit.records.compare import Change, compare
from robustkit.records.folder import RunFolder, load_run
from tests.records import flipped, record

ROOT = Path(__file__).parent.parent
HALF_A_POINT = Fraction(1, 200)
NEW = ["gate", "--baseline", "base.json", "--update", "--quiet", "--model", "digits-cnn-at", "--eps", "0.2",
       "--device", "cpu", "--attack", "(apgd:steps=10)+(square:queries=50)"]  # fmt: skip
GATE = ["gate", "--baseline", "base.json", "--quiet"]


@pytest.fixture(autouse=True)
def same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A baseline of all samples, made once."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("made")
    done = CliRunner().invoke(main, [*NEW, "--threads", "1", "--baseline", str(folder / "base.json")])
    assert done.exit_code == 0, done.output
    torch.set_num_threads(threads)
    return (folder / "base.json").read_text()


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def rate(discordance, drop, seed):
    rng = np.random.default_rng(seed)
    index = np.arange(1000)
    found = [Change.of(index, *flipped(rng, 1000, discordance, drop)) for _ in range(2000)]
    return np.mean([gate.dropped(change, HALF_A_POINT) for change in found])


@pytest.mark.parametrize("discordance", [0.05, 0.10, 0.15])
def test_without_a_true_change_the_gate_rarely_fails(discordance):
    assert rate(discordance, 0.0, seed=2) <= 0.06


@pytest.mark.parametrize("discordance", [0.03, 0.04, 0.05])
def test_a_true_drop_of_three_points_is_found(discordance):
    assert rate(discordance, 0.03, seed=3) >= 0.95


def test_the_verdict_follows_the_rule_that_was_simulated():
    before = record("R" * 1000)
    for worse in (0, 4, 5, 6, 20):
        after = record("B" * worse + "R" * (1000 - worse), model_sha256="bb")
        found = gate.judge(before, after, HALF_A_POINT)
        assert found.passed is not gate.dropped(compare(before, after).robust, HALF_A_POINT)
        assert found.passed is (worse <= 5)  # five of 1000 is significant, and not more than half a point
    assert gate.judge(before, after, Fraction(1, 50)).passed  # 20 of 1000 is exactly two points


def test_the_same_weights_fail_at_any_flip_and_what_differs_is_said():
    before = record("RRRRRW")
    for letters in ("RRRRBW", "RRRRWW", "RRRRRR", "RRRRRB"):
        found = gate.judge(before, record(letters), HALF_A_POINT)
        assert not found.passed
        assert found.reason == "the weights are the same, yet 1 of 6 samples flipped; and nothing else differs"
    other = record("RRRRBW", threads=2, versions={"torch": "2.7"}, attack_sources={"fgsm": "t"})
    reason = gate.judge(before, other, HALF_A_POINT).reason
    assert "differ from the baseline: threads 1 -> 2; the source code of fgsm; torch 2.6 -> 2.7" in reason
    assert gate.judge(before, record("RRRRRW", threads=2), HALF_A_POINT).passed


def test_another_question_is_refused():
    with pytest.raises(UsageError, match=r"eps is 0.2 in the run but 0.1 in the baseline"):
        gate.judge(record("RR"), record("RR", eps=0.2), HALF_A_POINT)
    with pytest.raises(UsageError, match=r"carried is ff in the run but none in the baseline"):
        gate.judge(record("RR"), record("RR", carried="ff"), HALF_A_POINT)
    with pytest.raises(UsageError, match="a run of a sweep is no baseline"):
        baseline.save(record("RR", carried="ff"), Path("never.json"))
    with pytest.raises(NotEstablishedError, match="1 of 2 shared samples are UNKNOWN"):
        gate.judge(record("RR"), record("RU"), HALF_A_POINT)


def test_the_committed_baselines_are_of_the_bundled_weights_and_neither_zero_nor_one(monkeypatch):
    from robustkit.models.examination import weights_sha256

    for name in ("digits-cnn", "digits-cnn-at", "digits-trades"):
        held = baseline.load(ROOT / f"reports/baselines/{name}.json")
        assert held.job["model"] == name
        assert held.job["model_sha256"] == weights_sha256(load_model(name)[0])
        assert held.n == 355
        assert 0.2 < float(held.robust_accuracy) < 0.8
        assert (held.job["device"], held.job["threads"]) == ("cpu", 1)


@pytest.mark.parametrize("name", ["digits-cnn-at", "digits-trades", "cifar10-resnet8", "cifar10-resnet8-at"])
def test_the_gate_establishes_what_the_card_of_a_network_says_again(name):
    held, robust = baseline.load(ROOT / f"reports/baselines/{name}.json"), read_card(FOLDER / f"{name}.json")["robust"]
    assert [held.job[key] for key in ("attack", "norm", "tile")] == [robust[key] for key in ("attack", "norm", "tile")]
    assert held.job["eps"] == float(Fraction(robust["eps"]))
    assert (held.n, float(held.robust_accuracy)) == (robust["n"], robust["value"])


def test_a_baseline_holds_the_facts_of_its_run_in_a_line_a_sample(inside, made):
    Path("base.json").write_text(made)
    assert inside.invoke(main, [*GATE, "--out", "run"]).exit_code == 0
    ran, held = load_run("run"), baseline.load(Path("base.json"))
    for name in ("index", "label", "status", "broken_by", "sha256"):
        assert (ran.samples[name] == held.samples[name]).all()
    for mine, theirs in zip(held.by_attack, ran.by_attack, strict=True):
        assert (mine.name, mine.attacked, mine.broken, mine.robust) == (
            theirs.name, theirs.attacked, theirs.broken, theirs.robust)  # fmt: skip
        assert (mine.forwards, mine.backwards) == (theirs.forwards, theirs.backwards)
    assert sum(line.startswith("  [") for line in made.splitlines()) == 355
    baseline.save(held, Path("again.json"))
    assert Path("again.json").read_text() == made


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_untouched_model_passes_ten_times_of_ten(inside, threads):
    fast = ["-n", "128", "--attack", "(apgd:steps=5)+(square:queries=25)"]
    assert inside.invoke(main, [*NEW, "--threads", str(threads), *fast]).exit_code == 0
    assert baseline.load(Path("base.json")).job["threads"] == threads
    for _ in range(10):
        torch.set_num_threads(3 - threads)
        done = inside.invoke(main, GATE)
        assert done.exit_code == 0, done.output
        assert "PASS: the weights are the same, and so is the verdict on all 128 samples" in done.stdout
        assert "not the same" not in done.stdout


def perturbed(scale):
    module, _ = load_model("digits-cnn-at")
    draws = torch.Generator().manual_seed(0)
    state = {k: v + scale * v.std() * torch.randn(v.shape, generator=draws) if v.is_floating_point() and v.numel() > 1
             else v for k, v in module.state_dict().items()}  # fmt: skip
    save_file(state, "net.safetensors")
    return "./net.safetensors:arch=digits-cnn"


def test_a_planted_regression_fails_and_names_the_samples_that_flipped(inside, made):
    Path("base.json").write_text(made)
    model = perturbed(0.3)
    done = inside.invoke(main, [*GATE, "--model", model, "--out", "run"])
    assert done.exit_code == 1, done.output
    assert "FAIL: the robust accuracy fell by" in done.stdout
    held, ran = baseline.load(Path("base.json")), load_run("run")
    worse = held.samples["index"][(held.samples["status"] == "ROBUST") & (ran.samples["status"] != "ROBUST")]
    named = {int(line.split()[0]): line.split() for line in done.stdout.splitlines() if line.split()[2:3] == ["ROBUST"]}
    assert set(list(named)[:40]) <= set(worse.tolist())
    assert len(named) == min(40, len(worse))
    first = int(worse[0])
    assert named[first][1:4] == [str(held.samples["label"][first]), "ROBUST", str(ran.samples["status"][first])]
    judged = inside.invoke(main, ["gate", "--baseline", "base.json", "--run", "run", "--json", "-"])
    assert judged.exit_code == 1
    found = json.loads(judged.stdout)
    assert found["comparison"]["robust_accuracy"]["worse"] == worse.tolist()
    assert found["reason"] in done.stdout
    again = shlex.split(found["reproduce"])
    assert f"see one again: {found['reproduce']}" in done.stdout
    alone = inside.invoke(main, [*again[1:], "--quiet", "--json", "-"])
    assert alone.exit_code == 0, alone.output
    shown = json.loads(alone.stdout)
    assert shown["job"]["indices"] == [first]
    assert shown["summary"]["counts"][str(ran.samples["status"][first])] == 1


def test_a_harmless_change_of_the_weights_passes(inside, made):
    Path("base.json").write_text(made)
    done = inside.invoke(main, [*GATE, "--model", perturbed(1e-4)])
    assert done.exit_code == 0, done.output
    assert "note: not the same: the weights" in done.stdout


def test_a_time_budget_fixes_a_prefix_before_anything_runs(inside, made):
    Path("base.json").write_text(made)
    held = baseline.load(Path("base.json"))
    whole = sum(held.seconds.values())
    fits = [gate.prefix(held, whole * part)[0] for part in (0.25, 0.5, 1.01)]
    assert 0 < fits[0] < fits[1] < fits[2] == 355
    assert [gate.prefix(held, whole * part)[0] for part in (0.25, 0.5, 1.01)] == fits
    assert gate.prefix(held, whole * 0.5)[1] <= whole * 0.5
    done = inside.invoke(main, [*GATE, "--time-budget", f"{whole / 4:.6f}s", "--out", "run"])
    assert done.exit_code == 0, done.output
    assert f"the first {fits[0]} of 355 samples" in done.stderr
    assert load_run("run").job["indices"] == held.job["indices"][: fits[0]]
    assert f"n = {fits[0]} paired samples ({355 - fits[0]} only before)" in done.stdout


def test_the_cost_of_a_prefix_is_shared_by_passes():
    held = record("R" * 10, seconds=5.0)
    held.attacks["forwards"][0] += 10  # 4 passes each, and 14 of the first: 5 s over 50 passes
    assert gate.prefix(held, 3.0) == (5, pytest.approx(3.0))
    with pytest.raises(UsageError, match=r"allows 4 samples, too few .*5 take 3s, all 10 take 5s"):
        gate.prefix(held, 2.9)
    with pytest.raises(UsageError, match="has none"):
        gate.prefix(record("R" * 10, seconds=0.0), 3.0)


def test_update_keeps_the_baseline_s_job_but_for_what_is_given(inside, made):
    Path("base.json").write_text(made)
    done = inside.invoke(main, [*GATE, "--update", "-n", "30", "--seed", "5"])
    assert done.exit_code == 0, done.output
    held = baseline.load(Path("base.json"))
    assert (held.n, held.job["seed"], held.job["eps"], held.job["threads"]) == (30, 5, 0.2, 1)
    assert held.job["attack"] == "(apgd:steps=10)+(square:queries=50)"
    assert inside.invoke(main, [*GATE, "--out", "run"]).exit_code == 0
    assert inside.invoke(main, ["gate", "--baseline", "other.json", "--update", "--run", "run"]).exit_code == 0
    assert (baseline.load(Path("other.json")).samples["status"] == held.samples["status"]).all()


@pytest.mark.parametrize(
    ("text", "value"), [("0.5pp", Fraction(1, 200)), ("0.7 %", Fraction(7, 1000)), ("0pp", 0), ("3%", Fraction(3, 100))]
)
def test_a_drop_is_in_points_of_accuracy(text, value):
    assert gate.parse_drop(text) == value


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--baseline", "nowhere.json"], 2, "there is no baseline nowhere.json; make it: --update --model"),
        (["--baseline", "nowhere.json", "--update"], 2, "a new baseline needs --model"),
        (["--baseline", "no/such/base.json", "--update", "--model", "digits-cnn"], 2, "there is no folder no/such"),
        (["--baseline", "page.json"], 2, "cannot be read as JSON"),
        (["--baseline", "edited.json"], 2, "edited.json is not as it was written: its content has another digest"),
        (["--baseline", "torn.json"], 2, "row 1 of the samples contradicts itself"),
        (["--baseline", "run/run.json"], 2, "here this version reads 'robustkit/baseline/1'"),
        (["--max-drop", "0.005"], 2, "write 0.5pp or 0.5%"),
        (["--max-drop", "-1pp"], 2, "write 0.5pp or 0.5%"),
        (["--max-drop", "100%"], 2, "write 0.5pp or 0.5%"),
        (["--time-budget", "60"], 2, "write 60s or 2m"),
        (["--time-budget", "0.001s"], 2, "allows 0 samples, too few"),
        (["--eps", "0.3", "-n", "3"], 2, "--eps, -n: the baseline decides that"),
        (["--run", "nowhere"], 2, "there is no nowhere"),
        (["--run", "eps"], 2, "eps is 0.2 in the run but 0.1 in the baseline"),
        (["--run", "images"], 2, "3 of 3 shared samples differ in their image"),
        (["--run", "later"], 2, "no sample in common"),
        (["--run", "run", "--time-budget", "60s"], 2, "--run judges a stored run"),
        (["--run", "run", "--model", "digits-cnn"], 2, "--run judges a stored run"),
        (["--update", "--run", "run", "--json", "-"], 2, "--update measures a whole baseline"),
        (["--run", "unknown"], 3, "2 of 3 shared samples are UNKNOWN in the run after"),
        (["--update", "--run", "unknown"], 3, "no baseline was written to base.json: 2 of 3 samples are UNKNOWN"),
        (["--run", "worse"], 1, ""),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_bad_usage_is_one_line_an_exit_code_and_leaves_the_baseline(inside, arguments, code, words):
    baseline.save(record("RRR"), Path("base.json"))
    before = Path("base.json").read_text()
    Path("page.json").write_text("<html>")
    edited = before.replace('[1, 1, "ROBUST", ""', '[1, 1, "BROKEN", ""')
    Path("edited.json").write_text(edited)
    Path("torn.json").write_text("".join(line for line in edited.splitlines(True) if '"digest"' not in line))
    runs = {"run": ("RRR", {}), "eps": ("RRR", {"eps": 0.2}), "images": ("RRR", {"images": "x"}),
            "later": ("RRR", {"first": 3}), "unknown": ("UUR", {}), "worse": ("RRB", {})}  # fmt: skip
    for folder, (letters, more) in runs.items():
        Path(folder).mkdir()
        RunFolder(Path(folder)).save(record(letters, **more), {})
    done = inside.invoke(main, [*GATE, *arguments])
    assert done.exit_code == code, done.output
    assert Path("base.json").read_text() == before
    if code > 1:
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
