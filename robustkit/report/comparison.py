"""A comparison and a gate's verdict as plain text."""

from robustkit.records.compare import Change, Comparison, Flip
from robustkit.records.gate import Verdict
from robustkit.records.run import RunRecord
from robustkit.records.schema import ROBUST
from robustkit.records.text import heading

SHOWN = 40


def comparison(found: Comparison, before: RunRecord, after: RunRecord) -> str:
    """What changed from one record to the other."""
    lines = [f"before  {heading(before)}", f"after   {heading(after)}", *_numbers(found), *_flips(found.flips)]
    lines += [f"note: not the same: {what}" for what in found.differs]
    lines += [f"{side}: robust accuracy {record.warning}" for side, record in (("before", before), ("after", after))
              if record.warning]  # fmt: skip
    return "\n".join(lines)


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


def _numbers(found: Comparison) -> list[str]:
    left = [f"{count} only {side}" for count, side in ((found.only_before, "before"), (found.only_after, "after"))
            if count]  # fmt: skip
    rows = [("clean accuracy", found.clean)]
    rows += [(f"  after {name}", change) for name, change in found.attacks.items()]
    rows += [("robust accuracy", found.robust)]
    width = max(len(name) for name, _ in rows)
    table = [f"{name:<{width}}  {_row(change)}" for name, change in rows]
    head = f"{'':<{width}}  {'before':>8}  {'after':>8}  {'difference, 95 % interval':<25}  worse  better  one-sided p"
    return [f"n = {found.robust.n} paired samples" + (f" ({', '.join(left)})" if left else ""), head, *table]


def _row(change: Change) -> str:
    interval = f"{100 * change.difference:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
    shares = f"{100 * float(change.before):>6.2f} %  {100 * float(change.after):>6.2f} %"
    return f"{shares}  {interval:<25}  {len(change.worse):>5}  {len(change.better):>6}  {change.p:.3g}"


def _flips(flips: tuple[Flip, ...]) -> list[str]:
    if not flips:
        return ["no sample flipped"]
    flips = tuple(sorted(flips, key=lambda f: f.before != ROBUST))  # what got worse first
    lines = ["flipped:  index  label  before  after   broken by"]
    lines += [f"{f.index:>15}  {f.label:>5}  {f.before:<6}  {f.after:<6}  {f.broken_by}" for f in flips[:SHOWN]]
    return lines + ([f"… and {len(flips) - SHOWN} more; --json - names them all"] if len(flips) > SHOWN else [])
