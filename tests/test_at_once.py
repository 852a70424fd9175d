"""Two at a time: threads of a process take turns, and a folder in which a process is at work is left alone."""

import copy
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from robustkit import UsageError, evaluate, transfer
from robustkit.audit.run import audit
from robustkit.cache import pins, shelf
from robustkit.certificates.smoothing import evaluate_certificate
from robustkit.cli import main
from robustkit.corruptions import evaluate_corruptions
from robustkit.doctor import diagnose
from robustkit.locks import at_work
from robustkit.models.turns import one_at_a_time
from robustkit.study import grammar
from robustkit.study.run import run as run_study
from robustkit.training.recipes import Schedule
from robustkit.training.run import Request, train
from tests import toys

X = torch.rand(16, 1, 4, 4, generator=toys.seeded(3))
Y = toys.Linear()(X).argmax(1).detach()


def dropping():
    """A network that is nothing like itself in training mode."""
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), toys.Linear()).train()


def noisy():
    return toys.Randomised(dropping(), 0.1).train()


def facts(model):
    record = evaluate(model, (X, Y), "(fgsm)+(square:queries=4)", eps=0.1, draws=3, doctor=False)
    return record.job, record.to_frame().to_json(), record.attacks_frame().to_json()


def assert_threads_agree(make, *, shared, threads, each):
    models = [make()] * threads if shared else [make() for _ in range(threads)]
    before = copy.deepcopy(models[0])
    alone = facts(make())

    def several(model):
        return [facts(model) for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(several, models):
            assert found == [alone] * each
    for model in models:
        assert all(part.training for part in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(v, before.state_dict()[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize("shared", [True, False], ids=["one module", "a module each"])
@pytest.mark.parametrize("make", [dropping, noisy])
def test_threads_find_what_one_finds_after_another_and_leave_the_module_as_it_was(make, shared):
    assert_threads_agree(make, shared=shared, threads=3, each=1)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["one module", "a module each"])
@pytest.mark.parametrize("make", [dropping, noisy])
def test_six_threads_of_fifty_evaluations_find_what_one_finds_after_another(make, shared):
    assert_threads_agree(make, shared=shared, threads=6, each=50)


LENDERS = {
    "evaluate": lambda net: evaluate(net, (X, Y), "fgsm", eps=0.1),
    "audit": lambda net: audit(net, (X, Y), eps=0.1, n=2),
    "transfer": lambda net: transfer({"a": net}, {"b": toys.Linear(seed=1)}, "fgsm", (X, Y), eps=0.1),
    "corruptions": lambda net: evaluate_corruptions(net, (X, Y), ["brightness"], [1]),
    "certify": lambda net: evaluate_certificate(net, (X, Y), n=1, first=2, draws=10),
    "doctor": lambda net: diagnose(net, X, Y),
}


@pytest.mark.parametrize("name", LENDERS)
def test_whatever_lends_a_module_waits_for_its_turn_and_says_so(name, caplog):
    net, began, done = dropping(), threading.Event(), threading.Event()

    def work():
        began.set()
        try:
            LENDERS[name](net)
        finally:
            done.set()

    with caplog.at_level(logging.WARNING, "robustkit"):
        with one_at_a_time():
            thread = threading.Thread(target=work)
            thread.start()
            began.wait()
            assert not done.wait(0.3)
            assert all(part.training for part in net.modules())
        thread.join()
    assert done.is_set()
    assert ["waits for its turn" in message for message in caplog.messages] == [True]
    assert all(part.training for part in net.modules())


def test_a_module_is_given_back_whatever_happens():
    net = dropping()
    net.register_full_backward_pre_hook(lambda module, grad: None)
    hooks = {name: dict(value) for name, value in vars(net).items() if name.endswith("hooks")}

    class Ruins(toys._Settings):
        def __call__(self, case):
            module = case.oracle.module
            module._modules.clear()
            module._backward_pre_hooks.clear()
            module.forward = None
            raise KeyboardInterrupt

    names = list(net._modules)
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, (X, Y), Ruins(), eps=0.1)
    assert list(net._modules) == names
    assert "forward" not in vars(net)
    assert {name: dict(value) for name, value in vars(net).items() if name.endswith("hooks")} == hooks
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad for p in net.parameters())


HOLDER = """
import sys
from robustkit.locks import at_work
with at_work(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "in\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


STUDY = {"models": ["digits-cnn"], "dataset": "digits", "attacks": ["fgsm"], "eps": [0.1], "n": 8}
COMMANDS = {
    "eval": lambda out: evaluate(toys.Linear(), (X, Y), "fgsm", eps=0.1, out=out, fresh=True),
    "transfer": lambda out: transfer(
        {"a": toys.Linear()}, {"b": toys.Linear(seed=1)}, "fgsm", (X, Y), eps=0.1, out=out, fresh=True
    ),
    "corruptions": lambda out: evaluate_corruptions(toys.Linear(), (X, Y), ["brightness"], [1], out=out, fresh=True),
    "certify": lambda out: evaluate_certificate(toys.Linear(), (X, Y), n=1, first=2, draws=10, out=out, fresh=True),
    "train": lambda out: train(Request("standard", "digits-cnn", "digits", schedule=Schedule(1)), out, fresh=True),
    "study": lambda out: run_study(grammar.parse(STUDY, "study"), out, fresh=True),
}


def picture(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_in_which_somebody_is_at_work_is_refused_and_not_touched(name, tmp_path):
    folder = tmp_path / "run"
    with at_work(folder):
        (folder / ".run.json.live.part").write_text("{")
        (folder / "journal").mkdir()
        (folder / "journal" / ".shard-00000-01.npz.live.part").write_text("PK")
        before = picture(folder)
        wanted = rf"PID {os.getpid()} on host {socket.gethostname()} has been at work in .*run since \d{{4}}-.*--out"
        with pytest.raises(UsageError, match=wanted):
            COMMANDS[name](folder)
        assert picture(folder) == before


def test_another_process_s_folder_is_refused_with_exit_2_and_free_once_it_is_killed(tmp_path):
    folder = tmp_path / "run"
    command = ["eval", "--model", "digits-cnn", "--attack", "fgsm", "-n", "8", "--no-doctor", "--out", str(folder)]
    with another_process(folder) as child:
        part = folder / ".job.json.left.part"
        part.write_text("{")
        before = picture(folder)
        refused = CliRunner().invoke(main, command)
        assert refused.exit_code == 2
        assert f"PID {child.pid} on host {socket.gethostname()} has been at work in {folder} since " in refused.output
        assert picture(folder) == before
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert CliRunner().invoke(main, command).exit_code == 0
    assert not [path.name for path in folder.rglob(".*")]  # no lock, no note, no stale part


def test_a_folder_that_a_refused_request_made_is_gone_again(tmp_path):
    with pytest.raises(UsageError), at_work(tmp_path / "new"):
        raise UsageError("for a reason")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; --out wants a folder"), at_work(tmp_path / "file"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_download_that_is_under_way_is_not_removed_and_a_second_one_waits_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path))
    part = tmp_path / "models" / "net.pt.part"
    part.parent.mkdir()
    part.write_bytes(b"half")
    entered = threading.Event()

    def second():
        with pins.locked(tmp_path, "models/net.pt"):
            entered.set()

    with caplog.at_level(logging.WARNING, "robustkit"):
        with pins.locked(tmp_path, "models/net.pt"):
            with pytest.raises(UsageError, match=rf"PID {os.getpid()} .* at work on models/net.pt in the cache since"):
                shelf.remove(shelf.items("models"))
            assert part.read_bytes() == b"half"
            thread = threading.Thread(target=second)
            thread.start()
            assert not entered.wait(0.5)
        entered.wait()
        thread.join()
    assert [message for message in caplog.messages if f"PID {os.getpid()}" in message and "waiting" in message]
    shelf.remove(shelf.items("models"))
    assert not part.exists()
    assert Path(tmp_path, ".locks").is_dir()
