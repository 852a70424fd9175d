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
