"""What holds functions to their shapes while the tests run: beartype, on those annotations that give one.

Not on the others: what users hand in wrongly is refused by robustkit itself, with advice, which tests want to see.
"""

import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

PACKAGES = ("robustkit", "robustkit_attacks", "robustkit_defenses")


def checked(function: Callable) -> Callable:
    """The type checker of jaxtyping's import hook; it gets a stand-in with the signature of each function."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(hint))
