"""Contextual fusion (arXiv:2011.09526): foreground and background features, joined by a linear head.

`settings` is the defense as a spec names it, `model` the fused network, `fitting` how its head is fitted, `file` how a
head is kept, `make` how the bundled one was made.
"""

from robustkit_defenses.contextual_fusion.file import load_head, save_head
from robustkit_defenses.contextual_fusion.fitting import HeadPlan, fit_head, new_fusion, train_fusion
from robustkit_defenses.contextual_fusion.model import ContextFusion, Head, headless
from robustkit_defenses.contextual_fusion.settings import ContextualFusion

__all__ = [
    "ContextFusion",
    "ContextualFusion",
    "Head",
    "HeadPlan",
    "fit_head",
    "headless",
    "load_head",
    "new_fusion",
    "save_head",
    "train_fusion",
]
