"""What robustkit raises on purpose, and how its commands end.

Each message names what was given, what is possible and what to do.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's end says; there is no other. `docs/exit-codes.md` says it to users."""

    DONE = 0
    GATE_FAILED = 1
    USAGE = 2
    NOT_ESTABLISHED = 3
    UNEXPECTED = 70
    UNFINISHED = 75
    INTERRUPTED = 130
    TERMINATED = 143


class RobustkitError(Exception):
    """Anything robustkit refuses or could not do; its text is one line meant for the user."""

    exit_code = ExitCode.NOT_ESTABLISHED


class UsageError(RobustkitError):
    """The request cannot be run as given (exit code 2): nothing was computed and nothing was written."""

    exit_code = ExitCode.USAGE


class NotEstablishedError(RobustkitError):
    """The answer rests on samples that could not be decided (exit code 3)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled wherever Ctrl-C is, and as that; only the exit code is another (143)."""


class NoGradientError(RobustkitError):
    """A gradient was asked of a model through which none flows."""


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error of somebody else's code says, in one line of at most so many characters.

    TorchScript tells the cause below the place: there it is the last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[-1] if "TorchScript interpreter" in lines[0] else lines[0])[:most]
