"""A run's record as Markdown."""

import re

from robustkit.records.run import RunRecord
from robustkit.records.text import audited, bracket, heading, labelled, share, warning


def markdown(record: RunRecord) -> str:
    """The run's `report.md`."""
    job = record.job
    rows = [
        f"| {cell(row.name)} | {row.attacked} | {row.broken} | {share(row.robust)} | "
        f"{row.forwards} | {row.backwards} | {row.seconds:.1f} |"
        for row in record.by_attack
    ]
    counts = ", ".join(f"{count} {status}" for status, count in record.counts.items())
    sentence = audited(record).capitalize()
    notes = [f"- {cell(flag['message'])}" for flag in record.flags]
    notes += [f"- {cell(e['attack'])}: {cell(e['message'])} ({len(e['indices'])} samples)" for e in record.errors]
    facts = {
        **record.about.told(),
        "job": job["id"],
        "model sha256": job["model_sha256"],
        "data sha256": job["data_sha256"],
        "device": f"{job['device']}, {job['threads']} threads, tiles of {job['tile']}, {job['precision']}",
        "versions": ", ".join(f"{k} {v}" for k, v in job["versions"].items()),
    }
    parts = [
        f"# {cell(heading(record))}",
        f"**Robust accuracy: {share(record.robust_accuracy)}** "
        f"{'(' + cell(record.why_no_robust_accuracy) + ') ' if record.why_no_robust_accuracy else ''}"
        f"· clean accuracy: {share(record.clean_accuracy)}",
        *(
            [
                "\n".join(
                    ["**" + cell(warned[0]) + "**", "", *(f"- {cell(why.removeprefix('- '))}" for why in warned[1:])]
                )
            ]
            if (warned := warning(record))
            else []
        ),
        *([cell(". ".join(found)) + "."] if (found := bracket(record)) else []),
        *([", ".join(f"{label}: {share(value)}" for label, value in labelled(record))] if record.draws else []),
        f"{counts}. Rule: {record.rule}. Intervals: Wilson, 95 %. {sentence}.",
        "| attack | attacked | broken | robust accuracy after it | forwards | backwards | seconds |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows),
        *(["\n".join(notes)] if notes else []),
        "\n".join(f"- {name}: {cell(str(value))}" for name, value in facts.items()),
    ]
    return "\n\n".join(parts) + "\n"


def cell(text: str) -> str:
    """Text that cannot break out of a Markdown table or become markup."""
    for char, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, safe)
    text = re.sub(r"([\\|`*~$\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)  # '_' inside a word is no markup
    return re.sub(
        r"^(\d*)([-+#.)])(?=\s|#|$)", r"\1\\\2", " ".join(text.split())
    )  # at its beginning: a list, a heading
