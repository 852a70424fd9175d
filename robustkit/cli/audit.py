"""The command `robustkit audit`: would a gradient attack on this model tell the truth, or is the number masked?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from robustkit.audit import Audit

_MARKS = {"fine": "ok", "skipped": "--", "suspect": "SUSPECT", "invalid": "INVALID", "undecided": "UNDECIDED"}


@click.command()
@options.model(required=False)
@options.stored_run("folder", "Show the audit that a stored run holds instead.")
@options.dataset()
@options.defense()
@options.threat(("linf", "l2", "l1"))
@options.samples("The first N samples, as eval takes them; by default 128.")
@options.outputs
@options.draws()
@options.trust
@options.device()
@options.tile
@options.threads
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw the evidence there, PDF and PNG.")
@options.quiet
@options.offline
@options.json_to("the audit")
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
    Exit codes: 0 valid, 2 bad usage, 3 suspect, invalid or undecided.
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
    output.tell(data, text(found), json_to)
    if plots is not None:
        from robustkit.report.plots.audit import draw

        drawn = draw(found, plots)
        click.echo(f"{len(drawn)} plots in {plots}", err=True)
    if found.verdict != "valid":
        end(ExitCode.NOT_ESTABLISHED)


def text(found: "Audit") -> str:
    """An audit in lines: every check, then the verdict."""
    lines = [f"{_MARKS[check.outcome]:<10}{check.name:<20} {check.text}" for check in found.checks]
    return "\n".join([*lines, f"verdict: {found.verdict}"])


def _stored(folder: Path) -> "Audit":
    from robustkit.audit import Audit
    from robustkit.records.folder import load_run

    record = load_run(folder)
    if record.audit is None:
        raise UsageError(f"the run in {folder} is not audited; run it again with eval --audit")
    return Audit.from_json(record.audit)


def _audited(model: str, *, dataset: str | None, threads: int | None, quiet: bool, **asked: Any) -> "Audit":
    from robustkit.audit.run import audit as run
    from robustkit.report import live

    spec = options.dataset_of(model, dataset)
    progress = live.Progress()
    with progress, output.computing(threads=threads, quiet=quiet):
        return run(model, spec, on_event=None if quiet else progress, **asked)
