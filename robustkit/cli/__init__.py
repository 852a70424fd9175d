"""The command line: parses, calls one function, prints. What is slow to import is imported where it is used."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from robustkit import __version__, plugins
from robustkit.cli import audit as cli_audit
from robustkit.cli import cache as cli_cache
from robustkit.cli import cards, completion
from robustkit.cli import corruptions as cli_corruptions
from robustkit.cli import doctor as cli_doctor
from robustkit.cli import options as cli_options
from robustkit.cli import plot as cli_plot
from robustkit.cli import report as cli_report
from robustkit.cli import run as cli_run
from robustkit.cli import transfer as cli_transfer
from robustkit.cli.certify import certify
from robustkit.cli.leaderboard import leaderboard
from robustkit.cli.train import train
from robustkit.errors import RobustkitError, UsageError
from robustkit.spec import number, suggest

RUNS = Path("robustkit-runs")


class _Group(click.Group):
    """Turns errors, ours and click's own, into one line and an exit code, and Ctrl-C into 130."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _one_line():
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UsageError(suggest(args[0], self.commands, "command"))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from robustkit.report.download import shown

        try:
            with shown(), _one_line():
                return super().invoke(ctx)
        except RobustkitError as error:
            _fail(str(error), error.exit_code)
        except BrokenPipeError:  # whoever read our output has seen enough
            raise
        except OSError as error:
            _fail(f"{error.filename or 'the file system'}: {error.strerror or error}", 2)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command to continue", 130)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Say on one line what click refuses: an option or a value that it does not know."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "robustkit"
        said = error.format_message().rstrip(".")
        _fail(f"{said}{' See' if said.endswith('?') else '; see'} {command} --help", error.exit_code)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="robustkit")
def main() -> None:
    """How robust an image classifier really is.

    \b
    robustkit eval --model digits-cnn-at --attack autoattack --eps 0.1
    robustkit list attacks
    robustkit show robustkit-runs/<run>
    robustkit compare robustkit-runs/<run> robustkit-runs/<other run>
    robustkit gate --baseline reports/baselines/digits-cnn-at.json
    """  # noqa: D301 (click's own escape for a block that keeps its lines)


@main.command("eval")
@cli_options.evaluation(model_required=True)
@click.option("--quantize", type=click.Choice(["8bit"]), help="Also judge each adversarial rounded to 8 bits.")
@click.option("--save-adversarial", is_flag=True, help="Keep the adversarial images in the run's folder.")
@click.option("--out", type=click.Path(path_type=Path), help=f"The run's folder; default {RUNS}/<what is run>.")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds of this run and compute it again.")
@click.option("--audit", is_flag=True, help="Audit the robust accuracy too: valid, suspect or invalid, with evidence.")
@cli_options.json_option("run.json")
def evaluate(
    quantize: str | None, save_adversarial: bool, out: Path | None, fresh: bool, audit: bool, json_to: str | None,
    **asked: Any,
) -> None:  # fmt: skip
    """Measure a model's robust accuracy. Killed and run again, it continues.

    \b
    robustkit eval --model digits-cnn-at --attack autoattack --eps 0.1
    robustkit eval --model python/my_package.make --dataset cifar10:path=./data --norm l2 --eps 0.5 -n 1000
    robustkit eval --model digits-cnn-at --eps 0.05,0.1,0.2     (what breaks at one eps is carried to the next)
    \b
    Exit codes: 0 done, 2 bad usage, 3 the robust accuracy could not be established, 130 interrupted.
    """  # noqa: D301
    from robustkit.records import sweep

    checked = cli_options.check(asked)
    radii = sweep.parse_eps(checked["eps"])
    if len(radii) > 1 and quantize:
        raise UsageError("--quantize does not combine with a sweep over --eps; run the eps one by one")
    if len(radii) > 1:
        from robustkit.api import ThreatModel

        for eps in radii:
            ThreatModel(checked["norm"], number(eps))
    if len(radii) > 1 and out:
        sweep.check_place(out)
    folder: list[Path] = []
    records: list[Any] = []

    def place(job: Any) -> Path:
        if not folder:
            folder.append(out or RUNS / _folder_name(job, checked["eps"]))
        return sweep.run_folder(folder[0], len(records)) if len(radii) > 1 else folder[0]

    try:
        for eps in radii:
            records.append(
                cli_options.measure(
                    {**checked, "eps": eps},
                    quantize=quantize,
                    save_adversarial=save_adversarial,
                    out=place,
                    fresh=fresh,
                    audit=audit,
                    carry=records[-1] if records else None,
                )
            )
    except KeyboardInterrupt:
        kept = f"; what was computed is kept in {folder[0]}" if folder else ""
        _fail(f"interrupted{kept}; run the same command to continue", 130)
    result = records[0] if len(radii) == 1 else sweep.Sweep(tuple(radii), tuple(records))
    if isinstance(result, sweep.Sweep):
        from robustkit.report import files

        result.save(folder[0], files.of_sweep(result))
    _print(result.to_json(), f"{result.summary()}\nin {folder[0]}", json_to)
    if any(record.robust_accuracy is None for record in records):
        sys.exit(3)


def _print(data: Any, text: str, json_to: str | None) -> None:
    """The JSON where it was asked for; the text, unless the JSON has taken stdout."""
    as_json = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    click.echo(as_json if json_to == "-" else text)
    if json_to and json_to != "-":
        Path(json_to).write_text(as_json + "\n", encoding="utf-8")


def _folder_name(job: Any, eps: str) -> str:
    model = f"{job.model}-{job.defense}" if job.defense else job.model
    words = f"{model}-{job.data}-{job.attack}-{job.norm}-{eps}"
    safe = "".join(c if c.isalnum() or c in "._=" else "-" for c in words)
    return f"{safe[:120].strip('-.')}-{job.id[:10]}"


@main.command("list")
@click.argument("kind", type=click.Choice(["attacks", "models", "datasets", "defenses", "recipes"]))
@click.argument("substring", default="")
@click.option("--source", default="", metavar="NAME", help="Only of this source of models or attacks: timm, foolbox.")
def list_(kind: str, substring: str, source: str) -> None:
    """What there is: attacks, models, datasets, defenses or recipes, with a SUBSTRING.

    \b
    robustkit list attacks
    robustkit list attacks --source torchattacks
    robustkit list models digits
    """  # noqa: D301
    if source and kind not in ("models", "attacks"):
        raise UsageError(f"--source is of models and attacks; leave it out for {kind}")
    rows: list[tuple[str, str]]
    if kind == "models":
        from robustkit.models import sources

        rows = sources.listing(source)
    elif kind == "attacks":
        rows = cards.attacks(source)
    elif kind == "datasets":
        from robustkit import datasets

        rows = datasets.listing()
    else:
        rows = [(name, found.entry.summary) for name, found in plugins.table(kind).items()]
    rows = [row for row in rows if substring.lower() in row[0].lower()]
    if not rows:
        click.echo(f"no {kind}" + (f" with {substring!r} in the name" if substring else " yet"), err=True)
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        click.echo(f"{name:<{width}}  {summary}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name", required=False, metavar="", shell_complete=completion.shown)
@click.option("--json", "as_json", is_flag=True, help="As run.json.")
def show(run: Path, name: str | None, as_json: bool) -> None:
    """Show a finished RUN or study from its folder, from the stored facts; or the card of an attack, defense or recipe.

    \b
    robustkit show robustkit-runs/digits-cnn-at-digits-autoattack-linf-0.1-0123456789
    robustkit show attack torchattacks/CW
    robustkit show defense crossmax
    robustkit show recipe at
    """  # noqa: D301
    if name is not None:
        kinds = {"attack": cards.attack, "defense": cards.defense, "recipe": cards.recipe}
        if str(run) not in kinds or as_json:
            words = f"{run} {name}" + " --json" * as_json
            raise UsageError(f"show takes a run's folder, attack NAME, defense NAME, or recipe NAME; not {words}")
        click.echo(kinds[str(run)](name))
        return
    from robustkit.records import sweep
    from robustkit.records.folder import load_run
    from robustkit.records.transfer_folder import RESULT, load_transfer

    if (run / cli_run.RESULT).is_file():
        click.echo(cli_run.shown(run, as_json=as_json))
        return
    load = load_transfer if (run / RESULT).is_file() else load_run
    record = sweep.load_sweep(run) if (run / sweep.FILE).is_file() else load(run)
    click.echo(json.dumps(record.to_json(), indent=1, ensure_ascii=False) if as_json else record.summary())


@main.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@cli_options.json_option("the comparison")
def compare(before: Path, after: Path, json_to: str | None) -> None:
    """Compare two stored runs sample by sample: BEFORE and AFTER are run folders or baseline files.

    \b
    robustkit compare robustkit-runs/old robustkit-runs/new
    robustkit compare reports/baselines/digits-cnn-at.json robustkit-runs/new --json -
    \b
    Exit codes: 0 compared, 2 bad usage, 3 a sample of either is UNKNOWN.
    """  # noqa: D301
    from robustkit.records import baseline
    from robustkit.records.compare import compare as pair
    from robustkit.report.comparison import comparison

    first, second = baseline.read(before), baseline.read(after)
    found = pair(first, second)
    _print(found.to_json(), comparison(found, first, second), json_to)


@main.command()
@click.option("--baseline", "file", required=True, type=click.Path(path_type=Path), help="The baseline's file.")
@click.option("--max-drop", default="0.5pp", show_default=True, metavar="0.5pp|0.5%",
              help="Robust accuracy that other weights may lose; a larger and significant drop fails.")  # fmt: skip
@click.option("--run", type=click.Path(path_type=Path), help="Judge this stored run instead of evaluating.")
@click.option("--time-budget", metavar="60s|2m",
              help="Only as many of the first samples as fit, by the baseline's counted costs.")  # fmt: skip
@click.option("--update", is_flag=True, help="Write the baseline anew, or for the first time, with the options below.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the run in this folder.")
@cli_options.json_option("the verdict")
@cli_options.evaluation(model_required=False)
def gate(
    file: Path, max_drop: str, run: Path | None, time_budget: str | None, update: bool, out: Path | None,
    json_to: str | None, **asked: Any,
) -> None:  # fmt: skip
    """Fail when a model got less robust than its baseline. What is not given is as in the baseline.

    \b
    robustkit gate --baseline base.json --update --model ./net.safetensors:arch=digits-cnn --dataset digits --eps 0.1
    robustkit gate --baseline base.json
    robustkit gate --baseline base.json --model ./new.safetensors:arch=digits-cnn --max-drop 1pp --time-budget 60s
    \b
    Other weights fail if the drop is significant (exact paired test, p < 0.05) and larger than --max-drop.
    The same weights fail if any sample flips, unless the model is randomised.
    Exit codes: 0 passed, 1 failed, 2 bad usage, 3 a sample is UNKNOWN.
    """  # noqa: D301
    from robustkit.records import baseline
    from robustkit.records import gate as rule
    from robustkit.report.comparison import verdict

    source = click.get_current_context().get_parameter_source
    given = {name for name in asked if source(name) is click.core.ParameterSource.COMMANDLINE} - {"quiet"}
    allowed, budget = rule.parse_drop(max_drop), rule.parse_seconds(time_budget) if time_budget else None
    cli_options.check_gate(given, file=file, run=run is not None, update=update, out=out is not None,
                           budget=budget is not None, json_to=json_to is not None)  # fmt: skip
    before = baseline.load(file) if file.exists() else None
    if run is not None:
        record = baseline.read(run)
    else:
        record = cli_options.measure(cli_options.as_baseline(asked, given, before, budget), out=out)
    if update or before is None:
        baseline.save(record, file)
        click.echo(f"{record.summary()}\nbaseline written to {file}")
        return
    found = rule.judge(before, record, allowed)
    _print(found.to_json(), verdict(found, before, record), json_to)
    if not found.passed:
        sys.exit(1)


main.add_command(cli_cache.data)
main.add_command(cli_cache.models)
main.add_command(cli_doctor.doctor)
main.add_command(cli_transfer.transfer)
main.add_command(cli_corruptions.corruptions)
main.add_command(cli_audit.audit)
main.add_command(cli_report.report)
main.add_command(cli_plot.plot)
main.add_command(cli_run.run)
main.add_command(train)
main.add_command(leaderboard)
main.add_command(certify)


@main.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_(shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    robustkit completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "robustkit", "_ROBUSTKIT_COMPLETE").source())


if __name__ == "__main__":
    main(prog_name="robustkit")
