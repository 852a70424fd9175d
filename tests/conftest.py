"""For all tests: one thread a worker, shapes checked, and a fixture without data."""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import shapes

torch.set_num_threads(1)  # `make test` runs one worker a core, which is faster than threads that wait for each other
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as nohup and `&` leave it, and commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # no test fails because another process holds a core
os.environ.pop("COLUMNS", None)  # a worker has one, and what is printed would be as wide as this terminal
shapes.install()  # before any of the packages is imported


@pytest.fixture
def no_data_around(monkeypatch, tmp_path):
    """No data in the environment or the current folder, and none to be fetched."""
    for name in ("ROBUSTKIT_DATA", "ROBUSTKIT_KIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
