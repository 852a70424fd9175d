"""Contextual fusion: foreground and background features, joined by a linear head. One package, four files.

`settings` is the defense as a spec names it, `model` the fused network, `fitting` how its head is fitted, `file` how a
head is kept. Sources: Akumalla, Haney, Bazhenov 2020, arXiv:2011.09526; the follow-up arXiv:2406.05120.

The papers' claims (more accurate under blur and FGSM without adversarial training) are about an attack that is likely
computed on the foreground network alone. Which network it is, the strengths and α stand in no source we could check.
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
