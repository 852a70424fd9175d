"""A comparison and a gate's verdict as plain text."""

from collections.abc import Sequence

from robustkit.records.about import About
from robustkit.records.compare import Change, Comparison, Flip
from robustkit.records.gate import Verdict
from robustkit.records.run import RunRecord
from robustkit.records.schema import ROBUST
from robustkit.records.sweep import Paired
from robustkit.records.text import heading

SHOWN = 40
DOUBTED = "‡"  # as in a study's report


def comparison(found: Comparison, before: RunRecord, after: RunRecord, width: int | None = None) -> str:
    """What changed from one record to the other; a table that is wider than `width` is told in words, row by row."""
    sides = (("before", before), ("after", after))
    lines = [f"{side:<6}  {heading(record)}" for side, record in sides]
    doubted = any(record.warning for _, record in sides)
    about = before.about if before.about.classes else after.about
    for table, told in (_numbers(found, doubted=doubted), _flips(found.flips, about)):
        lines += table if width is None or max(map(len, table)) <= width else told
    lines += [f"note: not the same: {what}" for what in found.differs]
    lines += [f"{DOUBTED} {side}: robust accuracy {record.warning}" for side, record in sides if record.warning]
    lines += [f"note: {note}" for note in dict.fromkeys([*before.notes, *after.notes])]
    return "\n".join(lines)


def sweeps(found: Sequence[Paired], width: int | None = None) -> str:
    """What changed at each eps that two sweeps share."""
    parts = [f"eps {row.eps}\n{comparison(row.comparison, row.before, row.after, width)}" for row in found]
    return "\n\n".join(parts)


def verdict(found: Verdict, before: RunRecord, after: RunRecord) -> str:
    """What the gate says, and what it rests on."""
    lines = [comparison(found.comparison, before, after), *_asked(found)]
    if found.reproduce:
        lines.append(f"see one again: {found.reproduce}")
    lines.append(f"{'PASS' if found.passed else 'FAIL'}: {found.reason}")
    return "\n".join(lines)


def _asked(found: Verdict) -> list[str]:
    """What these samples show; of other weights also what follows for samples like them, which is the question then."""
    change = found.comparison.robust
    worse, better = len(change.worse), len(change.better)
    fewer = f"{worse - better} fewer" if worse >= better else f"{better - worse} more"
    lines = [
        f"on these {change.n} samples {worse} are robust no more and {better} are newly robust: {fewer} "
        f"({100 * abs(change.difference):.2f} points)"
    ]
    if not found.same_weights:
        interval = f"{-100 * change.difference:.2f} points [{-100 * change.high:.2f}, {-100 * change.low:.2f}]"
        least = f", at least {100 * found.at_least:.2f}" if found.at_least else ""
        allowed = f"p(drop <= {100 * float(found.max_drop):g}) = {found.p:.3g}"
        lines.append(f"for samples like these: drop {interval}{least}; {allowed}")
    return lines


def _numbers(found: Comparison, *, doubted: bool) -> tuple[list[str], list[str]]:
    """The accuracies as a table, and in words."""
    left = [f"{count} only {side}" for count, side in ((found.only_before, "before"), (found.only_after, "after"))
            if count]  # fmt: skip
    rows = [("clean accuracy", found.clean)]
    rows += [(f"  after {name}", change) for name, change in found.attacks.items()]
    rows += [(f"robust accuracy {DOUBTED}" if doubted else "robust accuracy", found.robust)]
    width = max(len(name) for name, _ in rows)
    table = [f"{name:<{width}}  {_row(change)}" for name, change in rows]
    size = f"n = {found.robust.n} paired samples" + (f" ({', '.join(left)})" if left else "")
    head = f"{'':<{width}}  {'before':>8}  {'after':>8}  {'difference, 95 % interval':<25}  worse  better  one-sided p"
    told = [line for name, change in rows for line in (f"{name}:", f"    {_told(change)}")]
    return [size, head, *table], [size, *told]


def _row(change: Change) -> str:
    shares = f"{100 * float(change.before):>6.2f} %  {100 * float(change.after):>6.2f} %"
    return f"{shares}  {_interval(change):<25}  {len(change.worse):>5}  {len(change.better):>6}  {change.p:.3g}"


def _told(change: Change) -> str:
    shares = f"{100 * float(change.before):.2f} % before, {100 * float(change.after):.2f} % after"
    flipped = f"{len(change.worse)} worse, {len(change.better)} better"
    return f"{shares}, difference {_interval(change)}, {flipped}, one-sided p {change.p:.3g}"


def _interval(change: Change) -> str:
    return f"{100 * change.difference:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"


def _flips(flips: tuple[Flip, ...], about: About) -> tuple[list[str], list[str]]:
    """The samples that flipped as a table, and in words."""
    if not flips:
        return ["no sample flipped"], ["no sample flipped"]
    flips = tuple(sorted(flips, key=lambda f: f.before != ROBUST))  # what got worse first
    names = [about.named(flip.label) for flip in flips[:SHOWN]]
    width = max([5, *map(len, names)])
    shown = [*zip(flips, names, strict=False)]
    table = [f"{f.index:>15}  {name:>{width}}  {f.before:<6}  {f.after:<6}  {f.broken_by}" for f, name in shown]
    told = [
        f"    {f.index}, label {name}: {f.before}, then {f.after}" + (f" by {f.broken_by}" if f.broken_by else "")
        for f, name in shown
    ]
    more = [f"… and {len(flips) - SHOWN} more; --json - names them all"] if len(flips) > SHOWN else []
    head = f"flipped:  index  {'label':>{width}}  before  after   broken by"
    return [head, *table, *more], ["flipped, by index:", *told, *more]
