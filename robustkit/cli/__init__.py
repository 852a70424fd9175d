"""The command line: the group of all commands, and the table of them. `endings` says how each ends.

A command parses, calls one function and prints. What is slow to import is imported where it is used.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

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
    endings,
    evaluate,
    gate,
    leaderboard,
    listing,
    options,
    plot,
    prove,
    report,
    run,
    runs,
    show,
    train,
    transfer,
)


class _Group(options.Group):
    """Ends every command as `cli.endings` says: one line for an error, and no exit code that is not ours."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        run = functools.partial(
            super().main, args, prog_name, complete_var, standalone_mode=False,
            windows_expand_args=windows_expand_args, **extra,
        )  # fmt: skip
        if not standalone_mode:
            return run()
        with endings.lasting_output(), endings.terminable():
            code = endings.code_of(run)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        from robustkit.report.download import shown

        with endings.told(ctx), shown():
            return super().invoke(ctx)


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
    compare.compare, show.show, runs.runs, report.report, plot.plot, leaderboard.leaderboard, prove.prove, train.train,
    doctor.doctor, listing.listing, cache.data, cache.models, completion.completion,
):  # fmt: skip
    main.add_command(command)
options.debug(main)
