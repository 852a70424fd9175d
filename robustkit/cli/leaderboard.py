"""`robustkit leaderboard`: renders a board's README, adds a run to it."""

from pathlib import Path
from shlex import quote

import click

from robustkit.errors import UsageError


@click.group()
def leaderboard() -> None:
    """Boards of models under one attack: a folder with board.toml, entries/ and a rendered README.md.

    \b
    robustkit leaderboard render leaderboards/<board>
    """  # noqa: D301


@leaderboard.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; fail if the README is not what its entries say.")
def render(folder: Path, check: bool) -> None:
    """Write the README of the board in FOLDER from its entries.

    \b
    robustkit leaderboard render leaderboards/digits-linf-v1
    """  # noqa: D301
    from robustkit.engine.identity import present_hashes
    from robustkit.records import leaderboard as boards

    if not check:
        click.echo(f"wrote {boards.write(folder, present_hashes)}")
        return
    board, file = boards.load_board(folder), folder / boards.README
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text != boards.render(board, boards.load_entries(folder, board), present_hashes):
        raise UsageError(f"{file} is not what the entries say; run: robustkit leaderboard render {quote(str(folder))}")
    click.echo(f"{file} is what the entries say")


@leaderboard.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Of the entry; by default the model's.")
def add(folder: Path, run: Path, name: str) -> None:
    """Make the stored RUN an entry of the board in FOLDER.

    \b
    robustkit leaderboard add leaderboards/digits-linf-v1 robustkit-runs/my-run --name my-model
    """  # noqa: D301
    from robustkit.records import leaderboard as boards

    click.echo(f"added {boards.add(folder, run, name)}; now: robustkit leaderboard render {quote(str(folder))}")
