"""Whether the user has said that foreign models may run code: `--trust`, or `trust=True` in Python.

A pickle can run any code when it is read, so weights are read with torch's `weights_only=True` and a checkpoint that
needs more is refused, unless the user trusts where it is from; so is a card that names a callable. The word is kept in
a context variable: it reaches every source, also one nested in another spec, without being an option of each, and it
ends with the call it was given.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from robustkit.errors import UsageError

_TRUSTED: ContextVar[bool] = ContextVar("robustkit_trusted", default=False)
_CARD: ContextVar[str] = ContextVar("robustkit_card", default="")


def trusted() -> bool:
    """Whether checkpoints may be unpickled and callables in cards called here: both run code of others."""
    return _TRUSTED.get()


@contextlib.contextmanager
def trusting(flag: bool) -> Iterator[None]:
    """Inside, `trusted()` is `flag`; a False inside a True holds too."""
    token = _TRUSTED.set(flag)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


@contextlib.contextmanager
def reading_card(name: str) -> Iterator[None]:
    """Inside, what is named is named by the card of `name`: callables are refused, unless it is trusted."""
    token = _CARD.set("" if trusted() else name)
    try:
        yield
    finally:
        _CARD.reset(token)


def check_code(code: str) -> None:
    """Refuse a callable that a card names which is not trusted.

    Raises:
        UsageError: within `reading_card`.
    """
    if card := _CARD.get():
        raise UsageError(
            f"the card of {card} names code to run, {code}; if you trust where it is from, add --trust "
            "(in Python trust=True)"
        )
