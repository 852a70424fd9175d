"""A verdict in the record: kept, read, and printed wherever a robust accuracy is; and the command that makes one."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from robustkit import events
from robustkit.audit import Audit, Check, Series
from robustkit.cli import main
from robustkit.records import baseline, sweep
from robustkit.records.compare import compare
from robustkit.records.findings import lacking, stored
from robustkit.records.folder import RunFolder, load_run
from robustkit.records.gate import judge
from robustkit.report import files
from robustkit.report.comparison import comparison, verdict
from robustkit.report.live import Progress
from robustkit.report.text import markdown
from robustkit.study.results import Facts
from robustkit.study.tables import Entry
from tests.records import record

SERIES = Series([0.1, 0.2, 0.4], [0.6, 0.55, 0.5], "eps", "robust accuracy under APGD")
DOUBT = Audit(
    (
        Check("sample", "fine", "looked at 4 samples (0–3)"),
        Check("eps-sweep", "suspect", "50.0 % stand at eps 0.4: <blocked> | masked", 0.5, 0.05, SERIES),
    )
)
SOUND = Audit(DOUBT.checks[:1])
FEW = Audit((*SOUND.checks, Check("sample-size", "undecided", "too few to tell; 93 would decide", 0.27, 0.2)))
REASON = "50.0 % stand at eps 0.4"


def audited(letters="RRBW", found=DOUBT, **job):
    return dataclasses.replace(record(letters, **job), audit=found.to_json())


# Every place that shows a robust accuracy

SHOWN = {
    "summary": lambda r: r.summary(),
    "report.md": markdown,
    "_repr_html_": lambda r: r._repr_html_(),
    "compare, before": lambda r: comparison(compare(r, record("RRBW")), r, record("RRBW")),
    "compare, after": lambda r: comparison(compare(record("RRBW"), r), record("RRBW"), r),
    "gate": lambda r: verdict(judge(record("RRBW"), r, Fraction(0)), record("RRBW"), r),
    "sweep": lambda r: sweep.Sweep(("0.1",), (r,)).summary(),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_a_suspect_number_is_never_shown_without_its_warning(show):
    warned, sound, plain = show(audited()), show(audited(found=SOUND)), show(record("RRBW"))
    assert "SUSPECT" in warned
    assert REASON in warned
    assert "SUSPECT" not in sound + plain


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_too_few_samples_are_said_beside_the_number_in_another_word(show):
    shown = show(audited(found=FEW))
    assert "UNDECIDED" in shown
    assert "93 would decide" in shown
    assert "SUSPECT" not in shown
    assert "do not rely" not in shown


def test_too_few_samples_fail_no_gate_and_doubt_no_cell_of_a_study():
    r = audited(found=FEW)
    assert judge(record("RRBW"), r, Fraction(0)).passed
    assert judge(r, record("RRBW"), Fraction(0)).passed
    assert r.to_json()["summary"]["verdict"] == "undecided"
    for found, doubted in ((FEW, False), (DOUBT, True)):
        assert Entry(None, None, (), "", None, (Facts.of(audited(found=found)),)).doubted == doubted


def test_what_an_older_version_called_suspect_for_its_size_stays_what_it_was():
    old = Audit((*SOUND.checks, Check("sample-size", "suspect", "too few to tell; evaluate more", 0.27, 0.2)))
    assert stored(old.to_json())["verdict"] == "suspect"


def test_a_page_gives_the_reasons_and_escapes_them():
    pytest.importorskip("jinja2")
    doubted, plain = (files.of_run(r, ["html"])["report.html"] for r in (audited(), record("RRBW")))
    assert REASON in doubted
    assert "<blocked>" not in doubted
    assert REASON not in plain


def test_a_page_says_undecided_and_a_sweep_s_page_warns_of_the_worst():
    pytest.importorskip("jinja2")
    page = files.of_run(audited(found=FEW), ["html"])["report.html"]
    assert 'class="verdict undecided"' in page
    assert "Too little evidence" in page
    assert "Do not rely" not in page
    both = sweep.Sweep(("0.1", "0.2"), (audited(found=FEW), audited(eps=0.2)))
    assert 'class="verdict suspect"' in files.of_sweep(both, ["html"])["report.html"]
    both = sweep.Sweep(("0.1", "0.2"), (audited(found=FEW), audited(found=SOUND, eps=0.2)))
    assert 'class="verdict undecided"' in files.of_sweep(both, ["html"])["report.html"]


def test_the_verdict_stands_in_tables_too():
    for kind in ("tex", "csv"):
        (doubted,), (plain,) = (files.of_run(r, [kind]).values() for r in (audited(), record("RRBW")))
        assert "suspect" in doubted
        assert "suspect" not in plain


def test_the_verdict_is_data_too():
    r = audited()
    assert r.verdict == "suspect"
    assert r.to_json()["summary"]["verdict"] == "suspect"
    assert r.to_json()["audit"] == DOUBT.to_json()
    assert compare(record("RRBW"), r).to_json()["verdicts"] == ["not audited", "suspect"]
    assert sweep.Sweep(("0.1",), (r,)).to_json()["table"][0]["verdict"] == "suspect"
    assert audited(found=SOUND).warning == ""


def test_a_report_escapes_what_a_reason_says():
    assert "<blocked>" not in markdown(audited())
    assert "<blocked>" not in audited()._repr_html_()


def test_a_record_without_an_audit_is_not_audited():
    r = record("RRBW")
    assert r.verdict == "not audited"
    assert r.warning == ""
    assert "audit" not in r.to_json()
    assert "not audited" in r.summary()
    assert "Not audited" in markdown(r)


@pytest.mark.parametrize("found", [DOUBT, None], ids=["audited", "old"])
def test_the_audit_survives_the_folder_and_the_baseline(tmp_path, found):
    r = record("RRBW", images="x") if found is None else audited(found=found, images="x")
    folder = RunFolder(tmp_path / "run")
    folder.open({**r.job, "id": "0"}, {}, fresh=False)
    folder.save(r, {})
    baseline.save(r, tmp_path / "base.json")
    for read in (load_run(tmp_path / "run"), baseline.load(tmp_path / "base.json")):
        assert read.audit == r.audit
        assert read.verdict == r.verdict


def test_the_live_table_says_it_at_once(capsys):
    progress = Progress()
    progress.console = Console(file=sys.stdout, force_terminal=False, width=200)
    progress(events.Auditing(128, 1000, 500, 61.0))
    progress(events.Checked("noise", "fine", "all is well"))
    progress(events.Checked("sample-size", "undecided", "too few to tell"))
    progress(events.Checked("queries", "suspect", "a query attack breaks more"))
    said = capsys.readouterr().out
    assert "audit of 128 samples" in said
    assert "1,000 forwards" in said
    assert "SUSPECT: a query attack breaks more" in said
    assert "UNDECIDED: too few to tell" in said
    assert "all is well" not in said


# The command


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return CliRunner()


@pytest.fixture
def stored_run(tmp_path):
    def store(found):
        r = record("RRBW") if found is None else audited(found=found)
        folder = RunFolder(tmp_path / "run")
        folder.open({**r.job, "id": "0"}, {}, fresh=False)
        folder.save(r, {})
        return str(tmp_path / "run")

    return store


def test_a_model_is_audited_shown_and_written(inside):
    done = inside.invoke(main, ["audit", "--model", "digits-cnn", "--eps", "0.1", "-n", "12", "--json", "a.json"])
    assert done.exit_code == 0, done.output
    assert "verdict: valid" in done.stdout
    assert "if nothing breaks" in done.stderr
    data = json.loads(Path("a.json").read_text())
    assert data["model"] == "digits-cnn"
    assert data["audit"]["verdict"] == "valid"
    assert {"gradient-flow", "eps-sweep", "queries"} <= {check["name"] for check in data["audit"]["checks"]}


def test_eval_audits_and_a_second_call_adds_what_the_first_left_out(inside):
    command = ["eval", "--model", "digits-cnn", "--attack", "fgsm", "--eps", "0.1", "-n", "12", "--quiet", "--out", "r"]
    assert "not audited" in inside.invoke(main, command).stdout
    again = inside.invoke(main, [*command, "--audit"])
    assert again.exit_code == 0, again.output
    assert "SUSPECT" in again.stdout  # one step, and twelve samples
    assert "SUSPECT" in Path("r/report.md").read_text()
    assert load_run("r").verdict == "suspect"
    assert lacking(load_run("r").audit) == []  # what boards ask of an audit is what it gives
    assert inside.invoke(main, command).stdout == again.stdout  # kept, though not asked for again
    assert inside.invoke(main, ["audit", "--run", "r"]).exit_code == 3


@pytest.mark.parametrize(
    ("found", "code"), [(SOUND, 0), (DOUBT, 3), (None, 2), (FEW, 3)], ids=["valid", "suspect", "none", "undecided"]
)
def test_the_exit_code_is_the_verdict(inside, stored_run, found, code):
    done = inside.invoke(main, ["audit", "--run", stored_run(found)])
    assert done.exit_code == code, done.output
    if code == 2:
        assert "eval --audit" in done.stderr


def test_json_on_stdout_is_one_object(inside, stored_run):
    done = inside.invoke(main, ["audit", "--run", stored_run(DOUBT), "--json", "-"])
    assert json.loads(done.stdout)["audit"] == DOUBT.to_json()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model", "digits-cnn", "--run", "r"], "--model"),
        (["--run", "r", "--eps", "0.1"], "leave out eps"),
        (["--model", "digits-cnnn"], "did you mean digits-cnn"),
        (["--model", "digits-cnn", "--eps", "8"], "8/255"),
        (["--model", "digits-cnn", "-n", "100000"], "samples"),
        (["--run", "nowhere"], "no run folder"),
    ],
    ids=lambda a: " ".join(a) or "nothing" if isinstance(a, list) else a,
)
def test_bad_usage_is_one_line_and_exit_2(inside, arguments, words):
    done = inside.invoke(main, ["audit", *arguments])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_has_an_example(inside):
    said = inside.invoke(main, ["audit", "--help"]).stdout
    assert "robustkit audit --model" in said
    assert "Exit codes: 0 valid, 2 bad usage, 3 suspect, invalid or undecided" in said


def test_plots_come_from_what_is_stored_without_torch(tmp_path, stored_run):
    pytest.importorskip("matplotlib")
    program = (
        "import sys; from robustkit.cli import main\n"
        "try: main(['audit', '--run', sys.argv[1], '--plots', 'plots'])\n"
        "except SystemExit as end: print('EXIT', end.code, 'TORCH', 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, stored_run(DOUBT)], cwd=tmp_path, capture_output=True, text=True
    )
    assert "EXIT 3 TORCH False" in done.stdout, done.stderr
    pdf, png = (tmp_path / "plots" / f"eps-sweep.{kind}" for kind in ("pdf", "png"))
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["eps-sweep.pdf", "eps-sweep.png"]


def test_plots_of_one_audit_are_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    from robustkit.report.plots.audit import draw

    one, two = (draw(DOUBT, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


@pytest.mark.parametrize("checks", [(), (Check("steps", "skipped", "no gradient"),)], ids=["none", "skipped"])
def test_an_audit_without_any_evidence_is_no_valid_one(checks):
    found = Audit(checks)
    assert found.verdict == "undecided"
    assert found.reasons == ("no check could be made",)
    assert Audit.from_json(found.to_json()).verdict == "undecided"
