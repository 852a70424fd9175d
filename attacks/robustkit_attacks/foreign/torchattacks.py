"""Attacks of torchattacks: `torchattacks/PGD:steps=20`. The library is imported when an attack is made.

Given by the harness, not by options: eps (`max_epsilon`, `pixels`), the norm, the number of classes, the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustkit import spec
from robustkit.errors import UsageError
from robustkit_attacks.foreign import settings as reading
from robustkit_attacks.foreign.settings import About, Setting, Settings

if TYPE_CHECKING:
    from robustkit.api import Access, Case, Goal, Images, Norm

LIBRARY = "torchattacks"
_GIVEN = frozenset({"self", "model", "eps", "max_epsilon", "pixels", "norm", "n_classes", "seed", "verbose"})
_LINF: "frozenset[Norm]" = frozenset({"linf"})
_L2: "frozenset[Norm]" = frozenset({"l2"})
_L1: "frozenset[Norm]" = frozenset({"l1"})
_L0: "frozenset[Norm]" = frozenset({"l0"})
_ANY: "frozenset[Norm]" = _LINF | _L2 | _L1 | _L0

_ABOUT: Mapping[str, About] = {
    **dict.fromkeys(
        ("FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM", "TIFGSM", "Jitter",
         "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM"),
        About(_LINF, budget="eps"),
    ),
    **dict.fromkeys(("PIFGSM", "PIFGSMPP"), About(_LINF, budget="max_epsilon")),
    **dict.fromkeys(("PGDL2", "PGDRSL2"), About(_L2, budget="eps")),
    **dict.fromkeys(("APGD", "APGDT", "FAB", "AutoAttack"), About(_LINF | _L2, budget="eps")),
    "SPSA": About(_LINF, access="score", budget="eps"),
    "Square": About(_LINF | _L2, access="score", budget="eps"),
    "OnePixel": About(_L0, access="score", budget="pixels"),
    "Pixle": About(_L0, "minimal", "score"),
    "CW": About(_L2, "minimal"),
    "DeepFool": About(_L2, "minimal"),
    "EADEN": About(_L1 | _L2, "minimal"),
    "EADL1": About(_L1, "minimal"),
    "SparseFool": About(_L0, "minimal"),
    "JSMA": About(_L0, "minimal"),
    "GN": About(_ANY, "minimal", "decision"),
    "VANILA": About(_ANY, "bounded", "decision"),
}  # fmt: skip

UNUSABLE: Mapping[str, str] = {
    "LGV": "it trains copies of the network on a training set, which an attack here is not given",
    "MultiAttack": "it takes attacks, not settings; write (torchattacks/PGD)+(torchattacks/Square)",
}
UNSAFE: Mapping[str, str] = {}

_TEN_STEPS = "runs APGD, APGD-T and FAB for 10 steps, not 100: it is weaker than AutoAttack; use autoattack"
DEFECTS: Mapping[str, Sequence[str]] = {
    "AutoAttack": (_TEN_STEPS,),
    "CW": (
        "finds nothing once every logit is low (all shifted by −50 leave the decisions as they are, and success falls "
        "to 0 %): it masks the true class with 0; use cw",
        "c is fixed, not searched for; pixels that are exactly 0 or 1 do not move",
    ),
    "JSMA": ("untargeted, it seeks class (y + 1) mod 10 whatever the number of classes",),
    "DeepFool": (
        "comes to rest on the decision boundary itself, where its step and with it its overshoot are 0: most of its "
        "images are not misclassified; use foolbox/L2DeepFoolAttack or fab",
    ),
    "EADEN": ("crashes with max_iterations below 10",),
    "EADL1": ("crashes with max_iterations below 10",),
    "FAB": ("crashes in a targeted run, and in L1",),
    "TPGD": ("never looks at the labels",),
}


@dataclass(frozen=True, slots=True)
class TorchAttack:
    """An attack class of torchattacks with the settings that are not as by default."""

    attack: str = "PGD"
    settings: Settings = ()

    @property
    def spec(self) -> str:
        """The spec that makes it again."""
        return reading.text(LIBRARY, self.attack, self.settings)

    @property
    def library(self) -> str:
        """The library's import name."""
        return LIBRARY

    @property
    def norms(self) -> "frozenset[Norm]":
        """The norms it works in."""
        return _ABOUT[self.attack].norms

    @property
    def goal(self) -> "Goal":
        """Bounded, or minimal where eps is no argument of it."""
        return _ABOUT[self.attack].goal

    @property
    def access(self) -> "Access":
        """What it needs of the model."""
        return _ABOUT[self.attack].access

    def cost(self, classes: int) -> tuple[int, int]:
        """About how many passes; the library does not say."""
        passes = reading.passes(_settings(self.attack), self.settings)
        return passes, passes if self.access == "white-box" else 0

    def __call__(self, case: "Case") -> "Images":
        """One candidate for each sample, as the library gives it.

        Raises:
            UsageError: in a targeted run, for an attack that has no targeted form.
        """
        from robustkit_attacks.foreign.tiles import by_tiles

        return by_tiles(case, self._tile)

    def _tile(self, case: "Case", seed: int) -> "Images":
        threat = case.threat
        given = {
            _ABOUT[self.attack].budget: int(threat.limit) if threat.norm == "l0" else threat.eps,
            "norm": spec.NORMS[threat.norm].written,
            "n_classes": case.oracle.classes,
            "seed": seed,
        }
        make = _class(self.attack)
        named = {name: given[name] for name in reading.parameters(make) if name in given}
        attack = make(case.oracle.counted_module(), **named, **dict(self.settings))
        wanted = case.y
        if case.target is not None:
            if "targeted" not in attack.supported_mode:
                raise UsageError(f"{self.spec} has no targeted form; leave out the target, or choose another attack")
            attack.set_mode_targeted_by_label(quiet=True)
            wanted = case.target
        adv: Images = attack(case.x, wanted)
        return adv


class TorchAttacks:
    """The source `torchattacks`."""

    def names(self) -> Sequence[str]:
        """The classes that can be used."""
        return sorted(_ABOUT)

    def make(self, name: str, options: Mapping[str, str]) -> TorchAttack:
        """The attack with these settings.

        Raises:
            UsageError: for an unknown name or option, or if the library is not installed.
        """
        return TorchAttack(self._known(name), reading.read(options, _settings(name), f"{LIBRARY}/{name}"))

    def card(self, name: str) -> str:
        """What a user should know of it, known defects first."""
        about = _ABOUT[self._known(name)]
        steps = "alpha" in _settings(name) and "its step size alpha does not follow eps; set it, about eps / 4"
        return reading.card(
            f"{LIBRARY}/{name}",
            about,
            library=f"{LIBRARY} {reading.version(LIBRARY)}",
            targeted="yes" if _has_targeted_form(name) else "no, a targeted run is refused",
            unsafe=UNSAFE.get(name, ""),
            defects=DEFECTS.get(name, ()),
            settings=_settings(name),
            notes=[steps] if steps else [],
        )

    def _known(self, name: str) -> str:
        if name in UNUSABLE:
            raise UsageError(f"{LIBRARY}/{name} cannot be used here: {UNUSABLE[name]}")
        if name not in _ABOUT:
            raise UsageError(spec.suggest(name, _ABOUT, f"attack of {LIBRARY}"))
        return name


def _library() -> Any:
    return reading.library(LIBRARY, f"the attack source {LIBRARY!r}")


def _class(name: str) -> Any:
    return getattr(_library(), name)


def _settings(name: str) -> dict[str, Setting]:
    return reading.of(_class(name), _GIVEN, {})


def _has_targeted_form(name: str) -> bool:
    from torch import nn

    return "targeted" in _class(name)(nn.Linear(1, 1)).supported_mode
