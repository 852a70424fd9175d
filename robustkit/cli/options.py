"""The options that `eval` and `gate` share: what they are, and how they become one call of the engine."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import cache as cli_cache
from robustkit.cli import completion
from robustkit.errors import UsageError
from robustkit.spec import DEFAULT_DRAWS, DEFAULT_EPS

if TYPE_CHECKING:
    from robustkit.records.run import RunRecord

_DECIDED = {"attack", "norm", "eps", "target", "n", "indices", "seed", "outputs", "draws"}
Command = Callable[..., Any]


_OPTIONS = (
    click.option("--dataset", "--data", metavar="SPEC", shell_complete=completion.dataset,
                 help="digits, cifar10:path=…, ./images.npz; by default what the model was trained on."),
    click.option("--attack", default="autoattack", show_default=True, metavar="SPEC",
                 shell_complete=completion.attack, help="pgd:steps=40,restarts=5; (a)+(b) runs both."),
    click.option("--defense", multiple=True, metavar="SPEC", shell_complete=completion.defense,
                 help="jpeg:quality=50; several stand one before the other, the last one outermost."),
    click.option("--norm", type=click.Choice(["linf", "l2", "l1", "l0"]), default="linf", show_default=True),
    click.option("--eps", metavar="8/255",
                 help="Radius, pixels in [0,1]; 2/255,4/255 sweeps. Default 8/255 (linf), 0.5 (l2), 12 (l1), 10 (l0)."),
    click.option("--target", metavar="CLASS|least-likely|random", shell_complete=completion.target,
                 help="Targeted: only this class breaks a sample."),
    click.option("-n", "n", type=int, metavar="N", help="The first N samples."),
    click.option("--indices", metavar="0-199,400", help="These samples; also a JSON list, or @FILE with one."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--outputs", type=click.Choice(["logits", "probs"]), default="logits", show_default=True,
                 help="What the model returns."),
    click.option("--draws", type=click.IntRange(1), default=DEFAULT_DRAWS, show_default=True, metavar="M",
                 help="Of a randomised model, how many fresh draws vote on a sample."),
    click.option("--trust", is_flag=True,
                 help="Let models run code of theirs: pickled checkpoints, callables in a card."),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:0",
                 shell_complete=completion.device),
    click.option("--batch-size", default="auto", show_default=True, metavar="auto|N",
                 help="Most samples at once; changes no result."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; part of the run's identity."),
    click.option("--tile", type=click.IntRange(1),
                 help="Width of the batches the model sees; part of the run's identity."),
    click.option("--shard-size", type=click.IntRange(1),
                 help="Samples a journal file; by default 512, fewer of large images."),
    cli_cache.offline,
    click.option("--doctor/--no-doctor", default=True,
                 help="Look first whether the model gets the input it expects (mean/std, 0–255, BGR …)."),
    click.option("--quiet", is_flag=True, help="No progress."),
)  # fmt: skip


def evaluation(*, model_required: bool) -> Callable[[Command], Command]:
    """Give a command the options that say what is evaluated, and how."""

    def decorate(command: Command) -> Command:
        for option in reversed(_OPTIONS):
            command = option(command)
        text = "digits-cnn-at, ./net.safetensors:arch=…, python/my_package.make:width=2"
        return click.option(
            "--model", required=model_required, metavar="SPEC", shell_complete=completion.model, help=text
        )(command)

    return decorate


def json_option(what: str) -> Callable[[Command], Command]:
    """The option --json of a command: where to write `what`, besides."""
    return click.option(
        "--json", "json_to", metavar="-|FILE", callback=_json_target,
        help=f"Write {what} there too; - is stdout, with nothing else.",
    )  # fmt: skip


def _json_target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check the place for --json before anything is computed.

    Raises:
        UsageError: if its folder does not exist.
    """
    if value and value != "-" and not Path(value).parent.is_dir():
        raise UsageError(f"--json {value}: there is no folder {Path(value).parent}")
    return value


def check(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults filled in.

    Raises:
        UsageError: for one that no engine would accept, or a model without a dataset.
    """
    size, indices = asked["batch_size"], asked["indices"]
    if size != "auto" and not (size.isdigit() and int(size)):
        raise UsageError(f"--batch-size {size!r} must be auto or a positive number")
    if isinstance(indices, str) and indices.startswith("@"):
        indices = _read(Path(indices[1:]))
    return {
        **asked,
        "batch_size": size if size == "auto" else int(size),
        "indices": indices,
        "dataset": asked["dataset"] or _dataset_of(asked["model"]),
        "eps": asked["eps"] or DEFAULT_EPS[asked["norm"]],
    }


def measure(checked: Mapping[str, Any], **more: Any) -> "RunRecord":
    """Call the engine with checked options, and `more` of its arguments; progress goes to stderr."""
    from robustkit.evaluation import evaluate
    from robustkit.report import download, live

    arguments = dict(checked)
    quiet, threads, data = (arguments.pop(name) for name in ("quiet", "threads", "dataset"))
    if threads:
        import torch

        torch.set_num_threads(threads)
    progress = live.Progress()
    to_stderr = contextlib.redirect_stdout(sys.stderr)  # stdout is for the result: a model may print
    with progress, download.shown(quiet=quiet), to_stderr:
        return evaluate(data=data, **arguments, **more, on_event=None if quiet else progress)


def check_gate(given: set[str], *, file: Path, run: bool, update: bool, out: bool, budget: bool, json_to: bool) -> None:
    """Check that the options of `gate` go together; `given` names those of an evaluation that were given.

    Raises:
        UsageError: if they do not, or the baseline has no place.
    """
    if run and (given or out or budget):
        raise UsageError("--run judges a stored run, so nothing is evaluated; leave out the options of an evaluation")
    if update and (budget or json_to):
        raise UsageError("--update measures a whole baseline and judges nothing; leave out --time-budget and --json")
    if not update and (decided := sorted(given & _DECIDED)):
        names = ", ".join(f"-{'-' * (len(name) > 1)}{name}" for name in decided)
        raise UsageError(f"{names}: the baseline decides that; leave it out, or change the baseline with --update")
    if not update and not file.exists():
        raise UsageError(f"there is no baseline {file}; make it: --update --model … --dataset … --attack … --eps …")
    if update and not file.parent.is_dir():
        raise UsageError(f"--baseline {file}: there is no folder {file.parent}")


def as_baseline(
    asked: Mapping[str, Any], given: set[str], before: "RunRecord | None", budget: float | None
) -> dict[str, Any]:
    """The options of the baseline's job with those that were given in their place, checked.

    Raises:
        UsageError: see `check`; if there is no baseline and no model; or for a budget that is too small.
    """
    if before is None:
        if "model" not in given:
            raise UsageError("a new baseline needs --model; and --dataset, --attack, --norm, --eps as for eval")
        return check(asked)
    from robustkit.records import gate

    job = gate.request(before.job)
    if budget is not None:
        fit, expected = gate.prefix(before, budget)
        job["indices"] = job["indices"][:fit]
        text = f"--time-budget: the first {fit} of {before.n} samples, {expected:.1f} s of attack in the baseline"
        click.echo(text, err=True)
    if "n" in given:
        job["indices"] = None
    if "norm" in given:
        job["eps"] = None
    return check({**asked, **job, **{name: asked[name] for name in given}})


def _dataset_of(model: str) -> str:
    from robustkit.models import sources

    name = sources.card_dataset(model)
    if not name:
        raise UsageError(f"--dataset is needed: {model} has no card that says what it was trained on; try digits")
    return name


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--indices @{file} cannot be read: {error}") from None
