"""The pages, texts and tables of every kind of record, and `report`, `show` and `runs`, which take each."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit.cli import main
from robustkit.records import bounds, certificate, corruption, findings, kinds, listing
from robustkit.records.about import About
from robustkit.records.folder import RunFolder, load_run
from robustkit.records.schema import CERTIFIED, CORRUPTIONS
from robustkit.records.transfer_folder import TransferFolder, load_transfer
from robustkit.report import files
from robustkit.study import report
from robustkit.study.tables import Tables
from tests import kinds as made
from tests import records

MAKERS = {"run": files.of_run, "sweep": files.of_sweep, "transfer": files.of_transfer, "audit": files.of_audit,
          "corruptions": files.of_corruptions, "certificate": files.of_certificate,
          "bounds": files.of_bounds}  # fmt: skip
VOID = {"meta", "link", "rect", "path", "line", "circle", "polyline", "polygon", "img", "br"}


class Page(HTMLParser):
    """Checks that every element is closed, and gathers what the page asks for from elsewhere, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.asked, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.asked += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def pages():
    for kind, make in made.RECORDS.items():
        yield kind, MAKERS[kind](make())["report.html"]
    yield "study", made.study_page()


@pytest.mark.parametrize(("kind", "text"), list(pages()), ids=[*made.RECORDS, "study"])
def test_a_page_is_whole_asks_for_nothing_and_has_its_date_and_eps(kind, text):
    page = Page(text)
    assert all(value.startswith("data:") or "report.html" in value for value in page.asked)
    words = " ".join(page.text)
    assert "2026-01-31 12:00 UTC" in words
    assert "0.0313" not in words
    if kind not in ("corruptions", "certificate"):
        assert "8/255" in words


def test_a_run_s_page_and_tables_call_classes_by_name():
    texts = files.of_run(made.run())
    page = Page(texts["report.html"])
    assert {"plane", "truck"} <= set(page.text)
    rows = list(csv.DictReader(io.StringIO(texts["tables.csv"])))
    assert [row["name"] for row in rows if row["table"] == "robust, by class"] == list(made.NAMES)
    assert "truck" in texts["tables.tex"]
    assert "2026-01-31 12:00 UTC" in texts["report.md"]


def test_what_a_page_says_is_what_the_record_says():
    transfer = made.transfer()
    words = Page(files.of_transfer(transfer)["report.html"]).text
    for cell in transfer.cells.values():
        assert f"{100 * float(cell.of_all):.1f}" in words
        assert f"{100 * float(cell.of_correct):.1f}" in words
    corruptions = made.corruptions()
    words = Page(files.of_corruptions(corruptions)["report.html"]).text
    for cell in corruptions.cells:
        assert f"{100 * float(corruptions.accuracy(cell)):.1f}" in words
    certified = made.certificate()
    words = " ".join(Page(files.of_certificate(certified)["report.html"]).text)
    for radius in certified.radii:
        assert f"{100 * float(certified.accuracy(radius)):.2f} %" in words
    audit = made.audit()
    words = Page(files.of_audit(audit)["report.html"]).text
    assert all(check.text in words for check in audit.audit.checks)
    study = Tables(made.study())
    words = Page(made.study_page()).text
    for entry in study.entries.values():
        assert entry.robust is None or f"{100 * float(entry.robust):.1f}" in words
    assert "the model is not there" in words


def test_markup_in_a_record_is_no_markup_on_its_page():
    evil = "<script>alert(1)</script>"
    for kind, make in made.RECORDS.items():
        record = make()
        about = About(label=evil)
        if kind == "sweep":
            record = dataclasses.replace(
                record, records=tuple(dataclasses.replace(r, about=about) for r in record.records)
            )
        else:
            record = dataclasses.replace(record, about=about)
        text = MAKERS[kind](record)["report.html"]
        assert "<script" not in text
        assert evil in Page(text).text[0] or evil in " ".join(Page(text).text)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of each kind, whole or not."""
    root = tmp_path_factory.mktemp("runs")
    for kind, module, make in (
        ("corruptions", corruption, made.corruptions),
        ("certificate", certificate, made.certificate),
        ("bounds", bounds, made.bounds),
    ):
        (root / kind).mkdir()
        make().save(root / kind / module.RESULT, {})
    (root / "audit").mkdir()
    made.audit().save(root / "audit", {})
    run = made.run()
    folder = RunFolder(root / "run")
    folder.open(run.job, {"started": "2026-01-31T09:00:00Z"}, fresh=False)
    folder.save(dataclasses.replace(run, about=dataclasses.replace(run.about, label="ours")), {})
    transfer = made.transfer()
    whole = TransferFolder(root / "transfer")
    whole.open({**transfer.job, "id": "f" * 64}, 128, fresh=False)
    whole.save(transfer, {})
    unfinished(root / "half")
    return root


def unfinished(path):
    """A run whose first attack has met a shard of its two, the second none."""
    job = {**made.run().job, "indices": list(range(20)), "attacks": ["apgd", "fab"], "id": "0" * 64}
    folder = RunFolder(path)
    folder.open(job, {"shard_size": 10, "adversarial": False, "started": "2026-02-01T08:00:00Z"}, fresh=False)
    for shard in (0, 1):
        folder.write_part(shard, 0, {"correct": np.arange(10) > 0})
    outcome = np.array([1, 1, 0, 0, 0, 0, 0, 0, 2])  # the codes of broken, survived and violated
    passes = np.full(9, 5)
    folder.write_part(0, 1, {"position": np.arange(1, 10), "outcome": outcome, "forwards": passes, "backwards": passes})
    return folder


def test_every_kind_is_known_by_what_it_is(stored):
    known = {path.name: kinds.find(path) for path in stored.iterdir()}
    assert {name: (place.word, place.finished) for name, place in known.items()} == {
        **{name: (name, True) for name in ("run", "transfer", "corruptions", "certificate", "bounds", "audit")},
        "half": ("run", False),
    }
    assert kinds.find(stored) is None
    assert kinds.load(stored / "certificate") == made.certificate()
    assert kinds.load(stored / "bounds") == made.bounds()
    assert kinds.load(stored / "corruptions") == made.corruptions()
    assert kinds.load(stored / "audit") == made.audit()


@pytest.mark.parametrize("kind", ["run", "transfer", "corruptions", "certificate", "bounds", "audit"])
def test_report_and_show_take_every_kind(kind, stored, tmp_path):
    done = CliRunner().invoke(main, ["report", str(stored / kind), "--out", str(tmp_path), "--label", "theirs"])
    assert done.exit_code == 0, done.output
    assert "theirs" in (tmp_path / "report.html").read_text()
    assert {"report.html", "report.md"} <= {path.name for path in tmp_path.iterdir()}
    told = CliRunner().invoke(main, ["show", str(stored / kind), "--json", "-"])
    data = json.loads(told.stdout)
    assert list(data)[:4] == ["schema", "robustkit", "command", "label"]
    assert data["label"] == ("ours" if kind == "run" else "")
    beside = CliRunner().invoke(main, ["report", str(stored / kind), "--format", "html", "--json", "-"])
    assert json.loads(beside.stdout)["files"] == [str(stored / kind / "report.html")]
    assert kinds.load(stored / kind) == kinds.load(stored / kind)  # which its digests still let


def test_report_takes_the_file_that_json_or_out_has_written(stored, tmp_path):
    told = CliRunner().invoke(main, ["show", str(stored / "certificate"), "--json", str(tmp_path / "c.json")])
    assert told.exit_code == 0, told.output
    refused = CliRunner().invoke(main, ["report", str(tmp_path / "c.json")])
    assert refused.exit_code == 2
    assert "say where the reports go: --out DIR" in refused.stderr
    done = CliRunner().invoke(main, ["report", str(tmp_path / "c.json"), "--out", str(tmp_path / "pages")])
    assert done.exit_code == 0, done.output
    assert "Certified" in (tmp_path / "pages/report.html").read_text()
    without = CliRunner().invoke(main, ["report", str(tmp_path), "--out", str(tmp_path / "x")])
    assert without.exit_code == 2
    assert "holds nothing that robustkit wrote" in without.stderr


def test_a_certificate_that_contradicts_itself_is_refused(tmp_path):
    file = tmp_path / certificate.RESULT
    data = made.certificate().to_json()
    data["certified_accuracy"][1]["value"] = 0.99
    file.write_text(json.dumps(data))
    with pytest.raises(certificate.UsageError, match="not what its images give"):
        certificate.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["certified_accuracy"].update(value=0.99), "not what its images give"),
        (lambda data: data["images"][0].update(proved=True), "an image is proved that is wrong"),
        (lambda data: data["images"][1].update(bound=-1.0), "or by nothing"),
        (lambda data: data["images"].append(data["images"][1]), "or one twice"),
        (lambda data: data.update(images=[]), "no images"),
    ],
)
def test_bounds_that_contradict_themselves_are_refused(tmp_path, change, says):
    data = made.bounds().to_json()
    change(data)
    (tmp_path / bounds.RESULT).write_text(json.dumps(data))
    with pytest.raises(bounds.UsageError, match=says):
        bounds.load(tmp_path)


def test_what_stands_so_far_of_a_run_that_is_not_finished(stored):
    told = CliRunner().invoke(main, ["show", str(stored / "half")])
    assert told.exit_code == 0, told.output
    text = told.stdout
    assert "clean accuracy   90.00 % [69.90, 97.21] of the 20 of 20 samples looked at so far" in text
    assert "broke 2 of 9 met so far, 1 violated; 45 forwards, 45 backwards" in text
    assert "fab                          not begun" in text
    assert "robust accuracy  at most 80.00 %" in text  # 16 of the 20 are not broken so far
    last = "NOT FINISHED, begun 2026-02-01 08:00 UTC: what stands so far; run its command again to continue"
    assert text.splitlines()[-1] == last
    data = json.loads(CliRunner().invoke(main, ["show", str(stored / "half"), "--json", "-"]).stdout)
    assert data["finished"] is False
    assert data["attacks"][0]["broken"] == 2
    assert data["figures"]["robust_accuracy_at_most"]["value"] == 0.8


@pytest.mark.parametrize(("schema", "part", "said"), [
    (CORRUPTIONS, {"kind": np.array("jpeg"), "severity": np.array(3), "wrong": np.array([1, 2])},
     "jpeg 3                       90.00 %"),
    (CERTIFIED, {"index": np.array(4), "label": np.array(1), "decision": np.array(1), "radius": np.array(0.2)},
     "1 of 20 images are certified so far"),
])  # fmt: skip
def test_what_stands_so_far_of_other_kinds(schema, part, said, tmp_path):
    folder = RunFolder(tmp_path, schema)
    job = {**made.ASKED, "indices": list(range(20)), "cells": [["jpeg", 3], ["jpeg", 5]], "sigma": 0.25, "id": "1"}
    folder.open(job, {"started": "2026-02-01T08:00:00Z"}, fresh=False)
    folder.write_part(0, 0, part)
    told = CliRunner().invoke(main, ["show", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert said in told.stdout
    assert "NOT FINISHED, begun 2026-02-01 08:00 UTC" in told.stdout
    (row,) = listing.runs(tmp_path)
    assert row.state == "unfinished"


def test_runs_lists_every_kind_with_its_number_and_whether_it_is_finished(stored):
    done = CliRunner().invoke(main, ["runs", str(stored), "--json", "-"])
    assert done.exit_code == 0, done.output
    rows = {Path(row["folder"]).name: row for row in json.loads(done.stdout)["runs"]}
    run = load_run(stored / "run")
    assert rows["run"] | {"number": f"{100 * float(run.robust_accuracy):.1f} %", "verdict": "invalid"} == rows["run"]
    assert (rows["run"]["date"], rows["run"]["label"]) == ("2026-01-31 12:00 UTC", "ours")
    assert rows["half"] | {"state": "unfinished", "number": "at most 80.0 % so far", "finished": False} == rows["half"]
    best = max(float(c.of_all) for c in load_transfer(stored / "transfer").cells.values() if not c.white_box)
    assert rows["transfer"]["number"] == f"success up to {100 * best:.1f} %"
    assert rows["corruptions"]["number"] == f"mean {100 * made.corruptions().mean_accuracy.value:.1f} %"
    assert rows["audit"]["verdict"] == made.audit().audit.verdict
    dates = [row["date"] for row in json.loads(done.stdout)["runs"]]
    assert dates == sorted(dates, reverse=True)
    text = CliRunner().invoke(main, ["runs", str(stored)]).stdout
    assert text.splitlines()[0].split() == [
        "date",
        "kind",
        "model",
        "attack",
        "number",
        "verdict",
        "state",
        "folder",
        "label",
    ]


def test_runs_says_of_a_damaged_run_that_it_cannot_be_read_and_of_no_folder_what_to_give(tmp_path):
    made.corruptions().save(tmp_path / "a.json")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / corruption.RESULT).write_text("{")
    (row,) = listing.runs(tmp_path)
    assert row.state.startswith("cannot be read: ")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(main, ["runs", str(empty)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no runs in" in done.stderr
    refused = CliRunner().invoke(main, ["runs", str(tmp_path / "absent")])
    assert refused.exit_code == 2
    assert "there is no folder" in refused.stderr


def test_runs_report_and_show_load_no_torch(stored, tmp_path):
    program = (
        "import sys\nfrom robustkit.cli import main\nfor words in sys.argv[1:]:\n"
        "    try: main(words.split())\n    except SystemExit as end: assert not end.code, words\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    commands = [f"runs {stored}", f"show {stored / 'half'}", f"show {stored / 'audit'}",
                f"report {stored / 'transfer'} --out {tmp_path}"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, *commands], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LIGHT", done.stderr


def test_an_audit_ends_with_a_bottom_line():
    lines = made.audit().summary().splitlines()
    assert lines[-1] == (
        "INVALID: a robust accuracy of this model is not one: the attacks that measure it do not see the model "
        "(4 checks: 1 fine, 1 suspect, 1 invalid, 1 skipped)"
    )
    fine = [check for check in records.AUDIT["checks"] if check["outcome"] == "fine"]
    assert made.audit(fine).summary().splitlines()[-1].startswith("VALID: no sign of masked gradients was found")
    assert set(findings.MEANS) == {"valid", "suspect", "invalid", "undecided"}


def test_a_study_s_page_has_the_numbers_of_its_report():
    text = report.markdown(Tables(made.study()), [])
    shown = " ".join(Page(made.study_page()).text)
    assert "Two networks behind coarse pixels" in shown
    for word in ("plain", "trained", "coarse", "FGSM", "PGD", "all attacks", "eps 8/255"):
        assert word in text
        assert word in shown
