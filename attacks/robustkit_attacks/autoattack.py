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
    `steps` and `targets` are the reference's by default; smaller ones make a weaker attack and show in the names.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = 100
    queries: int = 5000
    targets: int = 9

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The attacks, in the reference's order."""
        if threat.norm not in ("linf", "l2"):
            raise UsageError(f"autoattack has no {threat.norm} form here yet; there are: linf, l2")
        targets = min(self.targets, facts.classes - 1)
        targeted = APGD("dlr-targeted", self.steps, targets=targets)
        fab_t = FAB(targets=targets, steps=self.steps, minimise=False)
        square = Square(queries=self.queries)
        if self.version == "rand":
            return [Expected(APGD("ce", self.steps), 20), Expected(APGD("dlr", self.steps), 20)]
        if self.version == "plus":
            return [
                APGD("ce", self.steps, restarts=5),
                APGD("dlr", self.steps, restarts=5),
                FAB(targeted=False, steps=self.steps, restarts=5, minimise=False),
                square,
                targeted,
                fab_t,
            ]
        return [APGD("ce", self.steps), targeted, fab_t, square]
