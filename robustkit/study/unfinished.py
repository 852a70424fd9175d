"""A study that is not finished: which of its cells' runs are there, and how far they are. No torch."""

from pathlib import Path
from typing import Any

from robustkit.records import consistency, listing
from robustkit.records.files import read_json
from robustkit.study import grammar
from robustkit.study.results import FILE, SCHEMA

RUNS = "runs"  # below the study's folder


def of(folder: Path) -> tuple[dict[str, Any], str]:
    """What stands so far, as JSON data and as text.

    Raises:
        UsageError: if the study's file cannot be read.
    """
    data = read_json(folder / FILE, ("name", "study"), SCHEMA)
    with consistency.readable(folder / FILE):
        study = grammar.parse(data["study"], data["name"])
    rows = listing.runs(folder / RUNS) if (folder / RUNS).is_dir() else []
    total = len(study.cells()) + len(study.transfers())
    done = sum(row.finished for row in rows)
    last = f"NOT FINISHED: {done} runs of {total} cells are there; run its command again to continue"
    text = "\n".join([study.title, *([listing.table(rows)] if rows else []), last])
    found = {
        "schema": "robustkit/study-so-far/1",
        "finished": False,
        "title": study.title,
        "cells": total,
        "runs": [row.to_json() for row in rows],
    }
    return found, text
