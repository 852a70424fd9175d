"""What holds functions to their shapes while the tests run: jaxtyping and beartype, on those annotations that give one.

Not on the others: what users hand in wrongly is refused by robustkit itself, with advice, which tests want to see.
"""

import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

PACKAGES = ("robustkit", "robustkit_attacks", "robustkit_defenses")
# Called for each tile and each norm, and by functions that are checked: with them the tests take half as long again.
LEFT_OUT = ("robustkit.numerics.rows", "robustkit.models.oracle", "robustkit.models.capabilities")


def install() -> None:
    """Check the packages, which must not have been imported yet."""
    jaxtyping.install_import_hook(PACKAGES, "tests.shapes.checked")
    wrap = jaxtyping.jaxtyped

    # The hook wraps every function, and a call of a wrapped one costs 0.2 ms: those without a shape stay as they are.
    def jaxtyped(**options: Any) -> Callable:
        return lambda made: wrap(made, **options) if made.__module__ not in LEFT_OUT and _shapes(made) else made

    jaxtyping.jaxtyped = jaxtyped


def checked(function: Callable) -> Callable:
    """The type checker of the hook; it gets a stand-in with the signature of each function."""
    function.__annotations__ = _shapes(function)
    return beartype(function)


def _shapes(annotated: Any) -> dict[str, Any]:
    """The annotations of a function or a class that give a shape."""
    return {name: hint for name, hint in annotated.__annotations__.items() if _has_shape(hint)}


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    # What a callable takes and gives shows only when it is called.
    return typing.get_origin(hint) is not Callable and any(_has_shape(part) for part in typing.get_args(hint))
