"""What a library's attack can be told: read from its signature, typed, and shown. Needs no torch and no library."""

import importlib
import importlib.metadata
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from robustkit import spec
from robustkit.errors import UsageError

if typing.TYPE_CHECKING:
    from robustkit.api import Access, Goal, Norm

Settings = tuple[tuple[str, Any], ...]
# Whole numbers in a signature that has no types, where a fraction is meant to be possible.
_FRACTIONS = frozenset({"c", "kappa", "lam", "nsig", "scale"})
# Settings whose product is how often a sample goes through the network, roughly.
_LOOPS = frozenset(
    {
        "N", "binary_search_steps", "eot_iter", "m", "max_iterations", "n_queries", "n_restarts", "nb_iter",
        "nb_sample", "noise_batch_size", "num_iter_set", "popsize", "population", "repeats", "restarts", "steps",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a library's attack: its default and its type."""

    default: Any
    hint: Any


class About(NamedTuple):
    """What this project knows of a library's attack. `budget` is the argument that takes eps; empty if none does."""

    norms: "frozenset[Norm]"
    goal: "Goal" = "bounded"
    access: "Access" = "white-box"
    budget: str = ""


def library(module: str, what: str, install: str = "robustkit-bench[attacks]") -> Any:
    """Import a library that `what` needs.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{what} needs {error.name!r}, which is not installed: pip install '{install}'") from error


def version(distribution: str) -> str:
    """The installed version of a library."""
    return importlib.metadata.version(distribution)


def parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What a class is made with."""
    return inspect.signature(make).parameters


def of(make: Callable[..., Any], given: Collection[str], defaults: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings of a class, without those that the harness gives; `defaults` serves where it has none."""
    found = {}
    for name, parameter in parameters(make).items():
        if name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = defaults[name] if parameter.default is parameter.empty else parameter.default
        found[name] = Setting(default, _hint(name, parameter.annotation, default))
    return found


def _hint(name: str, annotation: Any, default: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        if isinstance(default, tuple):
            return tuple[type(default[0]), ...]  # type: ignore[misc]
        return float if name in _FRACTIONS else type(default)
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    if parts and all(typing.get_origin(part) is Literal for part in parts):
        return Literal[tuple(value for part in parts for value in typing.get_args(part))]
    return annotation


def read(options: Mapping[str, str], settings: Mapping[str, Setting], what: str) -> Settings:
    """Typed settings from option text, in the order of the signature, without those that are as by default.

    Raises:
        UsageError: for a key that the attack does not have, or a value that is not of its type.
    """
    for key in options:
        if key not in settings:
            raise UsageError(f"{what}: " + spec.suggest(key, settings, "option"))
    typed = {key: spec.typed(text, settings[key].hint, f"{what}: {key}") for key, text in options.items()}
    return tuple((key, typed[key]) for key in settings if key in typed and typed[key] != settings[key].default)


def text(source: str, name: str, settings: Settings) -> str:
    """The spec that makes an attack again."""
    return str(spec.Spec(source, name, {key: spec.text_of(value) for key, value in settings}))


def passes(settings: Mapping[str, Setting], chosen: Settings) -> int:
    """About how often a sample goes through the network; libraries do not say, so progress is all it serves."""
    now = {**{name: setting.default for name, setting in settings.items()}, **dict(chosen)}
    product = 1
    for name, value in now.items():
        product *= max(1, value) if name in _LOOPS and isinstance(value, int) else 1
    return product


def card(
    title: str,
    about: About,
    *,
    library: str,
    targeted: str,
    unsafe: str,
    defects: Sequence[str],
    settings: Mapping[str, Setting],
    notes: Iterable[str] = (),
) -> str:
    """What a user should know of an attack, known defects first."""
    lines = [f"{title}, done by {library}"]
    if defects:
        lines += ["", "Known defects:", *(f"  - {defect}" for defect in defects)]
    level = f"not judge-safe: {unsafe}" if unsafe else "judge-safe (batch independence is not promised)"
    eps = "is the run's" if about.budget else "bounds nothing here; what ends beyond it leaves the sample standing"
    lines += [
        "",
        f"conformance  {level}",
        f"norms        {', '.join(sorted(about.norms))}",
        f"goal         {about.goal}",
        f"access       {about.access}",
        f"targeted     {targeted}",
        f"eps          {eps}",
    ]
    lines += ["", "Settings:" if settings else "No settings."]
    width = max((len(name) for name in settings), default=0)
    lines += [f"  {name:<{width}}  {spec.text_of(setting.default)}" for name, setting in settings.items()]
    notes = list(notes)
    return "\n".join([*lines, *([""] if notes else []), *notes])
