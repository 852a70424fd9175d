"""The gate: chance does not trip it, a regression does, the same weights pass always, and what it refuses."""

import json
import shlex
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

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
from robustkit.records.compare import compare
from robustkit.records.folder import RunFolder, load_run
from robustkit.report.comparison import verdict
from tests.records import AUDIT, record

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


def other(letters, **more):
    """A record of other weights."""
    return record(letters, **{"model_sha256": "bb", **more})


def test_the_verdict_follows_the_rule():
    before = record("R" * 1000)
    for worse in (0, 4, 9, 10, 11, 20):
        after = other("B" * worse + "R" * (1000 - worse))
        found = gate.judge(before, after, HALF_A_POINT)
        assert found.passed is not gate.dropped(compare(before, after).robust, HALF_A_POINT)
        assert found.passed is (worse < 10)
    assert gate.judge(before, after, Fraction(1, 50)).passed  # 20 of 1000 is exactly two points


@pytest.mark.parametrize(("worse", "better"), [(20, 8), (40, 20)])
def test_what_got_better_is_set_against_what_got_worse(worse, better):
    before = record("B" * better + "R" * (1000 - better))
    after = other("R" * better + "B" * worse + "R" * (1000 - better - worse))
    assert gate.judge(before, after, Fraction(3, 200)).passed
    alone = other("B" * (better + worse) + "R" * (1000 - better - worse))
    assert gate.judge(before, alone, Fraction(3, 200)).passed is (worse < 23)


def test_it_says_which_of_the_two_questions_it_asks_and_what_it_rests_on():
    before = record("B" * 3 + "R" * 997)
    found = gate.judge(before, other("R" * 3 + "B" * 14 + "R" * 983), HALF_A_POINT)
    assert found.passed
    lines = verdict(found, before, before).splitlines()
    assert "on these 1000 samples 14 are robust no more and 3 are newly robust: 11 fewer (1.10 points)" in lines
    assert "for samples like these: drop 1.10 points [0.29, 2.06], at least 0.36; p(drop <= 0.5) = 0.0984" in lines
    assert lines[-1].startswith(
        "PASS: the robust accuracy fell by 1.10 points; that it truly fell by more than the 0.5"
    )
    data = found.to_json()
    assert (data["question"], data["max_drop"]) == ("the drop behind them", 0.005)
    assert (data["p"], data["at_least"]) == (pytest.approx(0.0984, abs=1e-4), pytest.approx(0.0036, abs=1e-4))
    same = gate.judge(before, record("R" + "B" * 2 + "R" * 997), HALF_A_POINT)
    assert not any("samples like these" in line for line in verdict(same, before, before).splitlines())
    data = same.to_json()
    assert (data["question"], data["p"], data["max_drop"]) == ("these samples", None, None)


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


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eps": 0.2}, "eps is 0.2 in the run but 0.1 in the baseline"),
        ({"carried": "ff"}, "carried is ff in the run but none in the baseline"),
        ({"quantize": "8bit"}, "quantize is 8bit in the run but none in the baseline"),
        ({"attacks": ["fgsm", "pgd"]}, "attacks is fgsm, pgd in the run but fgsm in the baseline"),
    ],
)  # fmt: skip
def test_another_question_is_refused(changed, words):
    for make in (record, other):
        with pytest.raises(UsageError, match=words):
            gate.judge(record("R" * 100), make("R" * 100, **changed), HALF_A_POINT)


def test_a_baseline_needs_a_number():
    with pytest.raises(UsageError, match="a run of a sweep is no baseline"):
        baseline.save(record("RR", carried="ff"), Path("never.json"))
    with pytest.raises(NotEstablishedError, match="no measure by itself"):
        baseline.save(record("RR", flags=[WEAK]), Path("never.json"))
    with pytest.raises(NotEstablishedError, match=r"written to never\.json: the audit says INVALID"):
        baseline.save(audited("RR"), Path("never.json"))


WEAK = {"kind": "insufficient", "message": "noise is no measure by itself"}


def audited(letters, **job):
    return replace(record(letters, **job), audit=AUDIT)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (record("R" * 99), record("R" * 98 + "U"), "1 of 99 shared samples are UNKNOWN"),
        (
            record("R" * 99),
            record("R" * 99, flags=[WEAK]),
            r"the run after has no robust accuracy \(noise is no measure",
        ),
        (record("R" * 99, flags=[WEAK]), record("R" * 99), "the run before has no robust accuracy"),
        (record("R" * 99), audited("R" * 99), "the audit of the run says that its robust accuracy is none: INVALID"),
        (
            audited("R" * 99),
            other("R" * 99),
            "the audit of the baseline says that its robust accuracy is none: INVALID",
        ),
    ],
    ids=["unknown", "insufficient", "insufficient baseline", "invalid", "invalid baseline"],
)
def test_what_is_no_robust_accuracy_gets_no_verdict(before, after, words):
    with pytest.raises(NotEstablishedError, match=words):
        gate.judge(before, after, HALF_A_POINT)


def test_only_the_first_samples_may_stand_for_all_and_that_is_said():
    held = record("R" * 100)
    for make, said in ((record, "and so is the verdict on all 60 samples"), (other, "did not fall")):
        found = gate.judge(held, make("R" * 60), HALF_A_POINT)
        assert found.passed
        assert found.reason.endswith(f"{said} (on the first 60 of the baseline's 100 samples)")
        assert gate.judge(held, make("R" * 130), HALF_A_POINT).reason.endswith(said.replace("60", "100"))
        with pytest.raises(UsageError, match="has 60 of the baseline's 100 samples, and not its first 60"):
            gate.judge(held, make("R" * 60, first=40), HALF_A_POINT)
        with pytest.raises(
            NotEstablishedError, match="1 shared samples, 1 of them robust in the baseline, are too few"
        ):
            gate.judge(held, make("R"), HALF_A_POINT)
    assert not gate.judge(held, record("B"), HALF_A_POINT).passed  # a flip of the same weights needs no statistics


def test_too_few_samples_to_ever_fail_get_no_verdict():
    with pytest.raises(
        NotEstablishedError, match=r"0.5 points allowed at least 5 must be robust no more to fail; take more"
    ):
        gate.judge(record("R" * 4 + "B" * 90), other("R" * 4 + "B" * 90), HALF_A_POINT)
    assert gate.judge(record("R" * 5 + "B" * 90), other("R" * 5 + "B" * 90), HALF_A_POINT).passed
    with pytest.raises(NotEstablishedError, match="no drop among so few can fail"):
        gate.judge(record("RRR"), other("BBB"), HALF_A_POINT)
    assert gate.judge(record("RRR"), record("RRR"), HALF_A_POINT).passed
    reach = gate.reach(record("R" * 1000), HALF_A_POINT)
    assert reach.startswith("with 0.5 points allowed other weights fail from 10 of 1000 samples fewer on (1 points)")
    assert "too few samples for a gate on other weights: 4 of 94 are robust" in gate.reach(
        record("RRRR" + "B" * 90), HALF_A_POINT
    )


def test_the_job_of_a_baseline_is_asked_again_whole():
    held = record("RRR", quantize="8bit", defense="jpeg", draws=7, target="3")
    options = gate.request(held.job)
    assert (options["quantize"], options["defense"], options["draws"], options["target"]) == ("8bit", ("jpeg",), 7, "3")
    assert "--quantize 8bit" in gate.command(held.job, 2)
    assert "quantize" not in gate.request(record("R").job)


def test_the_command_that_shows_a_flip_again_names_all_that_decides():
    held = record("RRR", defense="jpeg", target="3", seed=4, draws=5)
    words = shlex.split(gate.command(held.job, 2))
    assert words[:2] == ["robustkit", "eval"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options == {
        "--model": "net", "--dataset": "toy", "--attack": "fgsm", "--norm": "linf", "--eps": "0.1", "--target": "3",
        "--seed": "4", "--outputs": "logits", "--device": "cpu", "--threads": "1", "--tile": "64", "--indices": "2",
        "--draws": "5", "--defense": "jpeg",
    }  # fmt: skip
    assert "--defense" not in gate.command(record("R").job, 0)
    assert gate.request(held.job)["indices"] == (0, 1, 2)


def test_a_flip_that_is_shown_again_is_one_that_got_worse_if_there_is_one():
    before = record("BRRRRRWR")
    for letters, index in (("RRRRBRWR", 4), ("RRRRRRWR", 0), ("BRRRRRRR", 6), ("WRRWRRRR", 3)):
        found = gate.judge(before, record(letters), HALF_A_POINT)
        assert found.reproduce == gate.command(record(letters).job, index)
        assert found.to_json()["reproduce"] == found.reproduce
    assert gate.judge(before, before, HALF_A_POINT).to_json()["reproduce"] is None


def test_of_a_randomised_model_the_drop_is_asked_also_of_the_same_weights():
    before, after = record("R" * 100, draws=5), record("BB" + "R" * 98, draws=5)
    found = gate.judge(before, after, HALF_A_POINT)
    assert (found.same_weights, found.passed) == (False, True)
    for other_defense in ("jpeg", ""):
        held = record("R" * 100, defense="jpeg")
        found = gate.judge(held, record("BB" + "R" * 98, defense=other_defense), HALF_A_POINT)
        assert (found.same_weights, found.passed) == (bool(other_defense), not other_defense)
    nameless = record("R" * 100, model_sha256="")
    assert not gate.judge(nameless, record("BB" + "R" * 98, model_sha256=""), HALF_A_POINT).same_weights


def test_a_drop_fails_below_one_of_twenty_and_not_at_it(monkeypatch):
    change = compare(record("R" * 100), other("B" * 9 + "R" * 91)).robust
    found = gate.judge(record("R" * 100), other("B" * 9 + "R" * 91), HALF_A_POINT)
    assert gate.dropped(change, HALF_A_POINT)
    assert not found.passed
    assert (
        found.reason == f"the robust accuracy fell by 9.00 points, more than the 0.5 points allowed (p = {found.p:.3g})"
    )
    monkeypatch.setattr(gate, "ALPHA", found.p)
    assert not gate.dropped(change, HALF_A_POINT)
    assert "is not shown" in gate.judge(record("R" * 100), other("B" * 9 + "R" * 91), HALF_A_POINT).reason
    monkeypatch.setattr(gate, "ALPHA", found.p + 1e-12)
    assert gate.dropped(change, HALF_A_POINT)


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2m", 120), (" 1.5 m ", 90), ("0.25s", 0.25)])
def test_a_time_budget_is_in_seconds_or_minutes(text, seconds):
    assert gate.parse_seconds(text) == seconds


def test_the_committed_baselines_are_of_the_bundled_weights_and_neither_zero_nor_one(monkeypatch):
    from robustkit.models.state import sha256

    for name in ("digits-cnn", "digits-cnn-at", "digits-trades"):
        held = baseline.load(ROOT / f"reports/baselines/{name}.json")
        assert held.job["model"] == name
        assert held.job["model_sha256"] == sha256(load_model(name)[0])
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
    made = inside.invoke(main, [*NEW, "--threads", str(threads), *fast])
    assert made.exit_code == 0, made.output
    assert (
        "baseline written to base.json; with 0.5 points allowed other weights fail from 6 of 128 samples" in made.stdout
    )
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
    assert "for samples like these: drop" in done.stdout
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
    late = record("BBBB" + "R" * 40, seconds=44.0)  # a second each; five that are robust are the first nine
    assert gate.prefix(late, 9.0, HALF_A_POINT)[0] == 9
    with pytest.raises(UsageError, match=r"allows 8 samples, too few .*9 take 9s"):
        gate.prefix(late, 8.5, HALF_A_POINT)
    assert gate.prefix(record("RRR", seconds=3.0), 9.0, HALF_A_POINT)[0] == 3  # all, as the weights may be the same


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
        (["--baseline", "run/run.json"], 2, "run/run.json is no baseline; make one of a run: robustkit gate"),
        (["--max-drop", "0.005"], 2, "write 0.5pp or 0.5%"),
        (["--max-drop", "-1pp"], 2, "write 0.5pp or 0.5%"),
        (["--max-drop", "100%"], 2, "write 0.5pp or 0.5%"),
        (["--time-budget", "60"], 2, "write 60s or 2m"),
        (["--time-budget", "0.001s"], 2, "allows 0 samples, too few"),
        (["--eps", "0.3", "-n", "3"], 2, "--eps, -n: the baseline decides that"),
        (["--run", "nowhere"], 2, "there is nothing of that name"),
        (["--run", "eps"], 2, "eps is 0.2 in the run but 0.1 in the baseline"),
        (["--run", "images"], 2, "3 of 3 shared samples differ in their image"),
        (["--run", "later"], 2, "no sample in common"),
        (["--run", "run", "--time-budget", "60s"], 2, "--run judges a stored run"),
        (["--run", "run", "--model", "digits-cnn"], 2, "--run judges a stored run"),
        (["--update", "--time-budget", "60s"], 2, "--update measures a whole baseline"),
        (["--run", "unknown"], 3, "2 of 3 shared samples are UNKNOWN in the run after"),
        (["--update", "--run", "unknown"], 3, "no baseline was written to base.json: 2 of 3 samples are UNKNOWN"),
        (["--run", "other"], 3, "3 shared samples, 3 of them robust in the baseline, are too few"),
        (["--run", "part"], 2, "the run has 1 of the baseline's 3 samples, and not its first 1"),
        (["--run", "audited"], 3, "the audit of the run says"),
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
            "later": ("RRR", {"first": 3}), "other": ("RRR", {"model_sha256": "bb"}), "part": ("R", {"first": 2}),
            "audited": ("RRR", {}), "unknown": ("UUR", {}), "worse": ("RRB", {})}  # fmt: skip
    for folder, (letters, more) in runs.items():
        Path(folder).mkdir()
        made = audited(letters) if folder == "audited" else record(letters, **more)
        RunFolder(Path(folder)).save(made, {})
    done = inside.invoke(main, [*GATE, *arguments])
    assert done.exit_code == code, done.output
    assert Path("base.json").read_text() == before
    if code > 1:
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
