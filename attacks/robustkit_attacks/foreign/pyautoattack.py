"""AutoAttack by its authors' code, as packaged: `pyautoattack/standard`, `plus`, `rand`.

It has no settings here: a version is what it is known by. The seed and the number of classes are the run's.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustkit import spec
from robustkit.errors import UsageError
from robustkit_attacks.foreign import settings as reading
from robustkit_attacks.foreign.settings import About

if TYPE_CHECKING:
    from robustkit.api import Access, Case, Goal, Images, Norm

LIBRARY = "pyautoattack"
_VERSIONS = ("plus", "rand", "standard")
_ABOUT = About(frozenset({"linf", "l2", "l1"}), budget="eps")
_MOST = {"standard": 6000, "plus": 20000, "rand": 4000}  # about how many passes

DEFECTS = (
    "at one seed the result depends on the batch; here a batch is the run's tile",
    "crashes with fewer than 4 classes (but for rand with 3), after only logging the reason; use autoattack",
    "removes a debugger's or a coverage tool's tracer; here it is put back",
)


@dataclass(frozen=True, slots=True)
class PyAutoAttack:
    """A version of AutoAttack: standard, plus or rand."""

    version: str = "standard"

    @property
    def spec(self) -> str:
        """The spec that makes it again."""
        return f"{LIBRARY}/{self.version}"

    @property
    def library(self) -> str:
        """The library's import name."""
        return LIBRARY

    @property
    def norms(self) -> "frozenset[Norm]":
        """The norms it works in."""
        return _ABOUT.norms

    @property
    def goal(self) -> "Goal":
        """Bounded."""
        return _ABOUT.goal

    @property
    def access(self) -> "Access":
        """White-box."""
        return _ABOUT.access

    def cost(self, classes: int) -> tuple[int, int]:
        """About how many passes; the library does not say."""
        return _MOST[self.version], _MOST[self.version]

    def __call__(self, case: "Case") -> "Images":
        """One candidate for each sample, as the library gives it.

        Raises:
            UsageError: in a targeted run.
        """
        from robustkit_attacks.foreign.tiles import by_tiles

        if case.target is not None:
            raise UsageError(f"{self.spec} has no targeted form; leave out the target, or choose another attack")
        return by_tiles(case, self._tile)

    def _tile(self, case: "Case", seed: int) -> "Images":
        attack = _library().AutoAttack(
            case.oracle.counted_module(),
            norm=spec.NORMS[case.threat.norm].written,
            eps=case.threat.eps,
            seed=seed,
            version=self.version,
            device=case.x.device,
        )
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, case.oracle.classes - 1)
        tracer = sys.gettrace()
        try:
            adv, _ = attack.run_standard_evaluation(case.x, case.y, batch_size=len(case.x))
        finally:
            sys.settrace(tracer)
        images: Images = adv
        return images


class PyAutoAttacks:
    """The source `pyautoattack`."""

    def names(self) -> Sequence[str]:
        """The versions."""
        return _VERSIONS

    def make(self, name: str, options: Mapping[str, str]) -> PyAutoAttack:
        """The version, which has no settings.

        Raises:
            UsageError: for an unknown name, an option, or if the library is not installed.
        """
        self._known(name)
        reading.read(options, {}, f"{LIBRARY}/{name}")
        _library()
        return PyAutoAttack(name)

    def card(self, name: str) -> str:
        """What a user should know of it, known defects first."""
        self._known(name)
        _library()
        return reading.card(
            f"{LIBRARY}/{name}",
            _ABOUT,
            library=f"{LIBRARY} {reading.version(LIBRARY)}",
            targeted="no, a targeted run is refused",
            unsafe="",
            defects=DEFECTS,
            settings={},
        )

    def _known(self, name: str) -> None:
        if name not in _VERSIONS:
            raise UsageError(spec.suggest(name, _VERSIONS, f"attack of {LIBRARY}"))


def _library() -> Any:
    return reading.library(LIBRARY, f"the attack source {LIBRARY!r}")
