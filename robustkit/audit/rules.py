"""From what was measured to checks: every limit of the audit stands here. Needs no torch.

The limits were set on one half of a zoo of broken defenses and on some honest networks, then frozen and tried once on
the others: `reports/audit/README.md`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustkit.records.evidence import LEFT, OTHERS
from robustkit.records.evidence import exceeds as exceeds
from robustkit.records.findings import Check, Outcome, Series
from robustkit.stats import Proportion


@dataclass(frozen=True, slots=True)
class Limits:
    """Above (or, where it says at least, below) these a check is suspect.

    Shares are of the audit's samples, and must be exceeded by more than chance makes them (one-sided exact test, 5 %):
    one or two images of 64 never are.
    """

    gap: float = 0.05  # broken through a stand-in, or by the audit's attacks, though it stood
    query: float = 0.02  # of what gradient attacks left, broken by queries, noise or one step
    boundary: float = OTHERS  # of what gradient attacks left, broken by a walk along the boundary
    left: int = LEFT  # samples that gradient attacks left, from which on these two say something
    steps: float = 0.05  # broken only by four times the steps
    restarts: float = 0.05  # broken only by more restarts
    sweep: float = 0.05  # still standing at the largest eps
    rising: float = 0.05  # more standing at a larger eps than at a smaller one
    zero: float = 0.02  # images with a gradient that is exactly zero
    misled: float = 0.1  # images whose margin no step along the gradient lowers
    saturated: float = 0.1  # images whose outputs are all but one-hot
    margin: float = 50.0  # in logits, from which on they are: e^-50 beside 1
    distinct: float = 0.8  # at least this share of the output values differ from each other
    cosine: float = 0.3  # at least so do gradients averaged over EOT's draws agree
    steady: float = 0.3  # at least so do gradients at neighbouring points agree
    backwards: int = 40  # at least so many backward passes a sample had the gradient attacks of a record
    interval: float = 0.2  # the widest interval of a robust accuracy
    contract: float = 1e-3  # difference between answers to one image, in median margins
    grid: float = 0.01  # the same, of an image a float beside the 8-bit grid
    cosine_near: float = 0.6  # at least so do slopes along random directions agree with differences over 1/255
    cosine_nearer: float = 0.9  # and over 1/16 of it
    dead: float = 0.1  # images whose slopes, or whose differences, are all zero
    still: float = 0.99  # of an activation's units, with a zero derivative
    stuck: float = 0.5  # images on which they are
    kinks: float = 0.25  # even share of differences over 1/16 of 1/255, above which smoothing is wide too
    draws: float = 0.05  # broken only by four times the draws
    agree: float = 0.9  # of its decisions a stand-in shares with the model that it passes probes for
    jump: float = 0.02  # of the outputs where the decision changes, in median margins


@dataclass(frozen=True, slots=True)
class Claim:
    """What is under audit where there is a record: its robust accuracy, and its attacks."""

    robust: Proportion
    gradient_attacks: int
    backwards: int
    averaged: bool
    insufficient: str = ""


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


def skipped(name: str, why: str) -> Check:
    """A check that could not be made."""
    return Check(name, "skipped", why)


def too_few(name: str, seen: str, n: int, enough: int, of: str) -> Check:
    """A check that found nothing, on fewer than it can tell from."""
    return Check(name, "undecided", f"{seen}: {n} {of} are too few to tell, {enough} would do")


def judged(name: str, bad: bool, seen: str, why: str, *numbers: float | None, series: Series | None = None) -> Check:
    """A check: what was seen, and, where it is bad, what that means. `numbers`: value and limit."""
    value, limit = numbers or (None, None)
    outcome: Outcome = "suspect" if bad else "fine"
    return Check(name, outcome, f"{seen}: {why}" if bad else seen, value, limit, series)


def _shared(
    name: str, share: float, n: int, limit: float, seen: str, why: str, *, series: Series | None = None
) -> Check:
    """A check of a share of n samples: suspect if it is significantly more than `limit`."""
    least = next((k for k in range(n + 1) if exceeds(k, n, limit)), None)
    tells = f"{n} are too few to tell" if least is None else f"{least} of {n} would be a sign"
    bad = least is not None and round(share * n) >= least
    return judged(name, bad, seen if bad else f"{seen} ({tells})", why, share, limit, series=series)


def sample(indices: Sequence[int], clean: Proportion) -> Check:
    """Which samples the evidence is of."""
    return Check("sample", "fine", f"looked at {len(indices)} samples ({_ranges(indices)}); clean accuracy {clean}")


def _ranges(indices: Sequence[int]) -> str:
    if list(indices) == list(range(indices[0], indices[0] + len(indices))):
        return f"{indices[0]}–{indices[-1]}" if len(indices) > 1 else f"{indices[0]}"
    return ", ".join(map(str, indices[:5])) + (f" … {indices[-1]}" if len(indices) > 5 else "")


def state(*, training: bool, changes: bool, counts: bool = False) -> Check:
    """Whether the model is in eval mode, and answers the same however often it was called.

    `changes` says that its answers move with what a call changes in it, `counts` that something is changed.
    """
    if training:
        return Check("state", "invalid", "a part of the model stays in training mode after eval()")
    if changes:
        return Check("state", "invalid", "calling the model changes its own state, and with it its answers")
    what = "no answer of it" if counts else "nothing in it"
    return Check("state", "fine", f"in eval mode, and calling the model changes {what}")


def randomness(*, randomised: bool, declared: bool, repeatable: bool) -> Check:
    """Whether the model's randomness is known and can be repeated."""
    if not randomised:
        return Check("randomness", "fine", "the same outputs for the same images")
    seen = "the outputs differ from call to call"
    if not repeatable:
        return Check("randomness", "invalid", f"{seen} and no seed fixes them: offer reseed(seed) on the module")
    why = "the model does not declare it (randomised = True), and attacks that do not average over draws look weak"
    return judged("randomness", not declared, seen, why)


def differentiable(flows: bool) -> Check:
    """Whether gradients reach the image."""
    seen = "gradients reach the image" if flows else "no gradient flows through the model (detached, or steps)"
    why = "gradient attacks cannot run, and surviving queries proves little; offer surrogates() or a BPDA backward pass"
    return judged("gradient-flow", not flows, seen, why)


def hard_outputs(distinct: float, limits: Limits) -> Check:
    """Whether the outputs take few values. `distinct`: the share of values that differ from each other."""
    why = "decisions, votes, rounded or clipped scores instead of logits"
    seen = f"{percent(distinct)} of the output values differ from each other"
    return judged("hard-outputs", distinct < limits.distinct, seen, why, distinct, limits.distinct)


def saturated_outputs(share: float, n: int, limits: Limits) -> Check:
    """Whether the outputs are all but one-hot."""
    seen = f"the outputs are saturated on {percent(share)} of the images (a margin over {limits.margin:g})"
    why = "the cross-entropy has no useful gradient there; return unscaled logits"
    return _shared("saturated-outputs", share, n, limits.saturated, seen, why)


def zero_gradient(
    scales: Sequence[float], entropy: Sequence[float], of_log: float, of_margin: float, n: int, limits: Limits
) -> Check:
    """Whether gradients vanish. `entropy`: shares with the logits divided by each of `scales`, the first of them 1."""
    divided = ", ".join(f"÷{scale:g} {percent(share)}" for scale, share in zip(scales, entropy, strict=True))
    seen = (
        f"the gradient is exactly zero on {percent(entropy[0])} of the images for the cross-entropy (logits {divided}; "
        f"its logarithm in float64 {percent(of_log)}), on {percent(of_margin)} for the margin"
    )
    value = max(entropy[0], of_margin)
    series = Series(list(scales), list(entropy), "logits divided by", "share of images with zero gradient")
    return _shared("zero-gradient", value, n, limits.zero, seen, "attacks stand still there", series=series)


def misleading(sizes: Sequence[float], shares: Sequence[float], always: float, n: int, limits: Limits) -> Check:
    """Whether steps along the gradient do what it promises. `always`: misled at every size."""
    series = Series(list(sizes), list(shares), "step", "share of images whose margin the step does not lower")
    seen = f"no step against the margin's gradient lowers the margin on {percent(always)} of the images"
    why = "the backward pass is not that of the forward"
    return _shared("misleading-gradient", always, n, limits.misled, seen, why, series=series)


def steadiness(radii: Sequence[float], cosines: Sequence[float], limits: Limits) -> Check:
    """Whether the gradient at neighbouring points is about the same; the smallest radius decides."""
    series = Series(list(radii), list(cosines), "distance", "cosine with the gradient there")
    seen = f"the gradient {radii[0]:.2g} away agrees with cosine {cosines[0]:.2f}"
    return judged("gradient-steadiness", cosines[0] < limits.steady, seen, "it is shattered", cosines[0],
                   limits.steady, series=series)  # fmt: skip


def agreement(draws: Sequence[float], cosines: Sequence[float], claim: Claim | None, limits: Limits) -> Check:
    """Of a randomised model: how far gradients of independent draws agree; the last entry is with the audit's EOT."""
    series = Series(list(draws), list(cosines), "draws averaged", "cosine of two independent gradients")
    one, many = cosines[0], cosines[-1]
    seen = f"gradients of two draws agree with cosine {one:.2f}, means of {draws[-1]:g} draws with {many:.2f}"
    if claim is not None and not claim.averaged and one < limits.cosine:
        why = "no attack averaged over draws; use adaptive, or eot=20"
        return judged("gradient-agreement", True, seen, why, one, limits.cosine, series=series)
    return judged("gradient-agreement", many < limits.cosine, seen, "too noisy for gradient attacks", many,
                   limits.cosine, series=series)  # fmt: skip


def sweep(eps: Sequence[float], standing: Sequence[float], n: int, limits: Limits) -> Check:
    """Whether everything breaks in a large enough ball."""
    series = Series(list(eps), list(standing), "eps", "robust accuracy under APGD")
    seen = f"{percent(standing[-1])} stand at eps {eps[-1]:.3g}"
    why = "in so large a ball any image can look like another, so the attack is blocked"
    return _shared("eps-sweep", standing[-1], n, limits.sweep, seen, why, series=series)


def monotone(standing: Sequence[float], n: int, limits: Limits) -> Check:
    """Whether a larger ball is never harder."""
    rise = max((after - min(standing[: k + 1]) for k, after in enumerate(standing[1:])), default=0.0)
    seen = f"the robust accuracy rises by {100 * max(rise, 0.0):.1f} points as eps grows"
    why = "a larger ball holds all of a smaller one, so the attack is blocked"
    return _shared("eps-monotone", max(rise, 0.0), n, limits.rising, seen, why)


def steps(counts: Sequence[int], standing: Sequence[float], late: float, n: int, limits: Limits) -> Check:
    """Whether more steps still help at the end. `late`: broken only by the most steps."""
    series = Series(list(counts), list(standing), "steps", "robust accuracy under APGD")
    seen = f"{counts[-1]} steps break {percent(late)} more than {counts[-2]}"
    return _shared("step-convergence", late, n, limits.steps, seen, "the attack has not converged", series=series)


def refusals(late: float, n: int, limits: Limits) -> Check:
    """Of a model that may refuse: whether images that are wrong and accepted are found by asking for that alone."""
    seen = f"steps on the score of refusal break {percent(late)} more than steps on the margin alone"
    return _shared("reject-rate", late, n, limits.gap, seen, "what was refused was only what nobody made acceptable")


def draws(k: int, late: float, n: int, limits: Limits) -> Check:
    """Of a randomised model: whether more draws still help. `late`: broken only by an average over 4·k."""
    why = "its gradients need more draws than they had"
    seen = f"an average over {4 * k} draws breaks {percent(late)} more than over {k}"
    return _shared("eot-curve", late, n, limits.draws, seen, why)


def restarts(late: float, n: int, limits: Limits) -> Check:
    """Whether more restarts still help at the end."""
    why = "where an attack starts decides, as it does where gradients are masked"
    return _shared("restarts", late, n, limits.restarts, f"more restarts break {percent(late)} more", why)


def others(name: str, what: str, broke: int, left: int, limits: Limits) -> Check:
    """Whether something else breaks what gradient attacks left: queries, noise, one step, a walk along the boundary."""
    limit = limits.boundary if name == "boundary" else limits.query
    share = broke / max(left, 1)
    seen = f"{what} breaks {percent(share)} of {left} that gradient attacks left"
    if left < limits.left:
        return Check(name, "skipped", f"{seen}, which are too few to tell: {limits.left} would do", share, limit)
    return _shared(name, share, left, limit, seen, "those are blocked, or have not converged")


def stand_ins(names: Sequence[str], shares: Sequence[float], gap: float, n: int, limits: Limits) -> Check:
    """Whether attacks through stand-ins break what stood. `shares` are cumulative over `names`."""
    label = "stand-ins tried: " + ", ".join(names)
    series = Series(list(range(1, len(names) + 1)), list(shares), label, "share broken besides")
    seen = f"through stand-ins ({', '.join(names)}) {percent(gap)} more break"
    why = "masked, for the model hides from direct attacks but not from these"
    return _shared("stand-in-gap", gap, n, limits.gap, seen, why, series=series)


def own_signs(texts: Sequence[str]) -> Check:
    """What a record shows of itself: signs that its own attacks had nothing to go by."""
    if texts:
        return Check("own-signs", "suspect", f"in this run {'; '.join(texts)}: what stands may only be hidden")
    return Check("own-signs", "fine", "nothing in this run's own facts says that its attacks were blocked")


def claimed(gap: float, n: int, limits: Limits) -> Check:
    """Whether the audit's attacks break what the record says is robust."""
    seen = f"the audit's attacks break {percent(gap)} that this run left standing"
    return _shared("claim", gap, n, limits.gap, seen, "its attacks were too weak")


def attack_list(claim: Claim, *, differentiable: bool, limits: Limits) -> Check:
    """Whether the record's attacks are a measure at all."""
    if claim.insufficient:
        return Check("attacks", "suspect", claim.insufficient)
    seen = f"{claim.gradient_attacks} gradient attacks with up to {claim.backwards} backward passes a sample"
    weak = differentiable and claim.backwards < limits.backwards
    return judged("attacks", weak, seen, "too little to trust what stands; use autoattack", claim.backwards,
                   limits.backwards)  # fmt: skip


def size(robust: Proportion, limits: Limits) -> Check:
    """Whether the samples suffice for a number; too few are no sign of masking, they leave it undecided."""
    width = robust.high - robust.low
    seen = f"robust accuracy {robust} on {robust.n} samples"
    if width <= limits.interval:
        return Check("sample-size", "fine", seen, width, limits.interval)
    why = f"too few to tell; {enough(float(robust), limits)} would decide, if as many of them stand"
    return Check("sample-size", "undecided", f"{seen}: {why}", width, limits.interval)


def enough(share: float, limits: Limits) -> int:
    """How many samples make the interval of a share no wider than its limit."""

    def width(k: int, n: int) -> float:
        return Proportion(k, n).high - Proportion(k, n).low

    near = ((math.floor(share * n), math.ceil(share * n), n) for n in itertools.count(1))
    return next(n for low, high, n in near if max(width(low, n), width(high, n)) <= limits.interval)


def violations(outside: int, undecided: int) -> Check:
    """Whether an image that counts as a break left the threat model, or a sample is undecided."""
    if outside:
        words = f"{outside} samples count as broken by images outside the threat model"
        return Check("threat-model", "invalid", words, outside, 0)
    if undecided:
        words = f"{undecided} samples are UNKNOWN: an attack left the ball or the box, or crashed"
        return Check("threat-model", "invalid", words, undecided, 0)
    return Check("threat-model", "fine", "every adversarial lies in the ball around its original, and in the box", 0, 0)
