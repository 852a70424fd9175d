"""What the shell completes: names from the plugin tables. Nothing here imports torch: it runs at each press of Tab."""

from collections.abc import Iterable
from pathlib import Path

import click

from robustkit import plugins

_ZOO = Path(__file__).parent / "sources/zoo"  # read as files: importing the sources would import torch


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
    return _starting(incomplete, ["auto", "cpu", "cuda", "cuda:0"])


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
        names = [f"{source}/{name}" for name in plugins.load("attack_sources", source)().names()]
    else:
        names = [*plugins.table("attacks"), *(f"{name}/" for name in plugins.table("attack_sources"))]
    return [name for name in names if name.startswith(incomplete)]
