"""`robustkit leaderboard`: renders a board's README, adds a run to it."""

from pathlib import Path
from shlex import quote

import click

from robustkit.cli import options, output
from robustkit.errors import UsageError


@click.group(cls=options.Group)
def leaderboard() -> None:
    """Boards of models under one attack: a folder with board.toml, entries/ and a rendered README.md.

    \b
    robustkit leaderboard render leaderboards/<board>
    """  # noqa: D301


@leaderboard.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; fail if the README is not what its entries say.")
@options.json_to("which file it is")
def render(folder: Path, check: bool, json_to: str | None) -> None:
    """Write the README of the board in FOLDER from its entries.

    \b
    robustkit leaderboard render leaderboards/digits-linf-v1
    """  # noqa: D301
    from robustkit.engine.identity import present_hashes
    from robustkit.records import leaderboard as boards

    if not check:
        written = boards.write(folder, present_hashes)
        output.tell({"schema": output.FILES, "files": [str(written)]}, f"wrote {written}", json_to)
        return
    board, file = boards.load_board(folder), folder / boards.README
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text != boards.render(board, boards.load_entries(folder, board), present_hashes):
        raise UsageError(f"{file} is not what the entries say; run: robustkit leaderboard render {quote(str(folder))}")
    output.tell({"schema": output.FILES, "files": []}, f"{file} is what the entries say", json_to)


@leaderboard.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Of the entry; by default --label, or the model's.")
@options.json_to("which entry it is")
def add(folder: Path, run: Path, name: str, json_to: str | None) -> None:
    """Make the stored RUN an entry of the board in FOLDER.

    \b
    robustkit leaderboard add leaderboards/digits-linf-v1 robustkit-runs/my-run --name my-model
    """  # noqa: D301
    from robustkit.records import leaderboard as boards

    added = boards.add(folder, run, name or options.given_label())
    text = f"added {added}; now: robustkit leaderboard render {quote(str(folder))}"
    output.tell({"schema": output.FILES, "files": [str(added)]}, text, json_to)
