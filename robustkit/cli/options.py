"""The options that commands share, each written once, alone or in a group. Reading them imports no torch.

What differs between commands, such as a default, is a parameter of the option; what never does is a constant.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from robustkit.cli import completion
from robustkit.cli.choice import OneOf
from robustkit.cli.endings import DEBUG
from robustkit.errors import UsageError
from robustkit.spec import DEFAULT_DRAWS, DEFAULT_EPS, suggest

NORMS = tuple(DEFAULT_EPS)
BOUNDS = ("ibp", "crown", "alpha-crown")
Command = Callable[..., Any]
Option = Callable[[Command], Command]


LABEL = "robustkit.label"  # where --label is kept in a context's meta


class Group(click.Group):
    """Lists its commands with their whole summaries, and says of a wrong name which is meant."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with the first sentence of its help, wrapped and not cut."""
        rows = [(name, command.get_short_help_str(10_000)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named.

        Raises:
            UsageError: if there is none; it says what is near.
        """
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(suggest(args[0], self.commands, "command"))
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Within it nothing is fetched: what is missing is an error."""
    before = os.environ.get("ROBUSTKIT_OFFLINE")
    os.environ["ROBUSTKIT_OFFLINE"] = "1"  # the environment, so that worker processes obey too
    try:
        yield
    finally:
        if before is None:
            del os.environ["ROBUSTKIT_OFFLINE"]
        else:
            os.environ["ROBUSTKIT_OFFLINE"] = before


def dataset_of(model: str, given: str | None) -> str:
    """The data set that was given, or else the one that the model's card says it was trained on.

    Raises:
        UsageError: if there is neither.
    """
    from robustkit.models import sources

    name = given or sources.card_dataset(model)
    if not name:
        sources.check(model)
        raise UsageError(f"--dataset is needed: {model} has no card that says what it was trained on; try digits")
    return name


def _go_offline(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(no_downloads())


def _indices(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The list itself, where @FILE says that it stands in a file."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--indices {value} cannot be read: {error}") from None


def _batch_size(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    if value != "auto" and not (value.isdecimal() and int(value)):
        raise UsageError(f"--batch-size {value!r} must be auto or a positive number")
    return value if value == "auto" else int(value)


def _file(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Check before anything is computed that a file can be written there; - is stdout."""
    if value and value != "-" and not Path(value).parent.is_dir():
        raise UsageError(f"{param.opts[-1]} {value}: there is no folder {Path(value).parent}")
    return value


def debug(command: click.Command) -> None:
    """Give --debug to a command and to all below it."""
    click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug,
                 help="Show the traceback of an error.")(command)  # fmt: skip
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        debug(each)


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


outputs = click.option("--outputs", type=OneOf(["logits", "probs"]), default="logits", show_default=True,
                       help="What the model returns.")  # fmt: skip
indices = click.option("--indices", metavar="0-199,400", callback=_indices,
                       help="These samples; also a JSON list, or @FILE with one.")  # fmt: skip
target = click.option("--target", metavar="CLASS|least-likely|random", shell_complete=completion.target,
                      help="Targeted: only this class is a success.")  # fmt: skip
trust = click.option("--trust", is_flag=True,
                     help="Let models run code of theirs: pickled checkpoints, callables in a card.")  # fmt: skip
batch_size = click.option("--batch-size", default="auto", show_default=True, metavar="auto|N", callback=_batch_size,
                          help="Most samples at once; changes no result.")  # fmt: skip
threads = click.option("--threads", type=click.IntRange(1),
                       help="CPU threads; part of the run's identity, as they decide how sums round.")  # fmt: skip
tile = click.option("--tile", type=click.IntRange(1),
                    help="Width of the batches a model sees; part of the run's identity.")  # fmt: skip
offline = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_go_offline,
    help="Download nothing; what is missing is an error that says where to put it. As ROBUSTKIT_OFFLINE=1.",
)  # fmt: skip
doctor = click.option(
    "--doctor/--no-doctor", default=True,
    help="Look first whether the model gets the input it expects (mean/std, 0–255, BGR …).",
)  # fmt: skip
certificates = click.option(
    "--certify", default="", metavar="ibp|crown|alpha-crown",
    help="Prove samples robust by bounds, each with the cheapest that suffices; :order=first|last says when.",
)  # fmt: skip
quiet = click.option("--quiet", is_flag=True, help="No progress.")
fresh = click.option("--fresh", is_flag=True, help="Forget what the folder holds of this and compute it again.")


def model(*, required: bool = True, about: str = "") -> Option:
    """The option --model; `about` replaces the examples of its help."""
    examples = "digits-cnn-at, robustbench/NAME, ./net.safetensors:arch=…, python/my_package.make:width=2"
    return click.option("--model", required=required, metavar="SPEC", shell_complete=completion.model,
                        help=about or examples)  # fmt: skip


def dataset(about: str = "digits, cifar10:path=…, ./images.npz; by default what the model was trained on.", *,
            required: bool = False) -> Option:  # fmt: skip
    """The option --dataset; without a value, see `dataset_of`."""
    return click.option("--dataset", "--data", required=required, metavar="SPEC", shell_complete=completion.dataset,
                        help=about)  # fmt: skip


def attack(*, several: bool = False, default: str = "autoattack") -> Option:
    """The option --attack: one with a default, or several that may have labels."""
    about = "mi-cwa, pgd:steps=10; repeat it, or (a)+(b)." if several else "pgd:steps=40,restarts=5; (a)+(b) runs both."
    return click.option("--attack", multiple=several, default=() if several else default,
                        show_default=not several, metavar="[LABEL=]SPEC" if several else "SPEC",
                        shell_complete=completion.attack, help=about)  # fmt: skip


def method(*, default: str | None = None, about: str) -> Option:
    """The option --method: the last bound that is climbed to."""
    return click.option("--method", type=click.Choice(BOUNDS), default=default, show_default=default is not None,
                        help=about)  # fmt: skip


def defense(about: str = "jpeg:quality=50; several stand one before the other, the last one outermost.") -> Option:
    """The option --defense, which may be repeated."""
    return click.option("--defense", multiple=True, metavar="SPEC", shell_complete=completion.defense, help=about)


def norm(norms: Sequence[str] = NORMS, *, about: str | None = None) -> Option:
    """The option --norm."""
    return click.option("--norm", type=OneOf(norms), default="linf", show_default=True, help=about)


def eps(about: str) -> Option:
    """The option --eps, a text: it may be a fraction."""
    return click.option("--eps", metavar="8/255", help=about)


def threat(norms: Sequence[str] = NORMS, *, sweeps: bool = False) -> Option:
    """The options --norm and --eps of a threat model; `sweeps` if several radii may be given."""
    defaults = ", ".join(f"{DEFAULT_EPS[name]} ({name})" for name in norms)
    several = "; 2/255,4/255 sweeps" if sweeps else ""
    return _together(norm(norms), eps(f"Radius, pixels in [0,1]{several}. Default {defaults}."))


def first_n(
    about: str = "The first N samples; class-balanced, if the data lie by class.", *, default: int | None = None
) -> Option:
    """The option -n."""
    return click.option("-n", "n", type=click.IntRange(1), default=default, show_default=default is not None,
                        metavar="N", help=about)  # fmt: skip


def seed(about: str = "Of all random numbers.") -> Option:
    """The option --seed."""
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=about)


def samples(
    first: str = "The first N samples; class-balanced, if the data lie by class.",
    *,
    seeds: str = "Of all random numbers.",
) -> Option:
    """The options -n, --indices and --seed; `first` and `seeds` are the helps of the first and the last."""
    return _together(first_n(first), indices, seed(seeds))


def draws(about: str = "Of a randomised model, how many fresh draws vote on a sample.", *,
          default: int = DEFAULT_DRAWS) -> Option:  # fmt: skip
    """The option --draws."""
    return click.option("--draws", type=click.IntRange(1), default=default, show_default=True, metavar="M", help=about)


def device(*, default: str | None = "auto", about: str | None = None) -> Option:
    """The option --device."""
    return click.option("--device", default=default, show_default=default is not None,
                        metavar="auto|cpu|cuda[:N]|mps|xpu", shell_complete=completion.device,
                        help=about)  # fmt: skip


def shard_size(default: int | None = None) -> Option:
    """The option --shard-size; without a default, the size of an image decides."""
    about = "Samples a journal file" + ("." if default else "; by default 512, fewer of large images.")
    return click.option("--shard-size", type=click.IntRange(1), default=default, show_default=default is not None,
                        help=about)  # fmt: skip


def execution(*, shard: int | None = None) -> Option:
    """The options on how a run is computed: device, batch size, threads, tile, shard size (`shard` by default)."""
    return _together(device(), batch_size, threads, tile, shard_size(shard))


def evaluation(*, model_required: bool, sweeps: bool) -> Option:
    """The options that say what is evaluated, and how; see `model` and `threat`."""
    return _together(
        model(required=model_required), dataset(), attack(), defense(), threat(sweeps=sweeps), target, samples(),
        outputs, draws(), trust, certificates, execution(), offline, doctor, quiet,
    )  # fmt: skip


def resumable(parts: str) -> Option:
    """The options --out and --fresh of a run that keeps nothing by default, and continues by `parts` in a folder."""
    about = f"The run's folder: killed and run again, it continues {parts}. Or FILE.json, for the record alone."
    return _together(out(about), fresh)


def out(about: str, *names: str, required: bool = False, file: bool = False) -> Option:
    """The option --out, or of further `names` too: a folder, or a file."""
    return click.option(*names, "--out", required=required, type=click.Path(path_type=Path, dir_okay=not file),
                        metavar="FILE" if file else "DIR", callback=_file if file else None, help=about)  # fmt: skip


def stored_run(name: str, about: str) -> Option:
    """The option --run: a stored run instead of a new one, as the argument `name`."""
    return click.option("--run", name, type=click.Path(path_type=Path), metavar="DIR", help=about)


def json_to(what: str, *, labels: bool = True) -> Option:
    """The option --json where `what` can be written besides the text, or instead of it; alone it is --json -.

    `labels`: with the option --label, which the command's output has; False where a command has its own.
    """
    found = click.option("--json", "json_to", is_flag=False, flag_value="-", metavar="-|FILE", callback=_file,
                         help=f"Write {what} there too; - is stdout, with nothing else.")  # fmt: skip
    return _together(label, found) if labels else found


def labels(about: str) -> Option:
    """The option --label of a command that shows several stored things: one for each, in order."""
    return click.option("--label", "labels", multiple=True, metavar="TEXT", help=about)


def _label(ctx: click.Context, param: click.Parameter, value: str) -> None:
    ctx.meta[LABEL] = " ".join(value.split())


label = click.option("--label", default="", metavar="TEXT", expose_value=False, callback=_label,
                     help="What this is called where it is shown; it decides nothing.")  # fmt: skip


def given_label() -> str:
    """What --label of the present command says; empty without it."""
    return str(click.get_current_context().meta.get(LABEL, ""))


def _together(*options: Option) -> Option:
    """Several options as one, listed in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
