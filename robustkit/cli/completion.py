"""What the shell completes, and the command `robustkit completion`, which prints the script that asks for it.

The names are those of the plugin tables. Nothing here imports torch: it runs at each press of Tab.
"""

from collections.abc import Iterable
from pathlib import Path

import click

from robustkit import plugins
from robustkit.errors import UsageError

_ZOO = Path(__file__).parents[1] / "models/sources/zoo"  # read as files: importing the sources would import torch


def attack(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Attacks, and those of a library once its name is typed; of a list the last item."""
    before, last = _last(incomplete)
    return [before + name for name in attacks(last)]


def defense(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Defenses."""
    return _starting(incomplete, plugins.table("defenses"))


def recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Recipes of training."""
    return _starting(incomplete, plugins.table("recipes"))


def dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Datasets, and sources of others."""
    sources = (f"{name}/" for name in plugins.table("dataset_sources") if name != "file")
    return _starting(incomplete, [*plugins.table("datasets"), *sources])


def model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The bundled networks, and sources of others."""
    sources = (f"{name}/" for name in plugins.table("sources") if name not in ("zoo", "file"))
    return _starting(incomplete, [*sorted(card.stem for card in _ZOO.glob("*.json")), *sources])


def target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The targets that are words."""
    return _starting(incomplete, ["least-likely", "random"])


def device(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Devices as they are usually called; which of them are there only torch knows."""
    return _starting(incomplete, ["auto", "cpu", "cuda", "cuda:0", "mps", "xpu"])


def shown(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What `show` takes a card of, by its first argument."""
    complete = {"attack": attack, "defense": defense, "recipe": recipe}.get(str(ctx.params.get("run")))
    return complete(ctx, param, incomplete) if complete else []


def _last(incomplete: str) -> tuple[str, str]:
    """A list up to its last item, and that item."""
    place = max(incomplete.rfind("+"), incomplete.rfind("("))
    return incomplete[: place + 1], incomplete[place + 1 :]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def attacks(incomplete: str) -> list[str]:
    """The attacks that begin so; those of a source once its name is typed. Imports no library."""
    source, slash, _ = incomplete.partition("/")
    if slash and source in plugins.table("attack_sources"):
        names = [f"{source}/{name}" for name in plugins.source("attack_sources", source).names()]
    else:
        names = [*plugins.table("attacks"), *(f"{name}/" for name in plugins.table("attack_sources"))]
    return [name for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    robustkit completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "robustkit", "_ROBUSTKIT_COMPLETE").source())
