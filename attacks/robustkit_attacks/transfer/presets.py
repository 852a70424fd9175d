"""The well-known transfer attacks by name: what is composed of which parts. `mi:steps=20` overrides a setting."""

from robustkit_attacks.transfer.attack import Transfer
from robustkit_attacks.transfer.cwa import CWA


def mi() -> Transfer:
    """MI-FGSM, on several surrogates by their mean logits."""
    return Transfer()


def ni() -> Transfer:
    """NI-FGSM."""
    return Transfer(gradient="ni")


def vmi() -> Transfer:
    """VMI-FGSM."""
    return Transfer(gradient="vmi")


def pgn() -> Transfer:
    """PGN."""
    return Transfer(gradient="pgn")


def di() -> Transfer:
    """DI²-FGSM with momentum."""
    return Transfer(input=("di",))


def ti() -> Transfer:
    """TI-FGSM with momentum."""
    return Transfer(input=("ti",))


def si() -> Transfer:
    """SIM."""
    return Transfer(input=("si",))


def admix() -> Transfer:
    """Admix."""
    return Transfer(input=("admix",))


def ssa() -> Transfer:
    """Spectrum simulation."""
    return Transfer(input=("ssa",))


def sia() -> Transfer:
    """Structure invariant attack."""
    return Transfer(input=("sia",))


def bsr() -> Transfer:
    """Block shuffle and rotation."""
    return Transfer(input=("bsr",))


def logit_ensemble() -> Transfer:
    """The mean logits, climbed with plain gradients."""
    return Transfer(momentum=0.0)


def loss_ensemble() -> Transfer:
    """The mean loss, climbed with plain gradients."""
    return Transfer(ensemble="loss", momentum=0.0)


def svre() -> Transfer:
    """SVRE with momentum."""
    return Transfer(ensemble="svre")


def adaea() -> Transfer:
    """AdaEA with momentum."""
    return Transfer(ensemble="adaea")


def smer() -> Transfer:
    """SMER."""
    return Transfer(ensemble="smer")


def mi_cwa() -> CWA:
    """SAM and CSE."""
    return CWA()


def mi_sam() -> CWA:
    """SAM alone."""
    return CWA(cse=False)


def mi_cse() -> CWA:
    """CSE alone."""
    return CWA(sam=False)


def vmi_cwa() -> CWA:
    """CWA whose members give the mean gradient of 8 neighbours."""
    return CWA(neighbours=8)


def ssa_cwa() -> CWA:
    """CWA whose members are seen through SSA."""
    return CWA(input=("ssa",))


def adam_cwa() -> CWA:
    """CWA with Adam outside."""
    return CWA(outer="adam")
