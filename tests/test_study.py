"""`robustkit run`: the product of a study, killed and continued, with cells that fail, and what it says in the end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import robustkit
from robustkit.cli import main
from robustkit.records.compare import compare
from robustkit.records.folder import load_run
from robustkit.stats import mcnemar_p
from robustkit.study import grammar, report, results
from robustkit.study.plan import Cell
from robustkit.study.run import run
from robustkit.study.tables import ALL, Column, Subject, Tables, holm, marks
from tests.test_resume import assert_same

WHOLE = """
title = "Three | models"
provenance = "a test"
dataset = "digits"
n = 8
tile = 8
doctor = false
threads = 1
eps = ["0.05", 0.1, 0.2, "0.3"]
models = { plain = "digits-cnn", at = "digits-cnn-at", both = "ensemble/(digits-cnn)+(digits-cnn-at)" }
defenses = { none = "none", bits = "bit-depth:bits=3" }
attacks = { fgsm = "fgsm", pgd = "pgd:steps=2", apgd = "apgd:steps=2" }
"""
PART = (
    WHOLE.replace(', both = "ensemble/(digits-cnn)+(digits-cnn-at)"', "")
    .replace('none = "none", ', "")
    .replace(', apgd = "apgd:steps=2"', "")
    .replace(', 0.2, "0.3"', "")
)
SMALL = """
dataset = "digits"
n = 30
doctor = false
threads = 1
eps = "0.2"
models = ["digits-cnn", "digits-cnn-at"]
attacks = ["fgsm"]
"""


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, code=0):
        done = CliRunner().invoke(main, [str(a) for a in arguments])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done

    return invoke


def written(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted((folder / "runs").rglob("*")) if path.is_file()}


def start(folder):
    command = [sys.executable, "-m", "robustkit", "run", "study.toml", "--out", folder]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(folder, runs, process):
    while len(list(Path(folder).glob("runs/*/run.json"))) < runs and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "cells"),
    [pytest.param(WHOLE, 72, id="whole", marks=pytest.mark.slow), pytest.param(PART, 8, id="part")],
)
def test_killed_half_way_a_study_continues_to_the_same_records_and_then_computes_nothing(inside, text, cells):
    Path("study.toml").write_text(text)
    killed = start("killed")
    wait_for("killed", cells // 2, killed)
    assert killed.poll() is None, "it must be killed at work"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    kept = {name: when for name, when in written(Path("killed")).items() if name.endswith("run.json")}
    assert cells // 2 <= len(kept) < cells
    assert not Path("killed/report.md").exists()

    study, events = grammar.read(Path("study.toml")), []
    done = run(study, Path("killed"), on_event=events.append)
    computed = [event.number for event in events if type(event).__name__ == "CellDone" and event.computed]
    assert computed == list(range(len(kept) + 1, cells + 1))
    assert written(Path("killed")).items() >= kept.items()  # what was finished is as it was
    assert done.established
    run(study, Path("calm"))
    names = sorted(path.name for path in Path("calm/runs").iterdir())
    assert names == sorted(path.name for path in Path("killed/runs").iterdir())
    assert len(names) == cells
    for name in names:
        assert_same(Path("calm/runs") / name, Path("killed/runs") / name)

    before, events = written(Path("killed")), []
    run(study, Path("killed"), on_event=events.append)
    assert written(Path("killed")) == before
    done = [event for event in events if type(event).__name__ == "CellDone"]
    assert len(done) == cells
    assert not any(event.computed for event in done)
    within = {type(event.event).__name__ for event in events if type(event).__name__ == "Within"}
    assert within == {"Started", "Finished"}

    attacks = 4 if cells == 72 else 3  # all of them together too
    told = Path("killed/report.md").read_text()
    assert told.startswith("# Three \\| models\n")
    assert "Settings: a test" in told
    assert told.count("### ") == attacks
    assert "| at + bits |" in told
    tables = Path("killed/tables.tex").read_text()
    assert tables.count(r"\toprule") == tables.count(r"\bottomrule") == attacks
    assert r"\textbf{" in tables
    assert Path("killed/curve-linf-all-attacks.png").stat().st_size > 1000
    assert Path("killed/curve-linf-pgd.pdf").read_bytes()[:4] == b"%PDF"
    for name in ("report.md", "tables.tex", "curve-linf-pgd.png"):  # all that has no seconds in it is the same
        assert Path("calm", name).read_bytes() == Path("killed", name).read_bytes(), name


def test_the_numbers_are_those_of_ordinary_evaluations_and_the_marks_those_of_the_paired_test(inside):
    text = SMALL.replace('"0.2"', '["0.1", "0.2"]').replace('["fgsm"]', '["fgsm", "pgd:steps=3"]')
    Path("study.toml").write_text(text + "seeds = [0, 1]\n")
    inside("run", "study.toml", "--out", "out", "--quiet")
    found = results.load(Path("out"))
    tables = Tables(found)
    assert len(found.facts) == 2 * 2 * 2 * 2
    at = [robustkit.evaluate(m, "digits", "pgd:steps=3", eps="0.2", n=30, seed=s, doctor=False)
          for m in ("digits-cnn", "digits-cnn-at") for s in (0, 1)]  # fmt: skip
    plain = [a.samples["status"] == "ROBUST" for a in at]
    column = Column("linf", "0.2", "pgd:steps=3")
    entries = [tables.entries[Subject(name, "none"), column] for name in ("digits-cnn", "digits-cnn-at")]
    assert [entry.by_seed for entry in entries] == [
        tuple(float(p.mean()) for p in pair) for pair in (plain[:2], plain[2:])
    ]
    both = [plain[0] & plain[1], plain[2] & plain[3]]  # robust whatever the seed
    assert [(entry.robust.k, entry.robust.n) for entry in entries] == [(int(b.sum()), 30) for b in both]
    assert entries[1].mark.best
    assert not entries[0].mark.best
    worse, better = int((both[1] & ~both[0]).sum()), int((both[0] & ~both[1]).sum())
    assert entries[0].mark.p == min(1.0, 2 * mcnemar_p(worse, better)) < 0.05
    # All attacks together: what any of them broke is broken.
    every = tables.entries[Subject("digits-cnn-at", "none"), Column("linf", "0.2", ALL)]
    fgsm = robustkit.evaluate("digits-cnn-at", "digits", "fgsm", eps="0.2", n=30, doctor=False)
    assert every.robust.k == int((both[1] & (fgsm.samples["status"] == "ROBUST")).sum())

    rows = list(csv.DictReader(Path("out/tables.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * (2 * 3 + 1)  # models × eps × ((attack: all seeds, 0, 1) × attacks + all attacks)
    (row,) = [r for r in rows if (r["model"], r["eps"], r["attack"], r["seed"]) ==
              ("digits-cnn-at", "0.2", "pgd:steps=3", "1")]  # fmt: skip
    assert float(row["robust"]) == float(at[3].robust_accuracy)
    assert float(row["robust_low"]) == at[3].robust_accuracy.low


def test_one_pair_of_runs_is_marked_as_compare_says():
    before, after = (robustkit.evaluate(m, "digits", "pgd:steps=3", eps="0.1", n=60, doctor=False)
                     for m in ("digits-cnn-at", "digits-cnn"))  # fmt: skip
    good = {m: r.samples["status"] == "ROBUST" for m, r in (("at", before), ("plain", after))}
    assert marks(good)["plain"].p == min(1.0, 2 * compare(before, after).robust.p)
    assert marks(good)["at"] == (True, 1.0)


def test_holm_corrects_step_by_step_and_ties_share_the_first_place():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert holm({}) == {}
    ones, half = np.ones(20, bool), np.arange(20) < 10
    found = marks({"a": ones, "b": ones.copy(), "c": half})
    assert found["a"].best
    assert found["b"].best
    assert found["c"] == (False, 2 * 0.5**10)
    assert not found["c"].as_good
    assert marks({"a": ones}) == {}


def test_a_cell_that_fails_or_is_undecided_is_listed_and_the_others_go_on(inside):
    Path("bad.py").write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass(frozen=True)\nclass Nan:\n"
        "    norms: ClassVar = frozenset({'linf'})\n    goal: ClassVar = 'bounded'\n"
        "    access: ClassVar = 'white-box'\n"
        "    def cost(self, classes): return 1, 1\n"
        "    def __call__(self, case): return torch.full_like(case.x, torch.nan)\n"
        "def crash() -> torch.nn.Module: raise RuntimeError('no <weights> here')\n"
    )
    text = SMALL.replace('["fgsm"]', '{ fgsm = "fgsm", nan = "python/bad.Nan", pgd = "pgd:steps=2" }')
    text = text.replace('"digits-cnn-at"]', '"python/bad.crash"]').replace(
        'eps = "0.2"', "eps = { linf = 0.05, l1 = 2 }"
    )
    Path("study.toml").write_text(text + 'defenses = ["none", "crossmax"]\n')
    done = inside("run", "study.toml", "--out", "out", code=3)
    assert "FAILED" in done.stderr
    failed = {str(each.cell): each.failed for each in results.load(Path("out")).outcomes if each.failed}
    assert "does not work in l1" in failed["digits-cnn · fgsm · l1 2 · seed 0"]
    assert "UNKNOWN" in failed["digits-cnn · nan · linf 0.05 · seed 0"]
    assert "RuntimeError: no <weights> here" in failed["python/bad.crash · fgsm · linf 0.05 · seed 0"]
    assert "members" in failed["digits-cnn behind crossmax · fgsm · linf 0.05 · seed 0"]
    assert len(failed) == 24 - 3  # fgsm and pgd in linf and pgd in l1 are fine on the plain network
    told = Path("out/report.md").read_text()
    assert "21 of 24 cells have no number" in told
    assert "no &lt;weights&gt; here" in told
    assert "<weights>" not in told
    tables = Tables(results.load(Path("out")))
    entry = tables.entries[Subject("digits-cnn", "none"), Column("linf", "0.05", "nan")]
    assert entry.robust is None
    assert "UNKNOWN" in entry.why
    # What one attack could not decide, none of all attacks together has decided, unless another broke it.
    assert tables.entries[Subject("digits-cnn", "none"), Column("linf", "0.05", ALL)].robust is None
    data = json.loads(inside("run", "study.toml", "--out", "out", "--json", "-", "--quiet", code=3).stdout)
    assert sum(each["failed"] is not None for each in data["outcomes"]) == 21


def test_a_number_that_the_audit_doubts_says_so_and_does_not_compete(inside):
    Path("study.toml").write_text(
        SMALL.replace('"digits-cnn-at"]', '"digits-cnn-at", "ensemble/(digits-cnn)+(digits-cnn-at)"]')
    )
    inside("run", "study.toml", "--out", "out", "--quiet")
    found = results.load(Path("out"))
    at = next(cell for cell in found.facts if cell.model == "digits-cnn-at")
    doubted = replace(found.facts[at], verdict="suspect", warning="SUSPECT, do not rely on it: <no gradient>")
    found = replace(found, facts={**found.facts, at: doubted})
    tables = Tables(found)
    column = Column("linf", "0.2", "fgsm")
    entries = {subject.model: tables.entries[subject, column] for subject in tables.subjects}
    assert float(entries["digits-cnn-at"].robust) == max(float(entry.robust) for entry in entries.values())
    assert entries["digits-cnn-at"].mark is None
    assert entries["ensemble/(digits-cnn)+(digits-cnn-at)"].mark.best
    text = report.markdown(tables, [])
    assert "] ‡ |" in text
    assert "SUSPECT, do not rely on it: &lt;no gradient&gt;" in text
    assert r"$^{\ddagger}$" in report.latex(tables)
    assert "‡ the audit doubts it: digits-cnn-at" in report.summary(found)
    assert "suspect" in report.csv_text(tables)
    # Nor does a number on other images.
    plain = next(cell for cell in found.facts if cell.model == "digits-cnn")
    other = replace(found.facts[plain], job={**found.facts[plain].job, "data_sha256": "another"})
    entries = Tables(replace(found, facts={**found.facts, plain: other})).entries
    assert not any(entry.mark for entry in entries.values())


def test_carry_is_that_of_a_sweep(inside):
    Path("study.toml").write_text(SMALL.replace('"0.2"', '["0.1", "0.2"]') + "carry = true\n")
    inside("run", "study.toml", "--out", "out", "--quiet")
    (sweep,) = [r for r in map(load_run, Path("out/runs").iterdir())
                if r.job["model"] == "digits-cnn" and r.job["eps"] == 0.2]  # fmt: skip
    assert sweep.carried > 0
    before = written(Path("out"))
    inside("run", "study.toml", "--out", "out", "--quiet")
    assert written(Path("out")) == before


def test_transfer_cells_are_transfer_runs_with_the_best_attack_marked(inside):
    Path("study.toml").write_text(
        'dataset = "digits"\nn = 40\neps = "0.1"\nthreads = 1\n[transfer]\n'
        'surrogate = { plain = "digits-cnn", at = "digits-cnn-at" }\n'
        'surrogates = { one = ["plain"], two = ["plain", "at"] }\n'
        'victim = { at = "digits-cnn-at" }\nattack = { fgsm = "fgsm", mi = "mi:steps=3" }\n'
    )
    inside("run", "study.toml", "--out", "out", "--quiet")
    ((cell, record),) = results.load(Path("out")).transfers.items()
    assert str(cell) == "transfer · linf 0.1 · seed 0"
    direct = robustkit.transfer(
        {"plain": "digits-cnn"},
        {"at": "digits-cnn-at"},
        {"fgsm": "fgsm", "mi": "mi:steps=3"},
        "digits",
        n=40,
        eps="0.1",
    )
    rates = {attack: direct.cells["plain", attack, "at"].of_all for attack in ("fgsm", "mi")}
    assert {attack: record.cells["one", attack, "at"].of_all for attack in rates} == rates
    text = Path("out/report.md").read_text()
    best = max(rates.values(), key=float)
    assert f"**{100 * float(best):.1f}**" in text
    assert text.count("\\* |") >= 2  # white-box, and so not among those compared
    assert r"\toprule" in Path("out/tables.tex").read_text()
    before = written(Path("out"))
    inside("run", "study.toml", "--out", "out", "--quiet")
    assert {k for k, v in written(Path("out")).items() if before[k] != v and "journal" in k} == set()


def test_ctrl_c_exits_130_and_keeps_what_was_done(inside):
    Path("study.toml").write_text(SMALL.replace('["fgsm"]', '["fgsm", "square:queries=100000"]'))
    process = start("out")
    wait_for("out", 1, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "interrupted; what was computed is kept in out; run the same command" in err
    assert "Traceback" not in err
    assert list(Path("out").glob("runs/*/run.json"))
    assert "NOT FINISHED: 1 runs of " in inside("show", "out").stdout  # and what they found stands above


def test_show_tells_the_tables_again_without_torch(inside):
    Path("study.toml").write_text(SMALL)
    ran = inside("run", "study.toml", "--out", "out", "--quiet").stdout
    program = (
        "import sys\nfrom robustkit.cli import main\n"
        "try: main(['show', 'out'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == ran.replace("\nin out", "") + "False\n"


def test_a_dry_run_tells_cells_and_costs_and_writes_nothing(inside):
    Path("study.toml").write_text(
        SMALL.replace('["fgsm"]', '["fgsm", "pgd:steps=7"]').replace('eps = "0.2"', 'eps = { linf = "0.2", l1 = 2.0 }')
        + 'defenses = ["none", "crossmax"]\n'
    )
    shown = json.loads(inside("run", "study.toml", "--dry-run", "--json", "-").stdout)["cells"]
    assert [p.name for p in Path().iterdir()] == ["study.toml"]
    assert len(shown) == 16
    by_cell = {(c["defense"], c["attack"], c["norm"]): c for c in shown if c["model"] == "digits-cnn"}
    assert by_cell["none", "fgsm", "linf"]["backwards"] == 30
    assert by_cell["none", "pgd:steps=7", "linf"]["backwards"] == 210
    assert by_cell["none", "pgd:steps=7", "linf"]["seconds"] > 0
    assert "cannot run" in by_cell["none", "fgsm", "l1"]["why"]
    assert "members" in by_cell["crossmax", "pgd:steps=7", "linf"]["why"]
    assert "in all" in inside("run", "study.toml", "--dry-run").stdout


def test_another_folder_is_refused_and_an_enlarged_study_keeps_its_cells(inside):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("mine")
    Path("study.toml").write_text(SMALL)
    assert "holds no study" in inside("run", "study.toml", "--out", "mine", code=2).stderr
    inside("run", "study.toml", "--out", "out", "--quiet")
    before = written(Path("out"))
    Path("study.toml").write_text(SMALL.replace('["fgsm"]', '["fgsm", "pgd:steps=1"]'))
    inside("run", "study.toml", "--out", "out", "--quiet")
    after = written(Path("out"))
    assert {name: after[name] for name in before} == before
    assert len(results.load(Path("out")).facts) == 4


def test_another_study_of_the_same_file_name_does_not_replace_a_report_without_a_word(inside):
    for name, models in (("a", '["digits-cnn"]'), ("b", '["digits-cnn-at"]')):
        Path(name).mkdir()
        Path(name, "study.toml").write_text(SMALL.replace('["digits-cnn", "digits-cnn-at"]', models))
    folder = Path("robustkit-runs/study-study")
    inside("run", "a/study.toml", "--quiet")
    before = (folder / "report.md").read_text()
    told = inside("run", "b/study.toml", "--quiet", code=2).stderr
    assert f"{folder} holds another study, 'study', which shares nothing with this one; choose another --out" in told
    assert (folder / "report.md").read_text() == before
    # An earlier form of the study is replaced, and what is lost is said; what it keeps goes without saying.
    assert "note:" not in inside("run", "a/study.toml").stderr
    told = " ".join(inside("run", "a/study.toml", "-n", "5").stderr.split())
    assert f"note: 1 of 1 numbers in the report in {folder} are not in this study and will be gone" in told
    inside("run", "b/study.toml", "--fresh", "--quiet")
    assert "digits-cnn-at" in (folder / "report.md").read_text()
    (folder / "study.json").write_text((folder / "study.json").read_text().replace("fgsm", "pgd"))
    assert "study.json is not as it was written" in inside("show", folder, code=2).stderr


def test_another_run_in_a_study_s_folder_is_refused(inside):
    Path("study.toml").write_text(SMALL)
    inside("run", "study.toml", "--out", "out", "--quiet")
    one, other = sorted(Path("out/runs").iterdir())
    shutil.rmtree(one)
    shutil.copytree(other, one)
    assert "holds another run than the study put there" in inside("show", "out", code=2).stderr


BAD = [
    ("models = 3", "must be text that is not empty, not 3"),
    ("modles = ['digits-cnn']", "did you mean models"),
    ("models = ['digits-cnnn']", "did you mean digits-cnn"),
    ("models = ['tim/resnet18']", "did you mean timm"),
    ("models = []", "models must name at least one"),
    ("models = { a = 'digits-cnn', b = 7 }", "models.b must be text"),
    ("models = ['./nothing.safetensors:arch=digits-cnn']", "there is no file nothing.safetensors"),
    ("models = ['python/nothing.make']", "nothing"),
    ("models = ['ensemble/(digits-cnn)+(digits-cnx)']", "did you mean digits-cnn"),
    ("attacks = ['pgdd']", "attacks.pgdd: no attack called 'pgdd'; did you mean"),
    ("attacks = ['pgd:stepz=3']", "did you mean step or steps"),
    ("attacks = { a = 'pgd:steps=three' }", "attacks.a: pgd: steps must be a whole number"),
    ("attacks = {}", "attacks must name at least one"),
    ("defenses = ['jpg']", "did you mean jpeg"),
    ("defenses = { plain = 'none' }", "the label of no defense"),
    ("defenses = { x = ['none', 'jpeg'] }", "must be 'none', a defense, or a list"),
    ("dataset = 'digit'", "did you mean digits"),
    ("n = 'ten'", "n must be a whole number of at least 1, not 'ten'"),
    ("n = true", "n must be a whole number"),
    ("n = 100000", "digits has 355 samples"),
    ("eps = []", "eps of linf must be radii that grow"),
    ("eps = ['0.2', '0.1']", "must be radii that grow"),
    ("eps = 8", "8/255"),
    ("eps = { linff = 0.1 }", "did you mean linf"),
    ("eps = {}", "eps is empty"),
    ("seeds = [1, 1]", "none twice"),
    ("seeds = []", "at least one seed"),
    ("norm = 'l3'", "did you mean"),
    ("norm = 'l2'\neps = { linf = 0.1 }", "leave it out"),
    ("outputs = 'logit'", "did you mean logits"),
    ("carry = 1", "carry must be true or false"),
    ("target = 'rand'", "least-likely or random"),
    ("skip = [{ model = 'digit' }]", "did you mean digits-cnn"),
    ("skip = [{ modell = 'digits-cnn' }]", "did you mean model"),
    ("skip = [{ model = 'digits-cnn' }, { attack = 'fgsm' }]", "leaves no cell"),
    ("n = 3\nindices = '0-2'", "n or indices, not both"),
    ("transfer = { surrogate = ['digits-cnn'] }", "transfer.victim is needed"),
    ("transfer = { surrogats = ['digits-cnn'] }", "did you mean surrogate or surrogates"),
    ("this is no TOML", "cannot be read as TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line for line, _ in BAD])
def test_what_a_study_cannot_say_is_one_line_exit_2_and_nothing_written(inside, line, words):
    keys = {part.partition(" =")[0] for part in line.splitlines()}
    rest = [each for each in SMALL.replace("n = 30\n", "").splitlines() if each.partition(" =")[0] not in keys]
    Path("study.toml").write_text("\n".join([*rest, line]))
    done = inside("run", "study.toml", code=2)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert [p.name for p in Path().iterdir()] == ["study.toml"]


def test_the_axes_make_their_product_less_what_is_skipped():
    data = {
        "dataset": "digits", "models": {"a": "digits-cnn", "b": "digits-cnn-at"}, "attacks": ["fgsm", "pgd"],
        "defenses": {"none": "none", "two": ["jpeg", "median"]}, "eps": {"linf": ["1/255", 0.5], "l2": [1]},
        "seeds": [3, 4], "skip": [{"model": "a", "defense": "two"}, {"attack": "pgd", "norm": "l2"}],
    }  # fmt: skip
    study = grammar.parse(data, "x")
    cells = study.cells()
    assert len(set(cells)) == len(cells) == (2 + 1) * (2 * 3 * 2 - 1 * 1 * 2) // 1 - 0
    assert study.defenses == {"none": (), "two": ("jpeg", "median")}
    assert Cell("a", "none", "fgsm", "l2", "1", 3) in cells
    assert not [c for c in cells if c.model == "a" and c.defense == "two"]
    chains = [c.chain for c in cells]
    assert all(chains[i] == chains[i - 1] or chains[i] not in chains[:i] for i in range(1, len(chains)))
    assert grammar.parse(json.loads(json.dumps(study.source)), "x") == study
