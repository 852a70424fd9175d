"""Two records, paired by sample: what flipped, the interval, the exact p, and what is refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from robustkit.cli import main
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import baseline
from robustkit.records.compare import Change, compare
from robustkit.records.folder import RunFolder
from robustkit.report.comparison import comparison
from robustkit.stats import mcnemar_p
from tests.records import flipped, record


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def stored(letters, folder, **more):
    Path(folder).mkdir()
    RunFolder(Path(folder)).save(record(letters, **more), {})
    return folder


def test_flips_are_named_by_index_with_label_and_attack():
    found = compare(record("RRRBBWW"), record("RBWRBRB"))
    assert (found.robust.worse, found.robust.better) == ((1, 2), (3, 5))
    assert (found.clean.worse, found.clean.better) == ((2,), (5, 6))
    assert [dataclasses.astuple(flip) for flip in found.flips] == [
        (1, 1, "ROBUST", "BROKEN", "fgsm"),
        (2, 2, "ROBUST", "WRONG", ""),
        (3, 3, "BROKEN", "ROBUST", "fgsm"),
        (5, 5, "WRONG", "ROBUST", ""),
        (6, 6, "WRONG", "BROKEN", "fgsm"),
    ]
    assert float(found.robust.before) == float(found.robust.after) == pytest.approx(3 / 7)
    assert found.robust.difference == 0
    assert found.differs == ()


def test_samples_are_paired_by_index_and_those_of_one_run_only_are_counted():
    found = compare(record("RRRR"), record("BRRRRR", first=3))
    assert (found.robust.n, found.only_before, found.only_after) == (1, 3, 5)
    assert found.robust.worse == (3,)
    assert "n = 1 paired samples (3 only before, 5 only after)" in comparison(found, record("RRRR"), record("R"))


def test_the_order_of_the_samples_does_not_matter():
    before, after = record("RRBW"), record("RBBR")
    turned = {name: values[::-1] for name, values in after.samples.items()}
    assert compare(before, after) == compare(before, dataclasses.replace(after, samples=turned))


def test_flips_after_each_attack_are_counted_from_who_broke_a_sample():
    job = {"attack": "a+b", "attacks": ["a", "b"], "attack_sources": {"a": "", "b": ""}}
    found = compare(record("RBB", by=["", "a", "b"], **job), record("BBB", by=["b", "b", "a"], **job))
    assert (found.attacks["a"].worse, found.attacks["a"].better) == ((2,), (1,))
    assert (found.attacks["b"].worse, found.attacks["b"].better) == ((0,), ())
    assert compare(record("RR"), record("RR", attack="x", attacks=["x"])).attacks == {}


def test_what_else_differs_is_said():
    other = record("RR", model="other", model_sha256="bb", threads=2, versions={"torch": "2.7"})
    assert compare(record("RR"), other).differs == (
        "model net -> other",
        "threads 1 -> 2",
        "the weights",
        "torch 2.6 -> 2.7",
    )


@pytest.mark.parametrize(
    ("before", "after", "error", "words"),
    [
        (record("RR"), record("RR", first=2), UsageError, "no sample in common"),
        (record("RR"), record("RR", images="x"), UsageError, "2 of 2 shared samples differ in their image, first 0"),
        (record("RRU"), record("RRR"), NotEstablishedError, "1 of 3 shared samples are UNKNOWN in the run before"),
        (record("RRR"), record("UUR"), NotEstablishedError, "2 of 3 shared samples are UNKNOWN in the run after"),
        (record("R"), record("R", flags=[{"kind": "randomised"}]), NotEstablishedError, "randomised in the run after"),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_what_cannot_be_paired_is_refused(before, after, error, words):
    with pytest.raises(error, match=words):
        compare(before, after)


def test_another_label_of_the_same_image_is_refused():
    after = record("RR")
    after.samples["label"][1] = 7
    with pytest.raises(UsageError, match="1 of 2 shared samples differ in their label, first 1"):
        compare(record("RR"), after)


def test_mcnemar_s_p_is_that_of_the_binomial_test():
    for worse, better in [(0, 0), (5, 0), (0, 5), (1, 1), (30, 12), (12, 30), (80, 70), (400, 300)]:
        expected = binomtest(worse, worse + better, alternative="greater").pvalue if worse + better else 1.0
        assert mcnemar_p(worse, better) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("discordance", [0.05, 0.10, 0.15])
def test_the_interval_of_the_difference_covers_the_truth(discordance, drop):
    rng = np.random.default_rng(1)
    changes = [Change.of(np.arange(1000), *flipped(rng, 1000, discordance, drop)) for _ in range(2000)]
    assert np.mean([c.low <= -drop <= c.high for c in changes]) >= 0.93


def test_runs_and_baselines_compare_alike(inside):
    stored("RRRB", "a")
    stored("RBRB", "b", model_sha256="bb")
    baseline.save(record("RRRB"), Path("a.json"))
    runs = inside.invoke(main, ["compare", "a", "b"])
    assert runs.exit_code == 0, runs.output
    assert runs.stdout == inside.invoke(main, ["compare", "a.json", "b"]).stdout
    assert "1      1  ROBUST  BROKEN  fgsm" in runs.stdout
    assert "note: not the same: the weights" in runs.stdout
    robust = next(line for line in runs.stdout.splitlines() if line.startswith("robust accuracy"))
    assert robust.split()[2:7] == ["75.00", "%", "50.00", "%", "-25.00"]
    found = json.loads(inside.invoke(main, ["compare", "a.json", "b", "--json", "-"]).stdout)
    assert found["robust_accuracy"]["worse"] == [1]
    assert found["robust_accuracy"]["p"] == 0.5
    assert found["flips"] == [{"index": 1, "label": 1, "before": "ROBUST", "after": "BROKEN", "broken_by": "fgsm"}]
    assert {"schema", "n", "clean_accuracy", "attacks", "only_before", "only_after", "differs"} <= set(found)


@pytest.mark.parametrize(
    ("other", "code", "words"),
    [
        ("nowhere", 2, "there is nothing of that name"),
        ("empty", 2, "is empty; give the folder of a run"),
        ("page.json", 2, "cannot be read as JSON"),
        ("list.json", 2, "is no robustkit baseline"),
        ("a/run.json", 2, "give the folder: a"),
        ("later", 2, "no sample in common"),
        ("images", 2, "differ in their image"),
        ("unknown", 3, "2 of 3 shared samples are UNKNOWN in the run after"),
    ],
)
def test_bad_inputs_are_one_line_and_an_exit_code(inside, other, code, words):
    stored("RRR", "a")
    stored("RRR", "later", first=3)
    stored("RRR", "images", images="x")
    stored("RUU", "unknown")
    Path("empty").mkdir()
    Path("page.json").write_text("<html>")
    Path("list.json").write_text("[]")
    done = inside.invoke(main, ["compare", "a", other])
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_comparing_and_judging_stored_runs_takes_no_torch_and_no_two_seconds(tmp_path):
    letters = "RB" * 5000
    stored(letters, tmp_path / "a")
    stored("B" + letters[1:], tmp_path / "b", model_sha256="bb")
    baseline.save(record(letters), tmp_path / "a.json")
    program = (
        "import sys, time; import robustkit.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', {'torch', 'sklearn', 'scipy'} & set(sys.modules), 'SECONDS', time.process_time())"
    )
    for arguments in (
        ["compare", "a", "b"],
        ["compare", "a.json", "b"],
        ["gate", "--baseline", "a.json", "--run", "b"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert "n = 10000 paired samples" in done.stdout, done.stderr
        assert "HEAVY set()" in done.stdout
        assert float(done.stdout.split("SECONDS")[1]) < 2


@pytest.mark.parametrize("width", [40, 60])
def test_compare_and_show_fit_a_narrow_terminal_and_say_the_same(inside, width):
    long = "(apgd:loss=dlr-targeted,steps=100,restarts=5)+(square:queries=5000)"
    first, second = long.split("+")
    stored("RRRBBWW", "a", model="a-network-with-quite-a-long-name", attack=long, attacks=[first, second])
    stored("RBWRBRB", "b", model="a-network-with-quite-a-long-name", attack=long, attacks=[first, second])
    for command in (["compare", "a", "b"], ["show", "a"], ["show", "attack", "apgd"], ["show", "recipe", "fusion"]):
        wide, narrow, piped = (
            inside.invoke(main, command, env={"COLUMNS": columns}).stdout for columns in ("400", str(width), None)
        )
        assert max(map(len, narrow.splitlines())) <= width
        assert piped == wide
        said, words = "".join(narrow.split()), "".join(wide.split())
        assert said == words or command[0] == "compare", command
        assert {number for number in re.findall(r"[\d.]+\.\d\d", wide) if number not in said} == set()
    narrow = inside.invoke(main, ["compare", "a", "b"], env={"COLUMNS": str(width)}).stdout
    assert "71.43 % before, 85.71 % after" in " ".join(narrow.split())
    assert "2, label 2: ROBUST, then WRONG\n" in narrow
    assert json.loads(inside.invoke(main, ["compare", "a", "b", "--json", "-"], env={"COLUMNS": "40"}).stdout)


def test_a_sweep_is_compared_in_a_narrow_terminal():
    run = str(Path(__file__).parent / "fixtures/sweep-1")
    shown = CliRunner().invoke(main, ["compare", run, run], env={"COLUMNS": "40"})
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 40
    assert shown.stdout.count("robust accuracy:") == 2
