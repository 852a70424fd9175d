"""`robustkit certify`: its numbers against the closed form of a linear model, its table from the facts, its errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import norm
from torch import nn

import robustkit
from robustkit.certificates.smoothing import evaluate_certificate
from robustkit.cli import main
from robustkit.errors import UsageError
from robustkit.records import certificate
from robustkit.records.certificate import Certified, CertifiedRecord, most, parse_radii
from robustkit.stats import Proportion
from tests import toys
from tests.test_certify import linear

SIGMA, DRAWS, ALPHA = 0.25, 1000, 0.001
COMMAND = ["certify", "--model", "python/tests.test_cli_certify.network", "--draws", str(DRAWS), "--quiet"]


def network():
    return linear()[0]


def probabilities():
    return nn.Sequential(network(), nn.Softmax(1))


def noisy():
    return toys.Randomised(network(), 0.1)


def slow(seconds: float = 0.2):
    module = network()
    module.register_forward_hook(lambda *_: time.sleep(seconds))
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The images of the linear model with the labels it gives, one in four of them wrong."""
    _, x, distance = linear()
    y = (distance > 0).long()
    y[::4] = 1 - y[::4]
    file = tmp_path_factory.mktemp("data") / "linear.npz"
    np.savez(file, x=x.numpy(), y=y.numpy())
    return str(file), y, distance


def bare(record):
    """A record's JSON without its dates, its digest and the envelope of the command that printed it."""
    return {key: value for key, value in record.items()
            if key not in ("about", "digest", "robustkit", "command", "label")}  # fmt: skip


def run(data, *more, code=0):
    done = CliRunner().invoke(main, [*COMMAND, "--dataset", data[0], *more])
    assert done.exit_code == code, done.output + done.stderr
    return done


def test_on_a_linear_model_it_certifies_what_the_closed_form_says(data):
    shown = json.loads(run(data, "--json", "-").stdout)
    _, y, distance = data
    ceiling = SIGMA * norm.ppf(ALPHA ** (1 / DRAWS))
    images = shown["images"]
    assert [image["index"] for image in images] == list(range(20))
    assert [image["label"] for image in images] == y.tolist()
    decided = [image for image in images if image["decision"] >= 0]
    assert len(decided) > 10
    for image in decided:
        true = float(distance[image["index"]])
        assert image["decision"] == (true > 0)
        assert 0 < image["radius"] <= min(abs(true), ceiling) + 1e-6  # the radius in the limit of many draws
        assert image["radius"] > min(abs(true), ceiling) - 0.12
    for row in shown["certified_accuracy"]:
        truly = ((distance > 0) == y.bool()) & (distance.abs() >= row["radius"])
        assert row["value"] <= float(truly.double().mean())  # never above what is true of the smoothed network
        right = [i for i in images if i["decision"] == i["label"] and i["radius"] >= row["radius"]]
        assert row["value"] == len(right) / 20
        assert (row["low"], row["high"]) == (Proportion(len(right), 20).low, Proportion(len(right), 20).high)
    assert shown["certified_accuracy"][0]["value"] > 0.5
    assert shown["abstained"] == 20 - len(decided)
    assert shown["job"]["sigma"] == SIGMA
    assert len(shown["job"]["model_sha256"]) == 64


def test_the_table_the_files_and_the_same_answer_again(data, tmp_path):
    first = run(data, "-n", "6", "--radii", "0,0.1", "--json", str(tmp_path / "a.json"))
    again = run(data, "--indices", "0-5", "--radii", "0.1,0", "--out", str(tmp_path / "b.json"))
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert bare(one) == bare(two)
    assert first.stdout == again.stdout
    assert "(n = 6), smoothed with Gaussian noise of sigma 0.25" in first.stdout
    share = one["certified_accuracy"][1]
    assert share["radius"] == 0.1
    assert f"  0.1      {100 * share['value']:.2f} % [{100 * share['low']:.2f}, " in first.stdout
    other = json.loads(run(data, "-n", "6", "--seed", "1", "--json", "-").stdout)
    assert [i["radius"] for i in other["images"]] != [i["radius"] for i in one["images"]]


def test_the_samples_may_stand_in_a_file(data, tmp_path):
    file = tmp_path / "samples.json"
    file.write_text("[7, 3]")
    shown = json.loads(run(data, "--indices", f"@{file}", "--json", "-").stdout)
    assert bare(shown) == bare(json.loads(run(data, "--indices", "7,3", "--json", "-").stdout))
    assert [image["index"] for image in shown["images"]] == [7, 3]
    assert "cannot be read" in run(data, "--indices", f"@{tmp_path}/nowhere", code=2).stderr


def test_progress_goes_to_stderr_an_image_a_line(data):
    arguments = [word for word in COMMAND if word != "--quiet"]
    done = CliRunner().invoke(main, [*arguments, "--dataset", data[0], "-n", "3", "--json", "-"])
    json.loads(done.stdout)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [f"[{i + 1}/3] image {i}" for i in range(3)]


def test_accuracy_over_radii_is_computed_from_the_facts():
    images = (Certified(0, 1, 1, 0.5), Certified(1, 1, 0, 0.9), Certified(2, 0, -1, 0.0), Certified(3, 0, 0, 0.2))
    job = {"model": "m", "defense": "jpeg", "data": "d", "sigma": 0.5, "alpha": 0.001, "draws": 100, "seed": 0}
    record = CertifiedRecord(job, {}, images, (0.0, 0.2, 0.5, 0.6))
    assert [record.accuracy(radius).k for radius in record.radii] == [2, 2, 1, 0]
    assert record.abstained == 1
    assert "m behind jpeg on d (n = 4)" in record.summary()
    assert "abstained on 1 of 4" in record.summary()


def test_the_radii_told_by_default_are_those_that_can_be_certified():
    assert most(0.25, 1000, 0.001) == pytest.approx(0.25 * norm.ppf(0.001 ** (1 / 1000)))
    assert most(0.25, 1, 0.001) == 0
    radii = parse_radii(None, 0.25, 1000, 0.001)
    assert radii[:3] == (0, 0.125, 0.25)
    assert radii[-1] <= most(0.25, 1000, 0.001) < radii[-1] + 0.125
    assert parse_radii(None, 0.25, 1, 0.001) == (0,)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sigma", "0"], "sigma"),
        (["--sigma", "nan"], "sigma"),
        (["--draws", "0"], "draws"),
        (["--alpha", "1"], "alpha"),
        (["--radii", "0,x"], "--radii"),
        (["--radii", "0,-1"], "--radii"),
        (["--radii", "0.1,0.1"], "--radii"),
        (["-n", "21"], "choose 1 to 20"),
        (["--model", "python/tests.test_cli_certify.noisy"], "draws random numbers itself"),
        (["--defense", "gaussian-smoothing"], "draws random numbers itself"),
        (["--defense", "jpg"], "did you mean jpeg"),
        (["--model", "digits-cnn"], "channels"),
        (["--out", "nowhere/a.json"], "no folder"),
        (["--json", "nowhere/a.json"], "no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(data, more, message):
    done = run(data, *more, code=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_without_a_dataset_it_takes_what_the_model_was_trained_on():
    done = CliRunner().invoke(main, ["certify", "--model", "digits-cnn", "--draws", "100", "-n", "3", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "digits-cnn on digits (n = 3)" in done.stdout
    done = CliRunner().invoke(main, COMMAND)
    assert done.exit_code == 2
    assert "--dataset is needed" in done.stderr


def test_interrupted_it_leaves_nothing_half_written(data, tmp_path):
    command = [sys.executable, "-m", "robustkit", "certify", "--model", "python/tests.test_cli_certify.slow",
               "--dataset", data[0], "--out", str(tmp_path / "out.json"), "--draws", "500"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "image 0" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "nothing is kept" in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


RESUMED = ["certify", "--dataset", "digits", "--defense", "bit-depth:bits=3", "--draws", "300", "-n", "4",
           "--tile", "64", "--quiet"]  # fmt: skip


def pausing(pause: float = 0.0):
    """The digits network, which waits where it is asked to: the same weights and numbers, time to be killed in."""
    module = robustkit.load_model("digits-cnn")[0]
    module.register_forward_hook(lambda *_: time.sleep(pause))
    return module


def test_killed_behind_a_defense_and_run_again_it_ends_as_one_that_was_not(tmp_path):
    model = "python/tests.test_cli_certify.pausing:pause=0.05"
    folder, calm = tmp_path / "killed", tmp_path / "calm"
    command = [*RESUMED, "--model", model, "--out"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many as the tests' own process has
    with subprocess.Popen([sys.executable, "-m", "robustkit", *command, str(folder)], env=threads) as process:
        while not list(folder.glob("journal/shard-*.npz")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("journal/shard-*.npz")}
    assert 1 <= len(kept) < 4
    assert not (folder / "certificate.json").exists()
    for place in (folder, calm):
        done = CliRunner().invoke(main, [*command, str(place)])
        assert done.exit_code == 0, done.output
        assert done.stdout.endswith(f"in {place}\n")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was computed before the kill was taken
    one, other = (json.loads((place / "certificate.json").read_text()) for place in (folder, calm))
    assert certificate.load(folder) == certificate.load(calm)
    assert {key for key in one if one[key] != other[key]} <= {"about", "digest", "files"}
    assert (one["job"]["defense"], one["job"]["tile"]) == ("bit-depth:bits=3", 64)
    refused = CliRunner().invoke(main, [*command, str(folder), "--sigma", "0.5"])
    assert refused.exit_code == 2
    assert "sigma differs: 0.25 there, 0.5 asked" in refused.stderr
    fresh = CliRunner().invoke(main, [*command, str(folder), "--sigma", "0.5", "--fresh"])
    assert fresh.exit_code == 0, fresh.output
    assert json.loads((folder / "certificate.json").read_text())["job"]["sigma"] == 0.5
    shown = CliRunner().invoke(main, ["show", str(folder)])
    assert fresh.stdout == f"{shown.stdout.rstrip()}\nin {folder}\n"


def test_declared_probabilities_and_narrow_tiles_certify_the_same(data):
    plain = json.loads(run(data, "--json", "-").stdout)
    probs = ["--model", "python/tests.test_cli_certify.probabilities"]
    for more in ([*probs, "--outputs", "probs"], ["--tile", "7"], ["--defense", "bit-depth:bits=16"]):
        assert json.loads(run(data, *more, "--json", "-").stdout)["images"] == plain["images"]
    assert "--outputs probs" in run(data, *probs, code=2).stderr


def test_a_folder_in_which_nothing_came_to_be_is_taken_back(tmp_path):
    module, x, distance = linear()

    def finite_in_few(images):  # in the examination's tiles of 128, not in a batch of noisy copies
        return module(images) if len(images) <= 128 else module(images) * torch.nan

    with pytest.raises(UsageError, match="noisy copies are not finite"):
        evaluate_certificate(finite_in_few, (x, (distance > 0).long()), draws=200, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_help_has_an_example_and_loads_no_torch():
    program = (
        "import sys, robustkit.cli as c\n"
        "try: c.main(['certify', '--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', {'torch', 'scipy', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert "robustkit certify --model digits-cnn --sigma 0.25 -n 100" in out
    assert "HEAVY set()" in out


def test_in_python_a_module_comes_back_as_it_was():
    module, x, distance = linear()
    module.train()
    module[1].weight.requires_grad_(True)
    record = evaluate_certificate(module, (x, (distance > 0).long()), draws=200, n=4, defense="bit-depth:bits=8")
    assert module.training
    assert module[1].weight.requires_grad
    assert record.job["defense"] == "bit-depth:bits=8"
    assert len(record.images) == 4
    with pytest.raises(UsageError, match="sigma"):
        evaluate_certificate(module, (x, distance.long()), sigma=-1)
    with pytest.raises(UsageError, match="accept images"):
        evaluate_certificate(nn.Linear(7, 2), (torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)))
