"""Records of every schema ever written still load and report. The files are as that version left them."""

import json
from pathlib import Path

import numpy as np
import pytest

from robustkit.records import baseline
from robustkit.records.corruption import load as load_corruptions
from robustkit.records.folder import load_run
from robustkit.records.sweep import load_sweep
from robustkit.records.transfer_folder import load_transfer
from robustkit.report import facts, files, gallery, page

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_run_of_schema_1_before_predictions_under_attack_were_stored():
    record = load_run(FIXTURES / "run-1")
    assert record.n == 40
    assert record.counts == {"WRONG": 0, "BROKEN": 12, "ROBUST": 28, "UNKNOWN": 0}
    assert str(record.robust_accuracy) == "70.00 % [54.57, 81.93]"
    assert [(row.name, row.broken) for row in record.by_attack] == [("pgd:steps=2", 10), ("fab:steps=10", 2)]
    assert (record.audit, record.verdict, record.goals) == (None, "not audited", {})
    assert set(record.adversarial) == {"index", "adv"}
    assert record.adversarial["adv"].shape == (12, 1, 8, 8)
    html = page.run_page(record)
    assert "before the class decided under attack was stored" in html
    assert "did not keep the originals" in html
    assert facts.minimal_attacks(record) == ["fab:steps=10"]
    assert facts.distance_curve(record).y[0] == record.robust_accuracy
    assert len(gallery.shown(record)) == 12
    assert {"goals", "audit"}.isdisjoint(record.to_json())  # what it did not say it does not say now


def test_a_sweep_of_schema_1():
    sweep = load_sweep(FIXTURES / "sweep-1")
    assert sweep.eps == ("0.1", "0.2")
    assert [float(record.robust_accuracy) for record in sweep.records] == [0.9, 0.65]
    assert sweep.records[1].carried == 2
    assert "65.00" in files.of_sweep(sweep)["report.html"]
    assert facts.confusion(sweep.records[1]).reason


def test_a_transfer_run_of_schema_1():
    record = load_transfer(FIXTURES / "transfer-1")
    assert record.n == 20
    (black, white) = record.cells.values()
    assert (float(black.of_all), float(white.of_all), white.white_box) == (0.05, 0.45, True)
    assert set(files.of_transfer(record)) == {"report.html", "report.md", "matrix.tex", "matrix.csv"}


def test_a_corruption_record_of_schema_1():
    record = load_corruptions(FIXTURES / "corruptions-1.json")
    assert record.n == 20
    assert record.kinds == ("gaussian-noise", "jpeg-compression")
    assert record.severities == (1, 5)


def test_a_baseline_of_schema_1_which_has_no_distances_and_no_predictions():
    record = baseline.load(FIXTURES / "baseline-1.json")
    assert record.n == 20
    assert float(record.robust_accuracy) == 0.65
    assert "seeks the nearest" in facts.distance_curve(record).reason


@pytest.mark.parametrize("name", ["run-1", "sweep-1/eps-01", "sweep-1/eps-02"])
def test_the_stored_summary_is_what_is_computed_today(name):
    stored = json.loads((FIXTURES / name / "run.json").read_text())
    computed = load_run(FIXTURES / name).to_json()
    assert {key: computed[key] for key in stored} == stored
    assert np.array_equal(load_run(FIXTURES / name).samples["index"], stored["job"]["indices"])
