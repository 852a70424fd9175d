"""The command `robustkit show`."""

from pathlib import Path
from typing import Any

import click

from robustkit.cli import cards, completion, options, output
from robustkit.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name", required=False, metavar="", shell_complete=completion.shown)
@options.json_to("it")
def show(run: Path, name: str | None, json_to: str | None) -> None:
    """Show a RUN of any kind from its stored facts, as far as it is; or the card of an attack, defense or recipe.

    \b
    robustkit show robustkit-runs/digits-cnn-at-digits-autoattack-linf-0.1-0123456789
    robustkit show robustkit-runs/<run> --json -
    robustkit show attack torchattacks/CW
    robustkit show defense crossmax
    robustkit show recipe at
    """  # noqa: D301
    if name is None and str(run) in ("attack", "defense", "recipe") and not run.exists():
        raise UsageError(f"show {run} needs a name: robustkit show {run} NAME; robustkit list {run}s has them")
    if name is None:
        data, text = _stored(run)
        output.tell(data, output.fitted(text, output.columns()), json_to, options.given_label() or _label(data))
        return
    kinds = {"attack": cards.attack, "defense": cards.defense, "recipe": cards.recipe}
    if str(run) not in kinds:
        raise UsageError(f"show takes a run's folder, attack NAME, defense NAME, or recipe NAME; not {run} {name}")
    text = output.fitted(kinds[str(run)](name), output.columns())
    output.tell({"schema": "robustkit/card/1", "kind": str(run), "name": name, "text": text}, text, json_to)


def _stored(path: Path) -> tuple[dict[str, Any], str]:
    """What a folder or a file of ours holds: as JSON and as text."""
    from robustkit.records import kinds, so_far
    from robustkit.records.schema import STUDY
    from robustkit.study import report, results, unfinished

    place = kinds.find(path)
    if place is not None and place.kind == STUDY:
        if not place.finished:
            return unfinished.of(path)
        study = results.load(path)
        return dict(report.to_json(study)), report.summary(study)
    if place is not None and not place.finished:
        found = so_far.read(place)
        return found.to_json(), found.summary()
    record = kinds.load(path)
    return record.to_json(), record.summary()


def _label(data: dict[str, Any]) -> str:
    """What a stored record calls itself."""
    about = data.get("about") or {}
    return str(about.get("label", ""))
