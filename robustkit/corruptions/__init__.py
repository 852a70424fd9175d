"""Common corruptions, a threat model without an adversary: noise, blur, weather and digital damage in five severities.

`evaluate_corruptions` measures a network on a corruption archive (cifar10-c, cifar100-c, imagenet-c) or on any dataset
corrupted here. Source: D. Hendrycks and T. Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations", ICLR 2019, arXiv:1903.12261. Names load what they need when first used: a record needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "ALEXNET": "robustkit.records.corruption",
    "CorruptionRecord": "robustkit.records.corruption",
    "KINDS": "robustkit.corruptions.images",
    "corrupt": "robustkit.corruptions.images",
    "kind_named": "robustkit.corruptions.images",
    "CellDone": "robustkit.corruptions.evaluation",
    "CorruptionSet": "robustkit.corruptions.evaluation",
    "evaluate_corruptions": "robustkit.corruptions.evaluation",
}
__all__ = [
    "ALEXNET",
    "KINDS",
    "CellDone",
    "CorruptionRecord",
    "CorruptionSet",
    "corrupt",
    "evaluate_corruptions",
    "kind_named",
]

if TYPE_CHECKING:
    from robustkit.corruptions.evaluation import CellDone, CorruptionSet, evaluate_corruptions
    from robustkit.corruptions.images import KINDS, corrupt, kind_named
    from robustkit.records.corruption import ALEXNET, CorruptionRecord


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
