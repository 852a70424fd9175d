"""Attacks of foolbox: `foolbox/LinfPGD:steps=40`. The library is imported when an attack is made.

Given by the harness, not by options: eps, the distance, HopSkipJump's constraint, starting points, and what
DatasetAttack is fed.
What an attack of fixed eps returns before foolbox clips it is what the judge sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from robustkit import spec
from robustkit.errors import UsageError
from robustkit_attacks.foreign import settings as reading
from robustkit_attacks.foreign.settings import About, Setting, Settings

if TYPE_CHECKING:
    from robustkit.api import Access, Case, Goal, Images, Norm

LIBRARY = "foolbox"
_GIVEN = frozenset({"self", "distance", "constraint", "init_attack", "tensorboard", "channel_axis"})
_DEFAULTS = {"steps": 10}  # VirtualAdversarialAttack has none
_OF_P: Mapping[float, "Norm"] = {0: "l0", 1: "l1", 2: "l2", float("inf"): "linf"}

_NAMES = (
    "BinarizationRefinementAttack", "BinarySearchContrastReductionAttack", "BoundaryAttack", "DDNAttack",
    "DatasetAttack", "EADAttack", "GaussianBlurAttack", "GenAttack", "HopSkipJumpAttack", "InversionAttack",
    "L0BrendelBethgeAttack", "L0FMNAttack", "L1AdamBasicIterativeAttack", "L1AdamProjectedGradientDescentAttack",
    "L1BasicIterativeAttack", "L1BrendelBethgeAttack", "L1FMNAttack", "L1FastGradientAttack",
    "L1MomentumIterativeFastGradientMethod", "L1ProjectedGradientDescentAttack", "L2AdamBasicIterativeAttack",
    "L2AdamProjectedGradientDescentAttack", "L2AdditiveGaussianNoiseAttack", "L2AdditiveUniformNoiseAttack",
    "L2BasicIterativeAttack", "L2BrendelBethgeAttack", "L2CarliniWagnerAttack",
    "L2ClippingAwareAdditiveGaussianNoiseAttack", "L2ClippingAwareAdditiveUniformNoiseAttack",
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack", "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
    "L2ContrastReductionAttack", "L2DeepFoolAttack", "L2FMNAttack", "L2FastGradientAttack",
    "L2MomentumIterativeFastGradientMethod", "L2ProjectedGradientDescentAttack",
    "L2RepeatedAdditiveGaussianNoiseAttack", "L2RepeatedAdditiveUniformNoiseAttack", "LInfFMNAttack",
    "LinearSearchBlendedUniformNoiseAttack", "LinearSearchContrastReductionAttack", "LinfAdamBasicIterativeAttack",
    "LinfAdamProjectedGradientDescentAttack", "LinfAdditiveUniformNoiseAttack", "LinfBasicIterativeAttack",
    "LinfDeepFoolAttack", "LinfFastGradientAttack", "LinfMomentumIterativeFastGradientMethod",
    "LinfProjectedGradientDescentAttack", "LinfRepeatedAdditiveUniformNoiseAttack", "LinfinityBrendelBethgeAttack",
    "NewtonFoolAttack", "PointwiseAttack", "SaltAndPepperNoiseAttack", "SparseL1DescentAttack", "SpatialAttack",
    "VirtualAdversarialAttack",
)  # fmt: skip
_SCORE = ("GenAttack",)
_DECISION = ("Boundary", "HopSkipJump", "Pointwise", "Noise", "Contrast", "Blur", "Inversion", "Dataset", "Spatial",
             "Binarization")  # fmt: skip

_NUMBA = frozenset(
    {"L0BrendelBethgeAttack", "L1BrendelBethgeAttack", "L2BrendelBethgeAttack", "LinfinityBrendelBethgeAttack"}
)
UNUSABLE: Mapping[str, str] = {
    "Attack": "it is the base class of the others",
    "BinarizationRefinementAttack": "it refines another attack's result on a model that binarises its input",
}
UNSAFE: Mapping[str, str] = dict.fromkeys(
    ("LinfAdditiveUniformNoiseAttack", "LinfRepeatedAdditiveUniformNoiseAttack", "SparseL1DescentAttack"),
    "some of its images leave the ball, which makes those samples UNKNOWN",
)
DEFECTS: Mapping[str, Sequence[str]] = {
    "GenAttack": ("has no untargeted form: such a run is refused",),
    "DatasetAttack": ("draws from the other images of its tile: what it finds depends on them, and hardly on eps",),
    "L0FMNAttack": ("counts values, not pixels; the distance shown here counts pixels",),
}


@dataclass(frozen=True, slots=True)
class FoolboxAttack:
    """An attack class of foolbox with the settings that are not as by default."""

    attack: str = "LinfProjectedGradientDescentAttack"
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
        return _about(self.attack).norms

    @property
    def goal(self) -> "Goal":
        """Bounded for foolbox's attacks of fixed eps, else minimal."""
        return _about(self.attack).goal

    @property
    def access(self) -> "Access":
        """What it needs of the model."""
        return _about(self.attack).access

    def cost(self, classes: int) -> tuple[int, int]:
        """About how many passes; the library does not say."""
        passes = reading.passes(_settings(self.attack), self.settings)
        return passes, passes if self.access == "white-box" else 0

    def __call__(self, case: "Case") -> "Images":
        """One candidate for each sample, as the library gives it.

        Raises:
            UsageError: for an attack that has no form for such a (targeted, untargeted) run.
        """
        from robustkit_attacks.foreign.tiles import by_tiles

        return by_tiles(case, self._tile)

    def _tile(self, case: "Case", seed: int) -> "Images":
        make = _class(self.attack)
        if not _needs_start(make):
            return self._run(case, None)
        start = self._starting_points(case)
        found = case.reached(case.oracle.outputs(start).logits)
        adv = case.x.clone()
        if found.any():  # the library would give up on all for one image without a start
            adv[found] = self._run(case.select(found), start[found])
        return adv

    def _starting_points(self, case: "Case") -> "Images":
        attacks = _library().attacks
        noise = attacks.SaltAndPepperNoiseAttack() if self.attack == "PointwiseAttack" else (
            attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
        )  # fmt: skip
        start: Images = noise.run(_model(case), case.x, _criterion(case))
        return start

    def _run(self, case: "Case", start: "Images | None") -> "Images":
        make, fixed = _class(self.attack), self.goal == "bounded"
        given: dict[str, Any] = {}
        if "constraint" in reading.parameters(make):
            given["constraint"] = case.threat.norm
        attack, model = make(**{**given, **_required(self.attack), **dict(self.settings)}), _model(case)
        if self.attack == "DatasetAttack":
            attack.feed(model, case.x)
        more = {} if start is None else {"starting_points": start}
        try:
            raw, _, _ = attack(
                model, case.x, _criterion(case), epsilons=case.threat.eps if fixed else None, **more
            )  # fmt: skip
        except ValueError as error:
            if "unsupported criterion" not in str(error):
                raise
            kind = "untargeted" if case.target is None else "targeted"
            raise UsageError(f"{self.spec} has no {kind} form; choose another attack") from error
        adv: Images = raw
        return adv


class Foolbox:
    """The source `foolbox`."""

    def names(self) -> Sequence[str]:
        """The classes that can be used."""
        return sorted(name for name in _NAMES if name not in UNUSABLE)

    def make(self, name: str, options: Mapping[str, str]) -> FoolboxAttack:
        """The attack with these settings; foolbox's short names (`LinfPGD`) work too.

        Raises:
            UsageError: for an unknown name or option, or if the library is not installed.
        """
        name = self._known(name)
        return FoolboxAttack(name, reading.read(options, _settings(name), f"{LIBRARY}/{name}"))

    def card(self, name: str) -> str:
        """What a user should know of it, known defects first."""
        name = self._known(name)
        return reading.card(
            f"{LIBRARY}/{name}",
            _about(name),
            library=f"{LIBRARY} {reading.version(LIBRARY)}",
            targeted="if the class supports it; else the run is refused",
            unsafe=UNSAFE.get(name, ""),
            defects=DEFECTS.get(name, ()),
            settings=_settings(name),
        )

    def _known(self, name: str) -> str:
        if name in UNUSABLE:
            raise UsageError(f"{LIBRARY}/{name} cannot be used here: {UNUSABLE[name]}")
        found = name if name in _NAMES else getattr(getattr(_library().attacks, name, None), "__name__", "")
        if found in _NUMBA:
            reading.library("numba", f"{LIBRARY}/{found}", "numba")
        if found not in _NAMES:
            raise UsageError(spec.suggest(name, self.names(), f"attack of {LIBRARY}"))
        return found


def _library() -> Any:
    return reading.library(LIBRARY, f"the attack source {LIBRARY!r}")


def _class(name: str) -> Any:
    return getattr(_library().attacks, name)


def _settings(name: str) -> dict[str, Setting]:
    return reading.of(_class(name), _GIVEN, _DEFAULTS)


@cache
def _about(name: str) -> About:
    """Norms and goal from the class: its distance, and whether it takes an eps or seeks the nearest."""
    base, make = _library().attacks.base, _class(name)
    distance = getattr(make, "distance", None)
    if name == "HopSkipJumpAttack":  # its `distance` says L1; its constraint is one of these
        norms: frozenset[Norm] = frozenset({"linf", "l2"})
    elif distance is None or issubclass(make, base.FlexibleDistanceMinimizationAttack):
        norms = frozenset(_OF_P.values())
    else:
        known: Any = make().distance if isinstance(distance, property) else distance
        norms = frozenset({_OF_P[known.p]})
    access: Access = "white-box"
    if name in _SCORE:
        access = "score"
    elif any(part in name for part in _DECISION):
        access = "decision"
    fixed = issubclass(make, base.FixedEpsilonAttack)
    return About(norms, "bounded" if fixed else "minimal", access, "epsilons" if fixed else "")


def _required(name: str) -> dict[str, Any]:
    """The settings that the class itself has no default for."""
    return {
        key: _DEFAULTS[key]
        for key, parameter in reading.parameters(_class(name)).items()
        if key in _DEFAULTS and parameter.default is parameter.empty
    }


def _needs_start(make: Any) -> bool:
    """Whether it walks from an image that is already wrong; the FMN attacks can, but need not."""
    return "init_attack" in reading.parameters(make) and "FMN" not in make.__name__


def _model(case: "Case") -> Any:
    bounds = (case.threat.low, case.threat.high)
    return _library().PyTorchModel(case.oracle.counted_module(), bounds=bounds, device=case.x.device)


def _criterion(case: "Case") -> Any:
    library = _library()
    if case.target is None:
        return library.criteria.Misclassification(case.y)
    return library.criteria.TargetedMisclassification(case.target)
