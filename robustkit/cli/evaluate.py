"""The command `robustkit eval`, and the one call of `robustkit.evaluate` that `gate` makes too."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit import plugins
from robustkit.cli import completion, options, output
from robustkit.cli.choice import OneOf
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError
from robustkit.spec import DEFAULT_EPS, number

if TYPE_CHECKING:
    from robustkit.records.run import RunRecord


@click.command("eval")
@options.evaluation(model_required=True, sweeps=True)
@click.option(
    "--then",
    metavar="ATTACK",
    shell_complete=completion.attack,
    help="Attack what --attack leaves standing with this too: --attack fast --then autoattack.",
)
@click.option("--quantize", type=OneOf(["8bit"]), help="Also judge each adversarial rounded to 8 bits.")
@click.option("--save-adversarial", is_flag=True, help="Keep the adversarial images in the run's folder.")
@options.out(f"The run's folder; default {output.RUNS}/<what is run>.")
@options.fresh
@click.option("--audit", is_flag=True, help="Audit the robust accuracy too: valid, suspect or invalid, with evidence.")
@options.json_to("run.json")
def evaluate(then: str | None, quantize: str | None, out: Path | None, json_to: str | None, **asked: Any) -> None:
    """Measure a model's robust accuracy. Killed and run again, it continues.

    \b
    robustkit eval --model digits-cnn-at --attack autoattack --eps 0.1
    robustkit eval --model python/my_package.make --dataset cifar10:path=./data --norm l2 --eps 0.5 -n 1000
    robustkit eval --model digits-cnn-at --eps 0.05,0.1,0.2     (what breaks at one eps is carried to the next)
    \b
    Exit codes: 0 done, 2 bad usage, 3 the robust accuracy could not be established, 130 interrupted.
    """  # noqa: D301
    from robustkit.records import sweep

    asked = complete({**asked, "label": options.given_label()})
    if then:
        both = [*plugins.specs("attacks", asked["attack"]), *plugins.specs("attacks", then)]
        asked["attack"] = "+".join(f"({one})" for one in both)
    radii = sweep.parse_eps(asked["eps"])
    if len(radii) > 1:
        _check_sweep(asked["norm"], radii, quantize, out)
    folder: list[Path] = []
    records: list[RunRecord] = []

    def place(job: Any) -> Path:
        if not folder:
            folder.append(out or output.RUNS / _folder_name(job, asked["eps"]))
        return sweep.run_folder(folder[0], len(records)) if len(radii) > 1 else folder[0]

    with output.interruptible(folder):
        for eps in radii:
            carry = records[-1] if records else None
            records.append(measure({**asked, "eps": eps, "quantize": quantize, "out": place, "carry": carry}))
    result = records[0] if len(radii) == 1 else sweep.Sweep(tuple(radii), tuple(records))
    if isinstance(result, sweep.Sweep):
        from robustkit.report import files

        result.save(folder[0], files.of_sweep(result))
    output.tell(result.to_json(), f"{result.summary()}\nin {folder[0]}", json_to)
    if any(record.robust_accuracy is None for record in records):
        end(ExitCode.NOT_ESTABLISHED)


def complete(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the defaults that depend on others.

    Raises:
        UsageError: for a model without a dataset.
    """
    dataset = options.dataset_of(asked["model"], asked["dataset"])
    return {**asked, "dataset": dataset, "eps": asked["eps"] or DEFAULT_EPS[asked["norm"]]}


def measure(asked: Mapping[str, Any]) -> "RunRecord":
    """Call `robustkit.evaluate` with complete options; progress goes to stderr."""
    from robustkit.evaluation import evaluate
    from robustkit.report import live

    arguments = dict(asked)
    quiet, threads, data = (arguments.pop(name) for name in ("quiet", "threads", "dataset"))
    progress = live.Progress()
    with progress, output.computing(threads=threads, quiet=quiet):
        return evaluate(data=data, **arguments, on_event=None if quiet else progress)


def _check_sweep(norm: Any, radii: list[str], quantize: str | None, out: Path | None) -> None:
    from robustkit.api import ThreatModel
    from robustkit.records import sweep

    if quantize:
        raise UsageError("--quantize does not combine with a sweep over --eps; run the eps one by one")
    for eps in radii:
        ThreatModel(norm, number(eps))
    if out:
        sweep.check_place(out)


def _folder_name(job: Any, eps: str) -> str:
    model = f"{job.model}-{job.defense}" if job.defense else job.model
    return output.folder_name(f"{model}-{job.data}-{job.attack}-{job.norm}-{eps}", job.id)
