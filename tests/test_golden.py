"""Files that must not change by accident: every figure and layout of md, tex, csv and json, of one fixed record.

Meant to change? Write them anew with ROBUSTKIT_GOLDEN=1 and look at the difference.
"""

import dataclasses
import os
from pathlib import Path

import pytest

from robustkit.records.files import dumps
from robustkit.records.folder import load_run
from robustkit.records.sweep import load_sweep
from robustkit.records.transfer_folder import load_transfer
from robustkit.report import files
from tests import records

GOLDEN, FIXTURES = Path(__file__).parent / "golden", Path(__file__).parent / "fixtures"
UGLY = "<script>alert(1)</script>|&_{%}$x$"


def made():
    record = records.random_record(60, ("pgd:steps=3", "fab"), audit=records.AUDIT, model=UGLY, classes=4)
    record = dataclasses.replace(record, job={**record.job, "data_sha256": "d", "id": "0"})
    run = {name: text for name, text in files.of_run(record).items() if name != "report.html"}
    found = {f"run-{name}": text for name, text in run.items()}
    found["run.json"] = dumps(record.to_json())
    sweep = load_sweep(FIXTURES / "sweep-1")
    found |= {f"sweep-{name}": text for name, text in
              files.of_sweep(sweep, ("md", "tex", "csv")).items()}  # fmt: skip
    found["sweep.json"] = dumps(sweep.to_json())
    transfer = load_transfer(FIXTURES / "transfer-1")
    found |= {f"transfer-{name}": text for name, text in files.of_transfer(transfer).items()
              if name != "report.html"}  # fmt: skip
    found["transfer.json"] = dumps(transfer.to_json())
    found["old-run-report.md"] = files.of_run(load_run(FIXTURES / "run-1"), ("md",))["report.md"]
    return found


MADE = made()


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_golden_file_is_as_it_was(name):
    file = GOLDEN / name
    if os.environ.get("ROBUSTKIT_GOLDEN"):
        file.write_text(MADE[name], encoding="utf-8")
    assert MADE[name] == file.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over():
    assert {file.name for file in GOLDEN.iterdir()} == set(MADE)
