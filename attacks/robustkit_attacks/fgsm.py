"""FGSM, the fast gradient sign method. Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572, section 4."""

from dataclasses import dataclass
from typing import ClassVar

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.numerics import norms
from robustkit_attacks import losses


@dataclass(frozen=True, slots=True)
class FGSM:
    """One step of length eps along the sign (Linf) or the direction (L2) of the loss gradient."""

    loss: losses.Name = "ce"

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __call__(self, case: Case) -> Images:
        """The stepped images."""
        grad = case.oracle.gradient(case.x, losses.make(self.loss, case.y, case.target)).grad
        step = norms.steepest(grad, case.threat.norm)
        return case.threat.project(case.x, case.x + case.threat.eps * step)

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward, one backward."""
        return 1, 1
