"""Every command with `--device` on a pretended device: it says what it says on the CPU, and the other ways in too."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkit
from robustkit.cli import main
from robustkit.errors import UsageError
from robustkit.models.examination import lent
from robustkit.models.opening import choose_device
from robustkit.models.sources import load_model, trained
from robustkit.numerics import devices, streams
from robustkit.records.folder import load_run
from robustkit.testing import pretended
from robustkit.training.loop import Loop, Watch
from robustkit.training.recipes import Schedule, Task
from tests.test_training import RECIPES, network, some

DEVICES = ["cuda", "mps", pytest.param("xpu", marks=pytest.mark.slow)]
EVAL = "eval --model digits-cnn-at --eps 0.2 -n 12 --tile 16"
STUDY = """
title = "two networks on a device"
provenance = "made up"
dataset = "digits"
n = 8
eps = ["0.1"]

[models]
plain = "digits-cnn"
trained = "digits-cnn-at"

[attacks]
fgsm = "fgsm"
apgd = "apgd:steps=3"
"""
COMMANDS = {
    "eval": f"{EVAL} --attack apgd:steps=4+square:queries=9+fab:steps=3",
    "eval-saved": f"{EVAL} --attack apgd:steps=4 --target random --quantize 8bit --save-adversarial --out run",
    "eval-jpeg": f"{EVAL} --attack apgd:steps=3 --defense jpeg:quality=50 --defense bit-depth:bits=4 --defense median",
    "eval-noise": f"{EVAL} --attack apgd:steps=3 --defense random-resize-pad --draws 3",
    "eval-smoothing": f"{EVAL} --attack apgd:steps=3 --defense gaussian-smoothing --draws 3",
    "eval-ensemble": "eval --model digits-dverge --eps 0.1 -n 8 --tile 16 "
    "--attack (mora:steps=2)+(surrogate-swap:steps=2)",
    "eval-foreign": f"{EVAL} --attack torchattacks/PGD:steps=3",
    "transfer": "transfer --surrogate digits-cnn --surrogate digits-teacher --victim digits-cnn-at --dataset digits "
    "--attack mi:steps=2 --attack svre:steps=1 --attack apgd:steps=3 --eps 0.2 -n 12 --tile 16",
    "corruptions": "corruptions --model digits-cnn --dataset digits --kind gaussian-noise,contrast --severity 1",
    "certify": "certify --model digits-cnn --dataset digits --sigma 0.25 --draws 60 -n 3",
    "gate": "gate --model digits-cnn-at --baseline base.json",
    "audit": "audit --model digits-cnn-at --eps 0.1 -n 8",
}
# On which devices a command is run among the slow tests only: one of each kind runs on both, and each on one.
SLOW = {
    "audit": ["cuda", "mps"], "eval-saved": ["cuda"], "eval-jpeg": ["mps"], "eval-noise": ["cuda"],
    "eval-smoothing": ["cuda", "mps"], "eval-ensemble": ["mps"], "eval-foreign": ["cuda"],
}  # fmt: skip
PAIRS = [
    pytest.param(name, device, marks=pytest.mark.slow if device in ["xpu", *SLOW.get(name, [])] else [])
    for name in COMMANDS
    for device in ("cuda", "mps", "xpu")
]
OTHER = {
    "device", "differs", "seconds", "time_s", "started", "finished", "created", "id", "environment", "digest", "files",
    "folder", "predicted",
}  # fmt: skip


def plain(found):
    """A record without what a device or a clock decides; numbers as far as float32 tells."""
    if isinstance(found, dict):
        return {k: plain(v) for k, v in found.items() if not any(word in k for word in OTHER)}
    if isinstance(found, list):
        return [plain(each) for each in found]
    return float(f"{found:.3g}") if isinstance(found, float) else found


@pytest.fixture
def said(tmp_path, monkeypatch):
    def said(command, *more):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "study.toml").write_text(STUDY)
        done = CliRunner().invoke(main, [*shlex.split(command), *more])
        assert done.exit_code == 0, done.output + done.stderr
        return done

    return said


@pytest.fixture(scope="module")
def on_the_cpu():
    """What each command says there, once asked."""
    return {}


@pytest.mark.parametrize(("name", "device"), PAIRS)
def test_a_command_says_on_a_device_what_it_says_on_the_cpu(said, on_the_cpu, name, device):
    command = [COMMANDS[name], "--json", "-", "--quiet", *(["--fresh"] if "--out" in COMMANDS[name] else [])]
    if name == "gate":
        said(f"{COMMANDS[name]} --attack fgsm --eps 0.1 -n 12 --update", "--device", "cpu")
    if name not in on_the_cpu:
        on_the_cpu[name] = plain(json.loads(said(*command, "--device", "cpu").stdout))
    with pretended(device):
        there = json.loads(said(*command, "--device", device).stdout)
    here, there = on_the_cpu[name], plain(there)
    if (name, device) == ("audit", "mps"):  # where an audit's figures are float32
        here, there = (
            [(check["name"], check["outcome"]) for check in each["audit"]["checks"]] for each in (here, there)
        )
    assert there == here


@pytest.mark.parametrize("device", DEVICES)
def test_a_study_and_the_doctor_run_there_too(said, device):
    with pretended(device):
        done = said("run study.toml --out out --device auto --quiet --json -")
        runs = [load_run(Path("out", cell["run"])) for cell in json.loads(done.stdout)["outcomes"]]
        assert [run.job["device"] for run in runs] == [device] * 4
        assert f"{device}:0" in said("doctor").output
        there = json.loads(said("doctor --model digits-cnn --dataset digits --json -").stdout)
    assert plain(there) == plain(json.loads(said("doctor --model digits-cnn --dataset digits --json -").stdout))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recipe", RECIPES.values())
def test_a_recipe_trains_there_as_on_the_cpu(recipe, device):
    """Three steps."""

    def weights(where):
        from robustkit.training.data import held

        data, test = (held(some(split, n), torch.device(where)) for split, n in (("train", 96), ("test", 20)))
        schedule, task = Schedule(epochs=1, batch=32, rate=0.01), Task(10, (1, 8, 8), network, load_model)
        made, _ = Loop(trained.recipe(recipe), task, data, schedule, Watch(test, 0.1), 3).train()
        return {name: value.cpu() for name, value in made.state_dict().items()}

    here = weights("cpu")
    with pretended(device):
        there = weights(device)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_auto_takes_what_is_there_and_says_so(device):
    told = []
    with pretended(device):
        assert choose_device("auto", nn.Linear(1, 1), named=True).type == device
        assert choose_device("auto", nn.Linear(1, 1), named=False).type == "cpu"  # it is where its owner put it
        assert choose_device(f"{device}:0", nn.Linear(1, 1), named=True) == torch.device(device, 0)
        other = "mps" if device == "cuda" else "cuda"
        with pytest.raises(UsageError, match=f"'{other}' is not there; torch sees: cpu, {device}"):
            choose_device(other, nn.Linear(1, 1), named=True)
        record = robustkit.evaluate("digits-cnn-at", "digits", "fgsm", n=4, on_event=told.append)
    assert record.job["device"] == device
    assert f" · {device}" in told[0].title
    assert choose_device("auto", nn.Linear(1, 1), named=True).type in ("cpu", *devices.there())
    with pytest.raises(UsageError, match="unknown device 'tpux'; there are: auto, cpu, cuda, cuda:0 …, mps, xpu"):
        choose_device("tpux", nn.Linear(1, 1), named=True)


MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CUDA": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.94 GiB, other allocations: 1.00 GiB)"),
    "XPU": RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("torch", "MPS") else pytest.mark.slow) for kind in MEMORY]
)
def test_memory_of_each_kind_that_runs_out_halves_the_batch(kind):
    sizes = []

    @dataclass(frozen=True)
    class Hungry:
        norms: ClassVar = frozenset({"linf"})
        goal: ClassVar = "bounded"
        access: ClassVar = "white-box"

        def cost(self, classes):
            return 1, 0

        def __call__(self, case):
            sizes.append(len(case.x))
            if len(case.x) > 8:
                raise MEMORY[kind]
            return case.x

    with pretended("cuda"):
        record = robustkit.evaluate(
            "digits-cnn-at", "digits", Hungry(), n=32, tile=4, batch_size=32, device="cuda", doctor=False
        )
    assert sizes[0] == 32
    assert sizes[1] == 16
    assert set(sizes[2:]) <= {4, 8, 16}
    assert record.unknown == 0


def test_another_error_does_not():
    assert all(map(devices.out_of_memory, MEMORY.values()))
    assert not devices.out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not devices.out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_precision_and_autocast_are_set_for_the_model_and_put_back(device):
    cudnn, seen = torch.backends.cudnn, {}

    class Asked(nn.Module):
        def forward(self, x):
            seen.update(
                tf32=cudnn.allow_tf32, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
                precision=torch.get_float32_matmul_precision(), autocast=torch.is_autocast_enabled(device),
            )  # fmt: skip
            return x.flatten(1)[:, :3]

    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    cudnn.allow_tf32, cudnn.benchmark = True, True
    torch.set_float32_matmul_precision("high")
    try:
        with pretended(device), torch.autocast(device, dtype=torch.bfloat16), lent(model := Asked()):
            model(torch.zeros(1, 1, 2, 2, device=device))
        assert seen == {
            "tf32": False, "benchmark": False, "deterministic": True, "precision": "highest", "autocast": False
        }  # fmt: skip
        assert (cudnn.allow_tf32, cudnn.benchmark, torch.get_float32_matmul_precision()) == (True, True, "high")
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision("highest")


def test_random_words_need_no_products_of_64_bits():
    indices = torch.tensor([0, 1, 2**31, 2**32 - 1, 5_000_000_000])
    draws = streams.SampleDraws((0xFFFFFFFF, 0x12345678), indices, stream=0xFFFFFFFE)
    word = torch.tensor([0, 1, 2**16, 2**32 - 1, 0x9E3779B9])
    for factor in (0xD2511F53, 0xCD9E8D57):
        long, halves = streams._product(word, factor), streams._product_by_halves(word, factor)
        assert all(torch.equal(a, b) for a, b in zip(long, halves, strict=True))
        assert [int(h) << 32 | int(low) for h, low in zip(*halves, strict=True)] == [int(w) * factor for w in word]
    with pretended("mps"):
        there = streams.SampleDraws(draws.key, indices.to("mps"), draws.stream)
        assert torch.equal(there.uniform((40,)).cpu(), draws.uniform((40,)))
        torch.testing.assert_close(there.normal((40,)).cpu(), draws.normal((40,)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_judge_s_distance_is_float64_everywhere(device):
    threat = robustkit.ThreatModel("l2", 1.0)
    x = torch.rand(3, 3, 8, 8)
    adv = (x + 0.01).clamp(0, 1)
    with pretended(device) as log:
        found = threat.distance(x.to(device), adv.to(device))
        assert log.waited == (device == "mps")
        assert (found.dtype, found.device.type) == (torch.float64, "cpu" if device == "mps" else device)
        found = found.cpu()
    np.testing.assert_array_equal(found.numpy(), threat.distance(x, adv).numpy())
