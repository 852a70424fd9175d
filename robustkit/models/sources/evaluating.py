"""What a model is being loaded for: the evaluation's dataset and norm, for names that alone are not enough.

`robustbench/Wang2023Better_WRN-28-10` is three networks; in an evaluation on cifar10 in linf it is one of them. Like
the user's trust it is kept in a context variable, since it is no option of any source.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

from robustkit.errors import UsageError


class UndecidedNameError(UsageError):
    """A name of several networks, of which the evaluation does not tell one."""


class Evaluation(NamedTuple):
    """The names of the dataset and the norm; empty outside an evaluation."""

    dataset: str = ""
    norm: str = ""


_NONE = Evaluation()
_CURRENT: ContextVar[Evaluation] = ContextVar("robustkit_evaluation", default=_NONE)


def evaluation() -> Evaluation:
    """The evaluation that a model is being loaded for."""
    return _CURRENT.get()


@contextlib.contextmanager
def evaluating(dataset: str, norm: str) -> Iterator[None]:
    """Inside, `evaluation()` is this one."""
    token = _CURRENT.set(Evaluation(dataset, norm))
    try:
        yield
    finally:
        _CURRENT.reset(token)
