"""Killed at any moment and run again, a run ends as one that was never killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from robustkit.records.folder import load_run

COMMAND = [
    "eval", "--model", "digits-cnn-at", "--attack", "(apgd:steps=20)+(fab:targets=3,steps=10)+(square:queries=300)",
    "--eps", "0.2", "-n", "120", "--shard-size", "25", "--batch-size", "16", "--tile", "16", "--quiet",
]  # fmt: skip


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "robustkit", *COMMAND, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(file, process):
    while not file.exists() and process.poll() is None:
        time.sleep(0.01)


def test_ten_kills_at_random_moments_leave_the_record_of_an_undisturbed_run(tmp_path):
    calm_folder, folder = tmp_path / "calm", tmp_path / "killed"
    began = time.monotonic()
    calm = start(calm_folder)
    wait_for(calm_folder / "job.json", calm)
    ready = time.monotonic() - began
    assert calm.wait() == 0, calm.stderr.read()
    calm.stderr.close()
    work = time.monotonic() - began - ready

    moment, at_work = random.Random(11), False
    for kill in range(10):
        process = start(folder)
        if kill == 0:  # the first falls in the midst of the work for certain, the others where they fall
            wait_for(folder / "journal/shard-00000-01.npz", process)
        else:
            time.sleep(ready + work * moment.uniform(-0.02, 0.12))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        at_work |= process.returncode != 0 and any((folder / "journal").glob("*.npz"))
        if process.returncode == 0:  # it was quick: its record must be right too, and the killing starts anew
            assert_same(calm_folder, folder)
            shutil.rmtree(folder)
    assert at_work, "no run was killed at work"
    last = start(folder)
    assert last.wait() == 0, last.stderr.read()
    last.stderr.close()
    assert_same(calm_folder, folder)


def assert_same(one, other):
    first, second = load_run(one), load_run(other)
    for columns, others in ((first.samples, second.samples), (first.attacks, second.attacks)):
        for name, column in columns.items():
            assert np.array_equal(column, others[name], equal_nan=column.dtype.kind == "f"), name
    assert timeless(one) == timeless(other)


def timeless(folder):
    data = json.loads((folder / "run.json").read_text())
    del data["seconds"], data["predicted"]["seconds"], data["digest"]
    assert data["about"].pop("started") <= data["about"].pop("finished")
    data["files"] = {name: sha256 for name, sha256 in data["files"].items() if name.endswith(".parquet")}
    for attack in data["summary"]["attacks"]:
        del attack["seconds"]
    return data
