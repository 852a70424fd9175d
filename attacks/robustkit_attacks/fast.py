"""`fast`: a cascade that costs about a tenth of AutoAttack, and says itself where it may not be believed.

Short runs of several kinds, of which what is broken leaves at once; the nearest of what stands get more; then FAB and
Square each walk down the ranking of margins for as long as they break anything. It is not AutoAttack: on networks whose
gradients lie the walks break something, which is a finding, and calls for `autoattack` on what stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustkit.api import Attack, ModelFacts, ThreatModel
from robustkit_attacks import cohort
from robustkit_attacks.descent import Descent
from robustkit_attacks.fab_walk import FabWalk
from robustkit_attacks.square_walk import SquareWalk

_NEAR, _NEAREST = 0.25, 0.1  # shares of what stands that get more
_QUERIES = {"linf": 1000, "l2": 300, "l1": 300}  # Square in L2 breaks next to nothing


@dataclass(frozen=True, slots=True)
class Fast:
    """The cascade in Linf, L2 and L1.

    `cohort` samples, consecutive in the evaluated list, are ranked together, and it is part of what is asked: another
    cohort is another experiment. The larger it is, the less a sample costs.
    """

    cohort: int = cohort.COHORT

    @property
    def caution(self) -> str:
        """What every number of this suite must say."""
        return (
            "fast is not AutoAttack; its gap to it was measured on small networks only, see reports/fast; "
            "where it matters let autoattack run on what stands: --then autoattack"
        )

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The stages, in order.

        Raises:
            UsageError: in l0, and of a model whose answers are random or let no gradient through.
        """
        cohort.check_rankable("fast", threat, facts)
        size, sparse = self.cohort, threat.norm == "l1"
        near, nearest = (50, 100) if sparse else (30, 100)
        return [
            Descent(14 if sparse else 10, cohort=size),
            Descent(14 if sparse else 10, "margin-targeted", "random", targets=2, cohort=size),
            Descent(near if sparse else 20, "margin", "random", starts=2, share=_NEAR, cohort=size),
            Descent(near, "margin-targeted", "random", "auto", targets=3, share=_NEAR, cohort=size),
            Descent(nearest, "probability-margin", "random", "auto", starts=2, share=_NEAREST, cohort=size),
            Descent(near if sparse else 20, "margin", "adi", starts=4, share=_NEAREST, cohort=size),
            FabWalk(cohort=size),
            SquareWalk(queries=_QUERIES[threat.norm], cohort=size),
        ]
