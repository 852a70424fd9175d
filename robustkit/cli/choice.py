"""A choice among words, the type of an option or an argument."""

from typing import Any

import click

from robustkit.spec import meant


class OneOf(click.Choice[str]):
    """A choice that says of another word which is meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """What was given, what is near, what there is."""
        names = [str(choice) for choice in self.choices]
        return f"{str(value)!r} is not one of {', '.join(names)}{meant(str(value), names)}"
