"""The corner of the Linf ball that lowers the margin, to first order."""

from dataclasses import dataclass
from typing import ClassVar

from robustkit.numerics import rows


@dataclass(frozen=True)
class Corner:
    """One signed step on the margin."""

    norms: ClassVar = frozenset({"linf"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"

    def __call__(self, case):
        """The stepped images."""
        gradient = case.oracle.gradient(case.x, lambda o: -rows.margin(o.logits, case.y, case.target))
        return case.threat.project(case.x, case.x + case.threat.eps * gradient.grad.sign())

    def cost(self, classes):
        """One forward, one backward."""
        return 1, 1
