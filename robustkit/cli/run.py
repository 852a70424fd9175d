"""`robustkit run`: a study from a TOML file, or only what it would cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode

if TYPE_CHECKING:
    from robustkit.study.forecast import Cost
    from robustkit.study.plan import Study


@click.command("run")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True,
              help="Print the cells and what they cost at most; download and attack nothing.")  # fmt: skip
@options.first_n("The first N samples, instead of what the file says.")
@options.device(default=None, about="Instead of what the file says.")
@options.out(f"The study's folder; default {output.RUNS}/study-<the file's name>.")
@options.fresh
@options.json_to("the tables")
@options.offline
@options.quiet
def run(
    study: Path, dry_run: bool, n: int | None, device: str | None, out: Path | None, fresh: bool, json_to: str | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Run a STUDY: models × defenses × attacks × eps × seeds from a TOML file, as one resumable job with one report.

    \b
    robustkit run study.toml
    robustkit run study.toml --dry-run
    robustkit run reports/studies/autoattack-robustbench.toml -n 100 --out runs/aa
    \b
    Each cell is an evaluation in a folder of its own; what is there is not computed again. docs/studies.md has the
    grammar.
    Exit codes: 0 done, 2 bad usage, 3 a cell failed or could not be decided (the report says why), 130 interrupted.
    """  # noqa: D301
    from robustkit.study import grammar

    given = {"n": n, "device": device, "title": options.given_label() or None}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    found = grammar.read(study, changes)
    if dry_run:
        _forecast(found, json_to)
        return
    folder = out or output.RUNS / f"study-{found.name}"
    with output.interruptible([folder]):
        results = _run(found, folder, fresh=fresh, quiet=quiet)
    from robustkit.study import report

    output.tell(report.to_json(results), f"{report.summary(results)}\nin {folder}", json_to)
    if not results.established:
        end(ExitCode.NOT_ESTABLISHED)


def _run(study: "Study", folder: Path, *, fresh: bool, quiet: bool) -> Any:
    from robustkit.study.live import Display
    from robustkit.study.run import run as compute

    display = Display(quiet=quiet)
    with display, output.computing(quiet=quiet):
        return compute(study, folder, fresh=fresh, on_event=display)


def _forecast(study: "Study", json_to: str | None) -> None:
    from robustkit.study.check import check
    from robustkit.study.forecast import forecast

    with options.no_downloads(), output.computing(threads=study.threads):
        check(study, files=False)
        costs = list(forecast(study))
    data = {
        "schema": "robustkit/study-forecast/1",
        "title": study.title,
        "cells": [{**cost.cell.to_json(), "forwards": cost.forwards, "backwards": cost.backwards,
                   "seconds": cost.seconds, "why": cost.why or None} for cost in costs],
        "transfers": [cell.to_json() for cell in study.transfers()],
    }  # fmt: skip
    output.tell(data, _forecast_text(study, costs), json_to)


def _forecast_text(study: "Study", costs: "list[Cost]") -> str:
    from robustkit.report.live import about

    lines = [f"{study.title}: {len(costs)} cells; at most, if no sample breaks:"]
    width = max((len(str(cost.cell)) for cost in costs), default=0)
    reasons = list(dict.fromkeys(cost.why for cost in costs if cost.why))
    for cost in costs:
        passes = "" if cost.forwards is None else f"{cost.forwards:>13,} forwards {cost.backwards:>13,} backwards"
        time = "" if cost.seconds is None else f"  {about(cost.seconds):>13}"
        why = f"  [{reasons.index(cost.why) + 1}]" if cost.why else ""
        lines.append(f"{cost.cell!s:<{width}}  {passes}{time}{why}")
    for cell in study.transfers():
        asked = study.transfer
        sizes = asked and (len(asked.sets or (1,)), len(asked.attacks), len(asked.victims))
        lines.append(f"{cell}: {sizes[0]} surrogate sets × {sizes[1]} attacks × {sizes[2]} victims" if sizes else "")
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    forwards, backwards = (sum(getattr(cost, key) or 0 for cost in costs) for key in ("forwards", "backwards"))
    total = f"in all {forwards:,} forwards, {backwards:,} backwards"
    if known:
        total += f", {about(sum(known))}" + (f" of {len(known)} cells" if len(known) < len(costs) else "")
    notes = [f"[{place}] {why}" for place, why in enumerate(reasons, start=1)]
    return "\n".join([*lines, *([total] if costs else []), *notes])
