"""The command `robustkit report`. What is slow to import is imported where it is used."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options, output
from robustkit.cli.choice import OneOf
from robustkit.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.out("Write there instead of into RUN.")
@click.option("--format", "formats", multiple=True, type=OneOf(["html", "md", "tex", "csv"]),
              help="Only this one; repeat it for several. By default all.")  # fmt: skip
@options.json_to("the files' paths")
def report(run: Path, out: Path | None, formats: tuple[Any, ...], json_to: str | None) -> None:
    """Write the reports of a stored RUN, sweep, transfer run, study, corruptions, certificate, bounds or audit.

    \b
    robustkit report robustkit-runs/<run>
    robustkit report robustkit-runs/<run> --out pages --format html --label "ours, epoch 90"
    robustkit report certificate.json --out pages
    \b
    Nothing is computed anew. RUN is a folder, or a file that `--json FILE` or `--out FILE.json` has written.
    """  # noqa: D301
    from robustkit.records import kinds
    from robustkit.records.schema import STUDY
    from robustkit.report import fill

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    if not formats:
        fill.need()
    place = kinds.find(run)
    chosen = list(dict.fromkeys(formats)) or None
    if place is not None and place.kind == STUDY:
        written = _study(run, out, chosen)
    else:
        written = _record(kinds.load(run), run, out, chosen)
    output.tell({"schema": output.FILES, "files": written}, "\n".join(written), json_to)


def _study(folder: Path, out: Path | None, formats: Sequence[Any] | None) -> list[str]:
    from robustkit.study import files, results

    found = results.load(folder)
    if label := options.given_label():
        found = replace(found, study=replace(found.study, title=label))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    return list(files.write(found, folder, formats, out).values())


def _record(record: Any, run: Path, out: Path | None, formats: Sequence[Any] | None) -> list[str]:
    """Write the pages beside the record's file, which gets their digests, or below `out`."""
    from robustkit.records.files import rewrite_pages, write_text

    pages = _pages(record, options.given_label(), formats)
    beside = run if run.is_dir() else run.parent
    if out is None and run.is_file():
        raise UsageError(f"{run} is a file, not a run's folder; say where the reports go: --out DIR")
    written = []
    for file, texts in pages.items():
        folder = (out or beside) / file.parent
        folder.mkdir(parents=True, exist_ok=True)
        if out is None:
            rewrite_pages(beside / file, texts)
        else:
            for name, text in texts.items():
                write_text(folder / name, text)
        written += [str(folder / name) for name in texts]
    return written


def _pages(record: Any, label: str, formats: Sequence[Any] | None) -> dict[Path, Mapping[str, str]]:
    """The text of each report by its name, under the file of the record that it is of, below the run's folder."""
    from robustkit.records import bounds, certificate, corruption, findings, sweep, transfer_folder
    from robustkit.records.bounds import BoundsRecord
    from robustkit.records.certificate import CertifiedRecord
    from robustkit.records.corruption import CorruptionRecord
    from robustkit.records.findings import Audited
    from robustkit.records.run import RunRecord
    from robustkit.records.sweep import Sweep
    from robustkit.records.transfer import TransferRecord
    from robustkit.report import files

    record = sweep.labelled(record, label) if isinstance(record, Sweep | RunRecord) else _labelled(record, label)
    match record:
        case Sweep():
            inner = {
                sweep.run_folder(Path(), place) / "run.json": files.of_run(one, formats)
                for place, one in enumerate(record.records)
            }
            return {**inner, Path(sweep.FILE): files.of_sweep(record, formats)}
        case TransferRecord():
            return {Path(transfer_folder.RESULT): files.of_transfer(record, formats)}
        case CorruptionRecord():
            return {Path(corruption.RESULT): files.of_corruptions(record, formats)}
        case CertifiedRecord():
            return {Path(certificate.RESULT): files.of_certificate(record, formats)}
        case BoundsRecord():
            return {Path(bounds.RESULT): files.of_bounds(record, formats)}
        case Audited():
            return {Path(findings.RESULT): files.of_audit(record, formats)}
        case _:
            return {Path("run.json"): files.of_run(record, formats)}


def _labelled(record: Any, label: str) -> Any:
    return replace(record, about=replace(record.about, label=label)) if label else record
