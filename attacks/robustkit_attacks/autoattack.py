"""AutoAttack, the standard suite. Croce & Hein 2020, arXiv:2003.01690, section 5; L1 from arXiv:2103.01208."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustkit.api import Attack, Expected, ModelFacts, ThreatModel
from robustkit.errors import UsageError
from robustkit_attacks.apgd import APGD
from robustkit_attacks.fab import FAB
from robustkit_attacks.square import Square


@dataclass(frozen=True, slots=True)
class AutoAttack:
    """`standard`: APGD-CE, APGD-T, FAB-T, Square. `plus` adds restarts and untargeted forms. `rand`: APGD with EOT.

    `rand` drops what a randomised model could hide from, so it alone establishes no robust accuracy. `queries`,
    `steps` and `targets` are the reference's by default (9 targets; 5 for APGD-T of `standard` in L1, where APGD has
    several radii and APGD-CE 5 restarts); smaller ones make a weaker attack and show in the names.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = 100
    queries: int = 5000
    targets: int | None = None

    @property
    def never_alone(self) -> str:
        """Why this suite alone establishes no robust accuracy; empty if it can."""
        if self.version != "rand":
            return ""
        return "autoattack:version=rand leaves out targets, FAB and Square, and alone it is no measure; use adaptive"

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The attacks, in the reference's order."""
        if threat.norm == "l0":
            raise UsageError("autoattack has no l0 form; there are: linf, l2, l1")
        if self.version == "rand":
            if not facts.randomised:
                raise UsageError("autoattack:version=rand is for randomised models and weaker on others; use standard")
            return [Expected(APGD("ce", self.steps), 20), Expected(APGD("dlr", self.steps), 20)]
        sparse, plus = threat.norm == "l1", self.version == "plus"
        radii = 3 if sparse else 1
        restarts = 5 if sparse or plus else 1
        nearest = min(9 if self.targets is None else self.targets, facts.classes - 1)
        fewer = min(nearest, 5) if sparse and not plus and self.targets is None else nearest
        apgd_ce = APGD("ce", self.steps, restarts, radii=radii)
        apgd_t = APGD("dlr-targeted", self.steps, targets=fewer, radii=radii)
        fab_t = FAB(targets=nearest, steps=self.steps, minimise=False)
        square = Square(queries=self.queries)
        if plus:
            apgd_dlr = APGD("dlr", self.steps, restarts, radii=radii)
            fab = FAB(targeted=False, steps=self.steps, restarts=5, minimise=False)
            return [apgd_ce, apgd_dlr, fab, square, apgd_t, fab_t]
        return [apgd_ce, apgd_t, fab_t, square]
