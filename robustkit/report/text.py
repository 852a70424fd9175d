"""A record as plain text and as Markdown."""

import re

from robustkit.records.run import RunRecord
from robustkit.records.votes import MEAN
from robustkit.stats import MeanShare, Proportion


def share(value: Proportion | MeanShare | None) -> str:
    """A share with its interval, or what stands for a missing one."""
    return str(value) if value is not None else "not established"


def heading(record: RunRecord) -> str:
    """What was attacked, with what."""
    job = record.job
    target = f", target {job['target']}" if job["target"] else ""
    return (
        f"{job['model']} on {job['data']} (n = {record.n}), {job['norm']} eps {job['eps']:.6g}, "
        f"{job['attack']}{target}, seed {job['seed']}"
    )


def summary(record: RunRecord) -> str:
    """The result in a few lines."""
    lines = [heading(record), f"clean accuracy   {share(record.clean_accuracy)}"]
    for row in record.by_attack:
        violated = f", {row.violated} violated" if row.violated else ""
        lines.append(
            f"  {row.name:<28} broke {row.broken} of {row.attacked}{violated}; {row.forwards} forwards, "
            f"{row.backwards} backwards, {row.seconds:.1f} s"
        )
    lines.append(f"robust accuracy  {share(record.robust_accuracy)}")
    lines += [f"  {line}" for line in warning(record)]
    if record.why_no_robust_accuracy:
        lines.append(f"  because {record.why_no_robust_accuracy}")
    lines += [f"  {label:<34} {share(value)}" for label, value in labelled(record)]
    if record.quantized_robust_accuracy is not None:
        lines.append(f"  after rounding to {record.job['quantize']}: {share(record.quantized_robust_accuracy)}")
    lines.append(f"95 % Wilson intervals; {audited(record)}")
    lines += [f"note: {flag['message']}" for flag in record.flags]
    lines += [f"error: {e['attack']}: {e['message']} ({len(e['indices'])} samples)" for e in record.errors]
    return "\n".join(lines)


def audited(record: RunRecord) -> str:
    """What an audit says, in words."""
    return f"audit: {record.verdict}" if record.audit else "not audited for gradient masking"


def warning(record: RunRecord) -> list[str]:
    """The lines that stand under a robust accuracy which an audit doubts: the verdict, then each reason."""
    if not record.warning or record.audit is None:
        return []
    return [f"{record.verdict.upper()}: do not rely on this number", *(f"- {text}" for text in record.audit["reasons"])]


def labelled(record: RunRecord) -> list[tuple[str, Proportion | MeanShare]]:
    """The accuracies of a randomised model, each with its name, the headline's first; nothing of any other."""
    if not record.draws:
        return []
    found = [
        (f"majority vote of {record.draws} fresh draws", record.robust_accuracy),
        (f"mean ± std of {MEAN} fresh draws", record.mean_accuracy),
        ("worst case over all passes", record.worst_case_accuracy),
    ]
    return [(label, value) for label, value in found if value is not None]


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
            ["\n".join(["**" + cell(warned[0]) + "**", "", *map(cell, warned[1:])])]
            if (warned := warning(record))
            else []
        ),
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
    text = re.sub(r"([\\|`*\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)  # '_' inside a word is no markup
    return " ".join(text.split())
