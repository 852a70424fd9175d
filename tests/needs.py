"""Marks of tests that need what not every machine has; the reason of a skip says how to get it."""

import pytest
import torch

from benchmarks.kit import ROOT

kit = pytest.mark.skipif(not (ROOT / "manifest.json").is_file(), reason="no kit; set ROBUSTKIT_KIT to its folder")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
