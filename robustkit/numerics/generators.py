"""The global random generators, kept or seeded for a while: for networks and libraries that draw from them."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from robustkit.numerics import devices

_WITHIN: ContextVar[bool] = ContextVar("robustkit_generators_untouched", default=False)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Put torch's generators, the CPU's and that of `device`, back at the end."""
    with ExitStack() as stack:
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        stack.callback(devices.generator(device))
        yield


@contextmanager
def untouched() -> Iterator[None]:
    """Restore torch, numpy and random after, on the CPU and on CUDA where it is at work; nothing is seeded.

    Within another nothing is restored: what one spec makes of several draws on, as it would without.
    """
    if _WITHIN.get():
        yield
        return
    token, python_state, numpy_state = _WITHIN.set(True), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):  # type: ignore[no-untyped-call]
            yield
    finally:
        _WITHIN.reset(token)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (on the CPU and on `device`), numpy and random with `seed` < 2³², and restore them after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with kept(device):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
