"""One at a time in a process: random generators, threads, precision and a module that is lent belong to all of it."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("robustkit")
_turn = threading.RLock()
_told = threading.local()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread of this process measures, loads or trains; the log says so, once a thread.

    What holds the turn may ask for it again. Code outside robustkit that draws from the global generators, or trains
    the module that is lent, cannot be kept waiting.
    """
    turn = _turn
    if not turn.acquire(blocking=False):
        if not getattr(_told, "waits", False):
            _told.waits = True
            _log.warning(
                "another thread of this process is at work with robustkit; this one waits for its turn "
                "(several at once take several processes)"
            )
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


def _anew() -> None:
    """In a forked child no other thread is there that could give the turn back."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
