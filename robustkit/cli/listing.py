"""The command `robustkit list`."""

import click

from robustkit import plugins
from robustkit.cli import cards, options, output
from robustkit.cli.choice import OneOf
from robustkit.errors import UsageError


@click.command("list")
@click.argument("kind", type=OneOf(["attacks", "models", "datasets", "defenses", "recipes"]))
@click.argument("substring", default="")
@click.option("--source", default="", metavar="NAME", help="Only of this source of models or attacks: timm, foolbox.")
@options.json_to("the list")
def listing(kind: str, substring: str, source: str, json_to: str | None) -> None:
    """What there is: attacks, models, datasets, defenses or recipes, with a SUBSTRING.

    \b
    robustkit list attacks
    robustkit list attacks --source torchattacks
    robustkit list models digits
    """  # noqa: D301
    if source and kind not in ("models", "attacks"):
        raise UsageError(f"--source is of models and attacks; leave it out for {kind}")
    rows: list[tuple[str, str]]
    if kind == "models":
        from robustkit.models import sources

        rows = sources.listing(source, counted=not substring)
    elif kind == "attacks":
        rows = cards.attacks(source)
    elif kind == "datasets":
        from robustkit import datasets

        rows = datasets.listing()
    else:
        rows = [(name, found.entry.summary) for name, found in plugins.table(kind).items()]
    for text in plugins.broken():
        click.echo(f"note: {text}", err=True)
    rows = [row for row in rows if substring.lower() in row[0].lower()]
    if not rows:
        click.echo(f"no {kind}" + (f" with {substring!r} in the name" if substring else " yet"), err=True)
    width = max((len(name) for name, _ in rows), default=0)
    data = {"schema": "robustkit/list/1", "kind": kind,
            "entries": [{"name": name, "summary": summary} for name, summary in rows]}  # fmt: skip
    output.tell(data, "\n".join(f"{name:<{width}}  {summary}".rstrip() for name, summary in rows), json_to)
