"""Whether what a plugin or a caller gives as an attack is one: all that it lacks, in one line, before anything runs."""

from collections.abc import Collection
from typing import Any, get_args

from robustkit.api import NORMS, Access, Attack, Goal, Suite
from robustkit.errors import UsageError

_FORM = "an attack is a frozen dataclass with norms, goal, access, cost(classes) and __call__(case)"


def check(made: Any, what: str) -> Any:
    """The attack or suite itself, if it is one.

    Raises:
        UsageError: for anything else; the message has all that is wrong.
    """
    if isinstance(made, Suite) and not isinstance(made, Attack):
        return made
    if found := faults(made):
        raise UsageError(f"{what} is no attack: {'; '.join(found)}; {_FORM}")
    return made


def faults(made: Any) -> list[str]:
    """All that keeps an object, or the objects of a class, from being an attack; empty if nothing does."""
    kind = made if isinstance(made, type) else type(made)
    found = []
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None:
        found.append(f"{kind.__name__} is no dataclass, so that nobody can know its settings")
    elif not parameters.frozen:
        found.append(f"{kind.__name__} is no frozen dataclass")
    if lacking := [name for name in ("norms", "goal", "access", "cost") if not hasattr(made, name)]:
        found.append(f"it has no {', no '.join(lacking)}")
    if not _defined(kind, "__call__"):
        found.append("it cannot be called with a case")
    if isinstance(made, type) or lacking:
        return found
    return [*found, *_wrong(made)]


def _defined(kind: type, name: str) -> bool:
    return any(name in vars(each) for each in kind.__mro__)


def _wrong(made: Any) -> list[str]:
    """Declarations that are there and say nothing that can be used."""
    found = []
    norms = made.norms
    if not isinstance(norms, Collection) or isinstance(norms, str) or not norms or set(norms) - set(NORMS):
        found.append(f"norms is {norms!r}, it must hold some of {', '.join(NORMS)}: frozenset({{'linf'}})")
    for name, known in (("goal", get_args(Goal)), ("access", get_args(Access))):
        if getattr(made, name) not in known:
            found.append(f"{name} is {getattr(made, name)!r}, it must be one of {', '.join(known)}")
    try:
        forwards, backwards = made.cost(10)
        fits = int(forwards) >= 0 and int(backwards) >= 0
    except (TypeError, ValueError):
        fits = False
    if not fits:
        found.append("cost(classes) must return the most forward and backward passes a sample takes: two whole numbers")
    return found
