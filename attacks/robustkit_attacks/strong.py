"""`strong`: AutoAttack, and before it what is known to go below it, at up to two and a half times its passes.

Everything that `fast` does to the nearest is done to all that stands: runs on both margin losses towards every class,
FAB from three starts with its nearest wrong points pressed back onto the ball, and a draw of Square besides
AutoAttack's.
AutoAttack's four attacks come last, so that `strong` can never be above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustkit.api import Attack, ModelFacts, ThreatModel
from robustkit_attacks import cohort
from robustkit_attacks.autoattack import AutoAttack
from robustkit_attacks.descent import Descent
from robustkit_attacks.fab_walk import FabWalk
from robustkit_attacks.square import Square


@dataclass(frozen=True, slots=True)
class Strong:
    """AutoAttack's four attacks on what a longer cascade leaves, in Linf, L2 and L1; never above AutoAttack."""

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The attacks, those that break most for their passes first.

        Raises:
            UsageError: in l0, and of a model whose answers are random or let no gradient through.
        """
        cohort.check_rankable("strong", threat, facts)
        classes = min(9, facts.classes - 1)
        steps = {"linf": 10, "l2": 10, "l1": 14}[threat.norm]
        every = FabWalk(classes, 60, min(3, classes), block=cohort.COHORT, patience=0, again=False)
        return [
            Descent(steps),
            Descent(steps, "margin-targeted", "random", targets=2),
            Descent(100, "probability-margin", "random", "auto", starts=2),
            Descent(100, "margin-targeted", "random", "auto", targets=classes),
            Descent(50, "margin", "point", "auto"),
            Descent(20, "margin", "adi", starts=4),
            every,
            replace(every, steps=30, start="adi"),
            replace(every, steps=30, start="point"),
            Square(queries=5000, rescale=True),
            *AutoAttack().attacks(threat, facts),
        ]
