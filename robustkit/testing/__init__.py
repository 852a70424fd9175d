"""What tests of plugins need: a case to attack without the engine, the contract as a check, and pretended devices."""

from robustkit.testing.conformance import Attacked, Failure, attack_batch, check_attack
from robustkit.testing.pretended import Log, pretended

__all__ = ["Attacked", "Failure", "Log", "attack_batch", "check_attack", "pretended"]
