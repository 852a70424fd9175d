"""One thread a worker: `make test` runs one worker a core, which is faster than threads that wait for each other."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def no_data_around(monkeypatch, tmp_path):
    """No data in the environment or the current folder, and none to be fetched."""
    for name in ("ROBUSTKIT_DATA", "ROBUSTKIT_KIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
