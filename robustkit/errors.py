"""What robustkit raises on purpose. Each message names what was given, what is possible and what to do."""


class RobustkitError(Exception):
    """Anything robustkit refuses or could not do; its text is one line meant for the user."""

    exit_code = 1


class UsageError(RobustkitError):
    """The request cannot be run as given (exit code 2): nothing was computed and nothing was written."""

    exit_code = 2


class NotEstablishedError(RobustkitError):
    """The answer rests on samples that could not be decided (exit code 3)."""

    exit_code = 3


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
