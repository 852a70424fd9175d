"""Tables of shares as heat maps in HTML: rows under heads, each share a cell that is the darker the larger it is."""

from collections.abc import Sequence
from typing import Any

from robustkit.stats import Proportion


def cell(share: Proportion | None, *, mark: str = "", best: bool = False, own: bool = False, dark: bool = True,
         interval: bool = True) -> dict[str, Any]:  # fmt: skip
    """A share in percent with its interval; `dark` unless the smaller one is to be seen."""
    if share is None:
        return {"text": "–", "interval": "", "shade": 0.0, "mark": mark, "best": False, "own": own}
    shown = f"{100 * share.low:.1f}–{100 * share.high:.1f}" if interval else ""
    value = float(share)
    shade = value if dark else 1 - value
    return {"text": f"{100 * value:.1f}", "interval": shown, "shade": shade, "mark": mark, "best": best, "own": own}


def empty() -> dict[str, Any]:
    """A cell of what was not asked."""
    return {"text": "", "interval": "", "shade": 0.0, "mark": "", "best": False, "own": False}


def row(names: Sequence[str | None], cells: Sequence[dict[str, Any]], *, plain: bool = False,
        spans: int = 0) -> dict[str, Any]:  # fmt: skip
    """A row; a name that is None is covered by that of a row above, which `spans` so many; `plain`: no shade."""
    return {"names": list(names), "cells": list(cells), "plain": plain, "spans": spans}


def table(title: str, about: str, heads: Sequence[str], columns: Sequence[str],
          groups: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:  # fmt: skip
    """A table whose groups of rows are set apart by a rule."""
    return {"title": title, "about": about, "heads": heads, "columns": columns, "groups": groups}
