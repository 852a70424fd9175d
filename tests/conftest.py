"""One thread a worker: `make test` runs one worker a core, which is faster than threads that wait for each other."""

import torch

torch.set_num_threads(1)
