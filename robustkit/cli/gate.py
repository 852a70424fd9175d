"""The command `robustkit gate`: its options are eval's, with the baseline's job as their default."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import evaluate, options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from robustkit.records.run import RunRecord

_DECIDED = {"attack", "norm", "eps", "target", "n", "indices", "seed", "outputs", "draws"}  # by the baseline


@click.command()
@click.option("--baseline", "file", required=True, type=click.Path(path_type=Path), help="The baseline's file.")
@click.option("--max-drop", default="0.5pp", show_default=True, metavar="0.5pp|0.5%",
              help="Robust accuracy that other weights may lose; a drop shown to be larger fails.")  # fmt: skip
@click.option("--min-robust", metavar="45%", help="Fail, too, if less of the samples is robust.")
@click.option("--min-certified", metavar="40%", help="Fail, too, if less of the samples is proved; see --certify.")
@options.stored_run("run", "Judge this stored run instead of evaluating.")
@click.option("--time-budget", metavar="60s|2m",
              help="Only as many of the first samples as fit, by the baseline's counted costs.")  # fmt: skip
@click.option("--update", is_flag=True, help="Write the baseline anew, or for the first time, with the options below.")
@options.out("Keep the run in this folder.")
@options.json_to("the verdict")
@options.evaluation(model_required=False, sweeps=False)
def gate(
    file: Path, max_drop: str, min_robust: str | None, min_certified: str | None, run: Path | None,
    time_budget: str | None, update: bool, out: Path | None,
    json_to: str | None, **asked: Any,
) -> None:  # fmt: skip
    """Fail when a model got less robust than its baseline. What is not given is as in the baseline.

    \b
    robustkit gate --baseline base.json --update --model ./net.safetensors:arch=digits-cnn --dataset digits --eps 0.1
    robustkit gate --baseline base.json
    robustkit gate --baseline base.json --model ./new.safetensors:arch=digits-cnn --max-drop 1pp --time-budget 60s
    \b
    Other weights fail if a paired test shows (p < 0.05) that robust accuracy fell by more than --max-drop.
    The same weights fail if any sample flips, unless the model is randomised.
    Exit codes: 0 passed, 1 failed, 2 bad usage, 3 no verdict (a sample is UNKNOWN, an audit invalid, samples too few).
    """  # noqa: D301
    from robustkit.records import baseline
    from robustkit.records import gate as rule
    from robustkit.report.comparison import verdict

    source = click.get_current_context().get_parameter_source
    given = {name for name in asked if source(name) is click.core.ParameterSource.COMMANDLINE} - {"quiet"}
    least = [rule.parse_share(text) if text else None for text in (min_robust, min_certified)]
    allowed, budget = rule.parse_drop(max_drop), rule.parse_seconds(time_budget) if time_budget else None
    _check(given, file=file, run=run is not None, update=update, out=out is not None, budget=budget is not None)
    before = baseline.load(file) if file.exists() else None
    if run is not None:
        record = baseline.read(run)
    else:
        from robustkit.datasets.choice import MissingSampleError

        try:
            wanted = _as_baseline(asked, given, before, budget, allowed)
            record = evaluate.measure({**wanted, "out": out, "label": options.given_label()})
        except MissingSampleError as error:
            if before is None or error.index not in before.job["indices"]:
                raise
            raise UsageError(
                f"the baseline has sample {error.index}, {error.name} only {error.size}; give the data that the "
                "baseline was measured on, or write it anew with --update"
            ) from error
    if update or before is None:
        baseline.save(record, file)
        data = {**record.to_json(), "baseline": str(file)}
        text = f"{record.summary()}\nbaseline written to {file}; {rule.reach(record, allowed)}"
        output.tell(data, text, json_to)
        return
    found = rule.judge(before, record, allowed)
    below = rule.floors(record, *least)
    data, said = found.to_json(), verdict(found, before, record)
    if any(share is not None for share in least):
        data["floors"] = {"robust": least[0], "certified": least[1], "below": below}
        said = "\n".join([said, *(f"FAILED: {why}" for why in below)])
    output.tell({**data, "passed": found.passed and not below}, said, json_to)
    if below or not found.passed:
        end(ExitCode.GATE_FAILED)


def _check(given: set[str], *, file: Path, run: bool, update: bool, out: bool, budget: bool) -> None:
    """Refuse options that do not go together; `given` names those of an evaluation that were given."""
    if run and (given or out or budget):
        raise UsageError("--run judges a stored run, so nothing is evaluated; leave out the options of an evaluation")
    if update and budget:
        raise UsageError("--update measures a whole baseline and judges nothing; leave out --time-budget")
    if not update and (decided := sorted(given & _DECIDED)):
        names = ", ".join(f"-{'-' * (len(name) > 1)}{name}" for name in decided)
        raise UsageError(f"{names}: the baseline decides that; leave it out, or change the baseline with --update")
    if not update and not file.exists():
        raise UsageError(f"there is no baseline {file}; make it: --update --model … --dataset … --attack … --eps …")
    if update and not file.parent.is_dir():
        raise UsageError(f"--baseline {file}: there is no folder {file.parent}")


def _as_baseline(
    asked: Mapping[str, Any], given: set[str], before: "RunRecord | None", budget: float | None, allowed: Fraction
) -> dict[str, Any]:
    """The options of the baseline's job with those that were given in their place, complete."""
    if before is None:
        if "model" not in given:
            raise UsageError("a new baseline needs --model; and --dataset, --attack, --norm, --eps as for eval")
        return evaluate.complete(asked)
    from robustkit.records import gate

    job = gate.request(before.job)
    if budget is not None:
        fit, expected = gate.prefix(before, budget, allowed)
        job["indices"] = job["indices"][:fit]
        text = f"--time-budget: the first {fit} of {before.n} samples, {expected:.1f} s of attack in the baseline"
        click.echo(text, err=True)
    if "n" in given:
        job["indices"] = None
    if "norm" in given:
        job["eps"] = None
    return evaluate.complete({**asked, **job, **{name: asked[name] for name in given}})
