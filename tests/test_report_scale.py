"""A report of 10 000 samples and 4 attacks, its images kept: drawn in seconds, in little memory, and small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robustkit.records.folder import RunFolder
from tests import records

PROGRAM = """
import json, sys, time
from robustkit.report import page
from robustkit.records.folder import load_run
html = page.run_page(load_run(sys.argv[1]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would be the parent's
print(json.dumps({"cpu_s": time.process_time(), "mib": int(peak.split()[1]) / 1024, "bytes": len(html.encode()),
                  "torch": "torch" in sys.modules, "images": html.count("<img")}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("classes", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_large_record_is_drawn_fast_and_small(tmp_path, classes):
    attacks = ("apgd:loss=ce", "apgd:loss=dlr-targeted", "square", "fab")
    record = records.random_record(
        10_000, attacks, classes=classes, images=True, shape=(3, 32, 32), audit=records.AUDIT
    )
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").save(record, {})
    kept = (tmp_path / "run/adversarial.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert kept > 100_000_000  # the images alone would fill the limit
    assert found["images"] == 36
    assert found["cpu_s"] < 5
    assert found["mib"] < 500
    assert found["bytes"] < 5_000_000
    assert not found["torch"]
