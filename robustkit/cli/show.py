"""The command `robustkit show`."""

from pathlib import Path
from typing import Any

import click

from robustkit.cli import cards, completion, options, output
from robustkit.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name", required=False, metavar="", shell_complete=completion.shown)
@options.as_json("As run.json.")
def show(run: Path, name: str | None, as_json: bool) -> None:
    """Show a finished RUN or study from its folder, from the stored facts; or the card of an attack, defense or recipe.

    \b
    robustkit show robustkit-runs/digits-cnn-at-digits-autoattack-linf-0.1-0123456789
    robustkit show attack torchattacks/CW
    robustkit show defense crossmax
    robustkit show recipe at
    """  # noqa: D301
    if name is None and str(run) in ("attack", "defense", "recipe") and not run.exists():
        raise UsageError(f"show {run} needs a name: robustkit show {run} NAME; robustkit list {run}s has them")
    if name is None:
        data, text = _stored(run)
        click.echo(output.as_json(data) if as_json else output.fitted(text, output.columns()))
        return
    kinds = {"attack": cards.attack, "defense": cards.defense, "recipe": cards.recipe}
    if str(run) not in kinds or as_json:
        words = f"{run} {name}" + " --json" * as_json
        raise UsageError(f"show takes a run's folder, attack NAME, defense NAME, or recipe NAME; not {words}")
    click.echo(output.fitted(kinds[str(run)](name), output.columns()))


def _stored(folder: Path) -> tuple[Any, str]:
    """What the folder of a study, a sweep, a transfer run or a run holds: as JSON and as text."""
    from robustkit.records import sweep, transfer_folder
    from robustkit.records.folder import load_run
    from robustkit.study import report, results

    if (folder / results.FILE).is_file():
        study = results.load(folder)
        return report.to_json(study), report.summary(study)
    record: Any
    if (folder / sweep.FILE).is_file():
        record = sweep.load_sweep(folder)
    elif (folder / transfer_folder.RESULT).is_file():
        record = transfer_folder.load_transfer(folder)
    else:
        record = load_run(folder)
    return record.to_json(), record.summary()
