"""robustkit: how robust an image classifier really is.

>>> import robustkit
>>> record = robustkit.evaluate("digits-cnn-at", "digits", attack="autoattack", eps=8 / 255)  # doctest: +SKIP

Importing this package loads no torch; its names load what they need when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
DISTRIBUTION = "robustkit-bench"  # "robustkit" on the index is another project; `robustkit_bench` looks for this line

_LAZY = {
    "evaluate": "robustkit.evaluation",
    "transfer": "robustkit.transfers",
    "load_model": "robustkit.models.sources",
    "load_dataset": "robustkit.datasets",
    "ThreatModel": "robustkit.api",
    "RunRecord": "robustkit.records.run",
    "TransferRecord": "robustkit.records.transfer",
    "RobustkitError": "robustkit.errors",
    "UsageError": "robustkit.errors",
}
__all__ = [
    "RobustkitError",
    "RunRecord",
    "ThreatModel",
    "TransferRecord",
    "UsageError",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_model",
    "transfer",
]

if TYPE_CHECKING:
    from robustkit.api import ThreatModel
    from robustkit.datasets import load_dataset
    from robustkit.errors import RobustkitError, UsageError
    from robustkit.evaluation import evaluate
    from robustkit.models.sources import load_model
    from robustkit.records.run import RunRecord
    from robustkit.records.transfer import TransferRecord
    from robustkit.transfers import transfer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'robustkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
