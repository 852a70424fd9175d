"""LaTeX: text that prints as it is, and tables in the style of booktabs."""

from collections.abc import Sequence

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "−": r"$-$", "[": "{[}", "]": "{]}", "*": "{*}",  # a row may begin with them
}  # fmt: skip


def tex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(char, char) for char in " ".join(text.split()))


def latex_table(caption: str, columns: str, head: Sequence[str], body: Sequence[Sequence[str] | str]) -> str:
    """A `table` environment. The caption is escaped here, cells are LaTeX already; a text in the body is a line."""
    lines = [row if isinstance(row, str) else " & ".join(row) + r" \\" for row in body]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{tex(caption)}}}",
            r"\centering\small",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
