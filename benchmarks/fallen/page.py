"""The page of the fallen and its table as csv, from the rows that were measured."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fallen.cases import CASES, Case
from benchmarks.readme import write_between

BEGIN, END = "<!-- tables: written by benchmarks/fallen -->", "<!-- end of tables -->"
NEAR = 3.0  # points between `adaptive` and the attack made by hand
LETTERS = {"declared": "D", "undeclared": "U", "sealed": "S"}
Row = Mapping[str, Any]


def write(out: Path, rows: Sequence[Row]) -> None:
    """`README.md` between its marks, and `fallen.csv` with every row."""
    out.mkdir(parents=True, exist_ok=True)
    found = {(row["name"], row["dress"], row["run"]): row for row in rows if row["name"] in CASES}
    whole = [name for name in CASES if (name, "declared", "by-hand") in found]
    parts = [outcome(found, whole), summary(found, whole), details(found, whole)]
    readme = out / "README.md"
    if not readme.exists():
        readme.write_text(f"# The fallen\n\n{BEGIN}\n{END}\n")
    write_between(readme, BEGIN, END, "\n\n".join(parts))
    with (out / "fallen.csv").open("w", newline="") as file:
        columns = ("name", "dress", "run", "n", "clean", "robust", "verdict", "signs", "flags", "forwards", "backwards",
                   "seconds", "code")  # fmt: skip
        table = csv.writer(file)
        table.writerow(columns)
        for row in (found[key] for key in sorted(found)):
            table.writerow([cell(row[column]) for column in columns])


def cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def of(found: Mapping[tuple[str, str, str], Row], name: str, dress: str, run: str) -> Row | None:
    """The row of a run that sees no dress but only the function, which the sealed one may have of its own."""
    return found.get((name, dress, run)) or found.get((name, "declared", run))


def several(values: Sequence[float | None]) -> str:
    """Numbers of the dresses: one where they are the same, else all."""
    told = ["" if value is None else f"{value:.0f}" for value in values]
    return told[0] if len(set(told)) == 1 else " · ".join(told)


def dresses(case: Case) -> list[str]:
    return list(LETTERS) if case.defense else ["declared"]


def outcome(found: Mapping[tuple[str, str, str], Row], names: Sequence[str]) -> str:
    """The two counts, and what is missed."""
    near, doubted, missed, total = 0, 0, [], 0
    for name in names:
        for dress in dresses(CASES[name]):
            row, due = found.get((name, dress, "adaptive")), of(found, name, dress, "by-hand")
            if row is None or due is None:
                continue
            total += 1
            if row["robust"] <= due["robust"] + NEAR:
                near += 1
            elif row["verdict"] in ("suspect", "invalid"):
                doubted += 1
            else:
                missed.append(f"{name} ({dress}: {row['robust']:.0f} left, {due['robust']:.0f} due, {row['verdict']})")
    lines = [
        f"`adaptive:budget=quick` comes within {NEAR:.0f} points of the attack made by hand, or below it, on **{near} "
        f"of {total}** (defense, dress); of the other {total - near} the audit calls **{doubted}** suspect or invalid.",
        "Missed by both: " + ("; ".join(missed) + "." if missed else "none."),
    ]
    return "\n".join(lines)


def summary(found: Mapping[tuple[str, str, str], Row], names: Sequence[str]) -> str:
    """A line a defense."""
    head = ("defense", "published before → after", "PGD-40", "AutoAttack", "by hand", "`adaptive`",
            "verdict")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * 4 + "|---|"]
    for name in names:
        case = CASES[name]

        def told(run: str, name: str = name, case: Case = case) -> str:
            own = [of(found, name, dress, run) for dress in dresses(case)]
            return several([row and row["robust"] for row in own])

        left = [found.get((name, dress, "adaptive")) for dress in dresses(case)]
        verdicts = " · ".join(row["verdict"] if row else "" for row in left)
        cells = (case.title, case.published or "no figure seen", told("careless"), told("autoattack"),
                 told("by-hand"), several([row and row["robust"] for row in left]), verdicts)  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def details(found: Mapping[tuple[str, str, str], Row], names: Sequence[str]) -> str:
    """A line a defense and dress: how it masks, why it is doubted, and what was paid."""
    head = ("defense", "dress", "clean", "PGD-40", "AutoAttack", "by hand", "`adaptive`", "verdict, because",
            "passes (forward + backward an image)", "CPU s")  # fmt: skip
    lines = ["## In each dress", "", "| " + " | ".join(head) + " |", "|---|---" + "|---:" * 5 + "|---|---:|---:|"]
    for name in names:
        case = CASES[name]
        for dress in dresses(case):
            row = found.get((name, dress, "adaptive"))
            if row is None:
                continue
            others = [of(found, name, dress, run) for run in ("careless", "autoattack", "by-hand")]
            why = f"{row['verdict']}: {', '.join(row['signs'])}" if row["signs"] else row["verdict"]
            cells = [
                name, dress, f"{row['clean']:.0f}", *("" if one is None else f"{one['robust']:.0f}" for one in others),
                f"{row['robust']:.0f}", why,
                f"{row['forwards']:.0f} + {row['backwards']:.0f}", f"{row['seconds']:.0f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## How each masks here", ""]
    for name in names:
        case = CASES[name]
        lines.append(f"- **{name}** ({case.masks}). {case.note.capitalize() + '.' if case.note else ''}".rstrip())
    return "\n".join(lines)
