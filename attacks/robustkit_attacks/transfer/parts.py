"""Parts named in a setting: `vmi`, `vmi:samples=8`, `di:prob=0.7+ti`."""

from collections.abc import Mapping
from typing import Any

from robustkit import spec
from robustkit.errors import UsageError


def make(kinds: Mapping[str, type], text: object, what: str) -> Any:
    """The part that a text names, with its settings.

    Raises:
        UsageError: for an unknown part (the message lists all), an unknown setting, or a wrong value.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} names a part, such as {next(iter(kinds))!r}, not {text!r}")
    parsed = spec.parse(text)
    if parsed.source or parsed.name not in kinds:
        raise UsageError(spec.suggest(text, kinds, f"part {what}"))
    return spec.build(kinds[parsed.name], parsed.options, f"{what}={parsed.name}")


def made(kinds: Mapping[str, type], texts: object, what: str) -> tuple[Any, ...]:
    """The parts that a tuple of texts names, each once.

    Raises:
        UsageError: as `make`, and for something other than a tuple.
    """
    if not isinstance(texts, tuple):
        raise UsageError(f"{what} is a tuple of parts, such as ({next(iter(kinds))!r},), not {texts!r}")
    return tuple(make(kinds, text, what) for text in texts)
