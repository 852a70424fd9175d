"""The command `robustkit audit`: would a gradient attack on this model tell the truth, or is the number masked?"""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import cache as cli_cache
from robustkit.cli import completion
from robustkit.cli import options as cli_options
from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.audit import Audit

_MARKS = {"fine": "ok", "skipped": "--", "suspect": "SUSPECT", "invalid": "INVALID"}


@click.command()
@click.option("--model", metavar="SPEC", shell_complete=completion.model,
              help="digits-cnn-at, ./net.safetensors:arch=…, python/my_package.make")  # fmt: skip
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), help="Show the audit that a stored run holds instead."
)
@click.option("--dataset", "--data", metavar="SPEC", shell_complete=completion.dataset,
              help="By default what the model was trained on.")  # fmt: skip
@click.option("--defense", multiple=True, metavar="SPEC", shell_complete=completion.defense,
              help="What stands before the model, as for eval.")  # fmt: skip
@click.option("--norm", type=click.Choice(["linf", "l2", "l1"]), default="linf", show_default=True)
@click.option("--eps", metavar="8/255", help="Radius, pixels in [0,1]. Default 8/255 (linf), 0.5 (l2), 12 (l1).")
@click.option("-n", "n", type=click.IntRange(1), metavar="N", help="The first N samples; by default 128.")
@click.option("--indices", metavar="0-199,400", help="These samples instead.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--outputs", type=click.Choice(["logits", "probs"]), default="logits", show_default=True,
              help="What the model returns.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Let models run code of theirs: pickled checkpoints, callables in a card.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:0",
              shell_complete=completion.device)  # fmt: skip
@click.option("--tile", type=click.IntRange(1), help="Width of the batches the model sees.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw the evidence there, PDF and PNG.")
@click.option("--quiet", is_flag=True, help="No progress.")
@cli_cache.offline
@cli_options.json_option("the audit")
def audit(
    model: str | None, folder: Path | None, plots: Path | None, quiet: bool, json_to: str | None, **asked: Any
) -> None:
    """Whether a robust accuracy of this model can be believed: signs of masked gradients, each with its evidence.

    \b
    robustkit audit --model digits-cnn-at --eps 0.1
    robustkit audit --model digits-cnn --defense bit-depth:bits=3 --eps 0.1 --json audit.json --plots plots
    robustkit audit --run robustkit-runs/<run of eval --audit> --plots plots
    \b
    `robustkit eval --audit` also audits the number that was measured and the attacks that measured it.
    Exit codes: 0 valid, 1 suspect or invalid, 2 bad usage.
    """  # noqa: D301
    source = click.get_current_context().get_parameter_source
    given = [name for name in asked if source(name) is click.core.ParameterSource.COMMANDLINE]
    if (model is None) == (folder is None):
        raise UsageError("give --model to audit one, or --run to see the audit of a stored run")
    if folder is not None and given:
        raise UsageError(f"--run shows a stored audit and computes nothing; leave out {', '.join(sorted(given))}")
    if plots is not None:
        from robustkit.report.plots.audit import check_matplotlib

        check_matplotlib()
    found = _stored(folder) if folder is not None else _audited(str(model), quiet=quiet, **asked)
    data = {"model": model, "run": str(folder) if folder else None, "audit": found.to_json()}
    as_json = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    click.echo(as_json if json_to == "-" else text(found))
    if json_to and json_to != "-":
        Path(json_to).write_text(as_json + "\n", encoding="utf-8")
    if plots is not None:
        from robustkit.report.plots.audit import draw

        drawn = draw(found, plots)
        click.echo(f"{len(drawn)} plots in {plots}", err=True)
    if found.verdict != "valid":
        sys.exit(1)


def text(found: "Audit") -> str:
    """An audit in lines: every check, then the verdict."""
    lines = [f"{_MARKS[check.outcome]:<8}{check.name:<20} {check.text}" for check in found.checks]
    return "\n".join([*lines, f"verdict: {found.verdict}"])


def _stored(folder: Path) -> "Audit":
    from robustkit.audit import Audit
    from robustkit.records.folder import load_run

    record = load_run(folder)
    if record.audit is None:
        raise UsageError(f"the run in {folder} is not audited; run it again with eval --audit")
    return Audit.from_json(record.audit)


def _audited(model: str, *, dataset: str | None, threads: int | None, quiet: bool, **asked: Any) -> "Audit":
    from robustkit.models import sources
    from robustkit.report import download, live

    spec = dataset or sources.card_dataset(model)
    if not spec:
        raise UsageError(f"--dataset is needed: {model} has no card that says what it was trained on; try digits")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from robustkit.audit.run import audit as run

    progress = live.Progress()
    with progress, download.shown(quiet=quiet), contextlib.redirect_stdout(sys.stderr):  # a model may print
        return run(model, spec, on_event=None if quiet else progress, **asked)
