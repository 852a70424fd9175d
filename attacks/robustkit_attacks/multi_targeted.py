"""MultiTargeted: one run for each wrong class. Gowal, Uesato, Qin, Huang, Mann, Kohli 2019, arXiv:1910.09338.

The paper runs PGD on z_target − z_y once for each class; here each run is Auto-PGD, which needs no step size.
"""

from robustkit_attacks.apgd import APGD


def make(steps: int = 100, targets: int = 9, restarts: int = 1) -> APGD:
    """APGD on z_target − z_y, towards each of the `targets` nearest wrong classes (at most all of them)."""
    return APGD(steps=steps, targets=targets, restarts=restarts, loss="margin-targeted")
