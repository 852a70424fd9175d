"""A run's record as plain text, and the words that every report of it shares."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustkit.records.about import About
from robustkit.records.findings import UNDECIDED
from robustkit.records.schema import BROKEN, WRONG
from robustkit.records.votes import MEAN
from robustkit.stats import MeanShare, Proportion

if TYPE_CHECKING:
    from robustkit.records.run import RunRecord


def share(value: Proportion | MeanShare | None) -> str:
    """A share with its interval, or what stands for a missing one."""
    return str(value) if value is not None else "not established"


def percent(value: Proportion | None) -> str:
    """A share with its interval as a table has them, in percent and without a sign."""
    return "–" if value is None else f"{100 * float(value):.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def heading(record: "RunRecord") -> str:
    """What was attacked, with what."""
    return heading_of(record.job, record.n, record.about)


def heading_of(job: Mapping[str, Any], n: int, about: About) -> str:
    """The heading of a run that has this job, be it finished or not."""
    target = f", target {job['target']}" if job["target"] else ""
    return (
        f"{labelled_as(about.label)}{job['model']} on {job['data']} (n = {n}), {job['norm']} eps "
        f"{about.written(job['eps'])}, {job['attack']}{target}, seed {job['seed']}"
    )


def labelled_as(label: str) -> str:
    """A label as it begins a heading; nothing where there is none."""
    return f"{label}: " if label else ""


def brief(record: "RunRecord") -> list[tuple[str, str]]:
    """A run in four lines, each with its name."""
    rows = record.by_attack
    seconds, met = sum(row.seconds for row in rows), rows[0].attacked if rows else 0
    robust = share(record.robust_accuracy)
    if why := record.why_no_robust_accuracy:
        robust += f", because {why}"
    count = f"{len(rows)} attack{'s' * (len(rows) != 1)}"
    return [
        ("clean accuracy", share(record.clean_accuracy)),
        ("robust accuracy", robust),
        ("attacks", f"{count} broke {sum(row.broken for row in rows)} of {met} in {seconds:.1f} s"),
        (
            "audit",
            " · ".join(part for part in (record.warning or record.verdict, record.about.date, record.folder) if part),
        ),
    ]


def summary(record: "RunRecord") -> str:
    """The result in a few lines."""
    lines = [heading(record), f"clean accuracy   {share(record.clean_accuracy)}"]
    for row in record.by_attack:
        violated = f", {row.violated} violated" if row.violated else ""
        lines.append(
            f"  {row.name:<28} broke {row.broken} of {row.attacked}{violated}; {row.forwards} forwards, "
            f"{row.backwards} backwards, {row.seconds:.1f} s"
        )
    lines.append(f"robust accuracy  {share(record.robust_accuracy)}")
    lines += [f"  {line}" for line in bracket(record)]
    lines += [f"  {line}" for line in warning(record)]
    if record.why_no_robust_accuracy:
        lines.append(f"  because {record.why_no_robust_accuracy}")
    lines += [f"  {label:<34} {share(value)}" for label, value in labelled(record)]
    if record.rejection:
        words = {
            "clean_refused": "clean images refused",
            "plain_clean": "clean accuracy without refusing",
            "plain_robust": "robust accuracy without refusing",
        }
        lines += [f"  {words[name]:<34} {share(value)}" for name, value in record.rejection.items()]
    if record.quantized_robust_accuracy is not None:
        lines.append(f"  after rounding to {record.job['quantize']}: {share(record.quantized_robust_accuracy)}")
    lines.append(f"95 % Wilson intervals; {audited(record)}")
    lines += [f"note: {flag['message']}" for flag in record.flags]
    lines += [f"note: {text}" for text in record.notes]
    lines += [f"error: {e['attack']}: {e['message']} ({len(e['indices'])} samples)" for e in record.errors]
    return "\n".join(lines)


def bracket(record: "RunRecord") -> list[str]:
    """What is proved, beside what was broken: the certified accuracy, how it came about, and what is left open."""
    certified, how = record.certified_accuracy, record.certificates
    if certified is None or how is None:
        return []
    attacks, check = len(record.job["attacks"]), how["check"]
    when = "after the attacks" if how["after"] == attacks else "first"
    if 0 < how["after"] < attacks:
        when = f"after {how['after']} of {attacks} attacks"
    tested = f", {check['samples']} attacked all the same by {check['attack']}" if check["samples"] else ""
    return [
        f"certified accuracy {certified} ({how['method']}, {when}, {how['seconds']:.1f} s{tested})",
        f"proved {certified.k}, open {record.open}, broken {record.counts[BROKEN]}, wrong {record.counts[WRONG]}: "
        "the robust accuracy on these samples lies between what is proved and what no attack broke",
    ]


def audited(record: "RunRecord") -> str:
    """What an audit says, in words."""
    return f"audit: {record.verdict}" if record.audit else "not audited for gradient masking"


def warning(record: "RunRecord") -> list[str]:
    """The lines under a robust accuracy that was audited and not found valid: the verdict, then each reason."""
    if not record.warning or record.audit is None:
        return []
    means = "too little evidence for this number" if record.verdict == UNDECIDED else "do not rely on this number"
    return [f"{record.verdict.upper()}: {means}", *(f"- {text}" for text in record.audit["reasons"])]


def labelled(record: "RunRecord") -> list[tuple[str, Proportion | MeanShare]]:
    """The accuracies of a randomised model, each with its name, the headline's first; nothing of any other."""
    if not record.draws:
        return []
    found = [
        (f"majority vote of {record.draws} fresh draws", record.robust_accuracy),
        (f"mean ± std of {MEAN} fresh draws", record.mean_accuracy),
        ("worst case over all passes", record.worst_case_accuracy),
        ("expected, by the members' weights", record.expected_accuracy),
        ("every member right, any draw", record.any_draw_accuracy),
    ]
    return [(label, value) for label, value in found if value is not None]
