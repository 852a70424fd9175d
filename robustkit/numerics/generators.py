"""The global random generators, seeded for a while and put back: for networks and libraries that draw from them."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from robustkit.numerics import devices


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Put torch's generators, the CPU's and that of `device`, back at the end."""
    with ExitStack() as stack:
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        stack.callback(devices.generator(device))
        yield


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
