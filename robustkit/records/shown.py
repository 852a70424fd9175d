"""How records look and compare: five lines, a table in a notebook, and equal where job and facts are."""

import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustkit.records.schema import Columns
from robustkit.spec import digest


class Shown:
    """What every kind of record shares; it says its `heading`, its figures `in_brief`, and its `identity`."""

    __slots__ = ()

    def heading(self) -> str:
        """What was measured, on one line."""
        raise NotImplementedError

    def in_brief(self) -> Sequence[tuple[str, str]]:
        """Four figures or facts with their names."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """The sha256 of what was asked and of the facts found: not of when, where, how long it took or its label."""
        raise NotImplementedError

    def __repr__(self) -> str:
        pairs = [(name, " ".join(value.split())) for name, value in self.in_brief()]
        width = max(len(name) for name, _ in pairs)
        return "\n".join([" ".join(self.heading().split()), *(f"{name:<{width}}  {value}" for name, value in pairs)])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Shown) and other.identity == self.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def _repr_html_(self) -> str:
        """A small table, which a notebook shows in its own colours."""
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in self.in_brief()
        )
        caption = f'<caption style="text-align:left">{html.escape(self.heading())}</caption>'
        return f"<table>{caption}<tbody>{rows}</tbody></table>"


def facts_digest(job: Mapping[str, Any], *tables: Columns) -> str:
    """The sha256 of a job and the facts in some tables, however they came: computed, or read from a file."""
    found = hashlib.sha256(str(job.get("id") or digest(dict(job))).encode())
    for table in tables:
        for name in sorted(table):
            values = np.asarray(table[name])
            found.update(f"{name} {len(values)} ".encode())
            if values.dtype.kind == "f":
                plain = values.astype(np.float64)
                found.update(np.where(np.isnan(plain), np.nan, plain).tobytes())
            elif values.dtype.kind in "iub":
                found.update(values.astype(np.int64).tobytes())
            else:
                found.update("\0".join(map(str, values.tolist())).encode())
        found.update(b"\n")
    return found.hexdigest()
