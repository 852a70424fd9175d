"""The command line: the group of all commands, what becomes of their errors, and the table of them.

A command parses, calls one function and prints. What is slow to import is imported where it is used.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from robustkit import __version__
from robustkit.cli import (
    audit,
    cache,
    certify,
    compare,
    completion,
    corruptions,
    doctor,
    evaluate,
    gate,
    leaderboard,
    listing,
    plot,
    report,
    run,
    show,
    train,
    transfer,
)
from robustkit.errors import RobustkitError, UsageError
from robustkit.spec import suggest


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


for command in (
    evaluate.evaluate, audit.audit, certify.certify, corruptions.corruptions, transfer.transfer, run.run, gate.gate,
    compare.compare, show.show, report.report, plot.plot, leaderboard.leaderboard, train.train, doctor.doctor,
    listing.listing, cache.data, cache.models, completion.completion,
):  # fmt: skip
    main.add_command(command)
