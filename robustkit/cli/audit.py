"""The command `robustkit audit`: would a gradient attack on this model tell the truth, or is the number masked?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from robustkit.audit import Audit
    from robustkit.records.findings import Audited


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
@options.out("Keep the audit in this folder, with its page.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw the evidence there, PDF and PNG.")
@options.quiet
@options.offline
@options.json_to("the audit")
def audit(
    model: str | None, folder: Path | None, out: Path | None, plots: Path | None, quiet: bool, json_to: str | None,
    **asked: Any,
) -> None:  # fmt: skip
    """Whether a robust accuracy of this model can be believed: signs of masked gradients, each with its evidence.

    \b
    robustkit audit --model digits-cnn-at --eps 0.1
    robustkit audit --model digits-cnn --defense bit-depth:bits=3 --eps 0.1 --out ./audit --plots plots
    robustkit audit --run robustkit-runs/<run of eval --audit> --plots plots
    \b
    `robustkit eval --audit` also audits the number that was measured and the attacks that measured it.
    Exit codes: 0 valid, 2 bad usage, 3 suspect, invalid or undecided.
    """  # noqa: D301
    from robustkit.records.schema import AUDITED

    source = click.get_current_context().get_parameter_source
    given = [name for name in asked if source(name) is click.core.ParameterSource.COMMANDLINE]
    if (model is None) == (folder is None):
        raise UsageError("give --model to audit one, or --run to see the audit of a stored run")
    if folder is not None and (given or out):
        words = ", ".join([*sorted(given), *(["out"] if out else [])])
        raise UsageError(f"--run shows a stored audit and computes nothing; leave out {words}")
    if out is not None:
        _check_place(out)
    if plots is not None:
        from robustkit.report.plots.audit import check_matplotlib

        check_matplotlib()
    if folder is not None:
        found, data, text = _stored(folder)
        data = {"schema": AUDITED, "model": model, "run": str(folder), **data}
    else:
        record = _audited(str(model), quiet=quiet, **asked)
        found, text = record.audit, record.summary()
        data = {"model": model, "run": None, **record.to_json()}
        if out is not None:
            _save(record, out)
            text += f"\nin {out}"
    output.tell(data, text, json_to)
    if plots is not None:
        from robustkit.report.plots.audit import draw

        drawn = draw(found, plots)
        click.echo(f"{len(drawn)} plots in {plots}", err=True)
    if found.verdict != "valid":
        end(ExitCode.NOT_ESTABLISHED)


def _stored(folder: Path) -> "tuple[Audit, dict[str, Any], str]":
    """The audit that a run's record holds, as itself, as JSON data and as text."""
    from robustkit.audit import Audit
    from robustkit.records import findings
    from robustkit.records.folder import load_run

    record = load_run(folder)
    if record.audit is None:
        raise UsageError(f"the run in {folder} is not audited; run it again with eval --audit")
    found = Audit.from_json(record.audit)
    data = {"about": record.about.to_json(), "job": dict(record.job), "environment": dict(record.environment)}
    return found, {**data, "audit": found.to_json()}, f"{record.heading()}\n{findings.text(found)}"


def _audited(model: str, *, dataset: str | None, threads: int | None, quiet: bool, **asked: Any) -> "Audited":
    import torch

    from robustkit.audit.run import audit as run
    from robustkit.engine.plan import environment
    from robustkit.records.about import About, now
    from robustkit.records.findings import Audited
    from robustkit.report import live

    spec, started = options.dataset_of(model, dataset), now()
    progress = live.Progress()
    with progress, output.computing(threads=threads, quiet=quiet):
        found = run(model, spec, on_event=None if quiet else progress, **asked)
    about = About(options.given_label(), asked["eps"] or "", started, now())
    return Audited(found.subject, environment(torch.device(found.subject["device"])), found, about)


def _check_place(out: Path) -> None:
    """Refuse a folder that holds something else, before anything is computed."""
    from robustkit.records.findings import RESULT

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RESULT).is_file():
        raise UsageError(f"{out} is not empty and holds no audit; choose another --out")


def _save(record: "Audited", out: Path) -> None:
    from robustkit.report import files

    out.mkdir(parents=True, exist_ok=True)
    record.save(out, files.of_audit(record))
