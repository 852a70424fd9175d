"""What the shell completes, and the command `robustkit completion`, which prints the script that asks for it.

The names are those of the plugin tables. Nothing here imports torch: it runs at each press of Tab.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

from robustkit import plugins
from robustkit.cli import keys
from robustkit.cli.choice import OneOf
from robustkit.errors import UsageError

_ZOO = Path(__file__).parents[1] / "models/sources/zoo"  # read as files: importing the sources would import torch


def attack(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Attacks, and those of a library once its name is typed; of a list the last item."""
    before, last = _last(incomplete)
    found = _keys("attacks", last, ("eot",))
    return [before + name for name in (attacks(last) if found is None else found)]


def defense(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Defenses."""
    return _named("defenses", incomplete, plugins.table("defenses"))


def recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Recipes of training."""
    return _named("recipes", incomplete, plugins.table("recipes"))


def dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Datasets, and sources of others."""
    sources = (f"{name}/" for name in plugins.table("dataset_sources") if name != "file")
    return _named("datasets", incomplete, [*plugins.table("datasets"), *sources])


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


def _named(kind: plugins.Kind, incomplete: str, names: Iterable[str]) -> list[str]:
    """Names, or once one is typed with its ':' the options that it takes."""
    found = _keys(kind, incomplete)
    return _starting(incomplete, names) if found is None else found


def _keys(kind: plugins.Kind, text: str, more: Sequence[str] = ()) -> list[str] | None:
    """`name:a=1,b` with each option that may stand there, or each value of the last one; None before the ':'."""
    name, colon, rest = text.partition(":")
    table = plugins.table(kind)
    if not colon or name not in table:
        return None
    known = {**keys.options_of(table[name].entry.path), **dict.fromkeys(more, ())}
    done, comma, last = rest.rpartition(",")
    before, (key, equals, value) = f"{name}:{done}{comma}", last.partition("=")
    if equals:
        return [f"{before}{key}={word}" for word in known.get(key, ()) if word.startswith(value)]
    given = {each.partition("=")[0] for each in done.split(",")}
    return [f"{before}{each}=" for each in known if each.startswith(key) and each not in given]


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


@add_completion_class
class _Bash(BashComplete):
    """Bash takes `pgd:st` for three words, and replaces the last: so it is told what stands behind the last mark."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local line="${COMP_LINE:0:COMP_POINT}" breaks="" word head="" type value
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=":"
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+="="
    word="${line##*[[:space:]]}"
    [[ -n $breaks ]] && head="${word%%"${word##*[$breaks]}"}"
    local response=$(env COMP_LINE="$line" COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("${value#"$head"}")
            [[ $value == *[=/] ]] && compopt -o nospace 2> /dev/null
        fi
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is typed, and that one as far as it is there."""
        line = os.environ.get("COMP_LINE", "")
        if not line:
            return super().get_completion_args()
        words = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() or not words else words.pop()
        return words[1:], incomplete

    @staticmethod
    def _check_version() -> None:
        """What asks bash for its version, each time the script is printed: `compopt` and `nosort` are of 4.4."""


@click.command()
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    robustkit completion bash >> ~/.bashrc
    """  # noqa: D301
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "robustkit", "_ROBUSTKIT_COMPLETE").source())
