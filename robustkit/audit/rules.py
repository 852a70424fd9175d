"""From what was measured to checks: every limit of the audit stands here. Needs no torch.

The limits were set on one half of a zoo of broken defenses and on honest networks, then frozen and tried once on the
other half: `reports/audit/README.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustkit.audit.findings import Check, Outcome, Series
from robustkit.stats import Proportion


@dataclass(frozen=True, slots=True)
class Limits:
    """Above (or, where it says so, below) these a check is suspect. Shares of the audit's samples unless said."""

    gap: float = 0.05  # broken through a stand-in, or by the audit's attacks, though it stood
    query: float = 0.02  # broken by queries, noise or one step, though gradient attacks left it
    steps: float = 0.05  # broken only by four times the steps
    restarts: float = 0.05  # broken only by more restarts
    sweep: float = 0.05  # still standing at the largest eps
    rising: float = 0.05  # more standing at a larger eps than at a smaller one
    zero: float = 0.02  # images with a gradient that is exactly zero
    misled: float = 0.1  # images whose margin no step along the gradient lowers
    saturated: float = 0.1  # images whose outputs are all but one-hot
    margin: float = 50.0  # logits: a softmax of e^-50 beside 1 is saturated
    distinct: float = 0.5  # at least this share of the output values must differ from each other
    cosine: float = 0.3  # at least this must gradients over EOT's draws agree
    steady: float = 0.1  # at least this must gradients at neighbouring points agree
    backwards: int = 40  # the fewest backward passes a sample that a gradient attack may have had
    interval: float = 0.2  # the widest interval of a robust accuracy


@dataclass(frozen=True, slots=True)
class Claim:
    """What is under audit where there is a record: its attacks, and its robust accuracy."""

    robust: Proportion
    gradient_attacks: int
    backwards: int
    averaged: bool
    insufficient: str = ""


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


def below(name: str, value: float, limit: float, bad: str, good: str, series: Series | None = None) -> Check:
    """A check that is suspect where the value is above the limit."""
    outcome: Outcome = "suspect" if value > limit else "fine"
    return Check(name, outcome, bad if value > limit else good, value, limit, series)


def at_least(name: str, value: float, limit: float, bad: str, good: str, series: Series | None = None) -> Check:
    """A check that is suspect where the value is below the limit."""
    outcome: Outcome = "suspect" if value < limit else "fine"
    return Check(name, outcome, bad if value < limit else good, value, limit, series)


def skipped(name: str, why: str) -> Check:
    """A check that could not be made."""
    return Check(name, "skipped", why)


def sample(indices: Sequence[int], clean: Proportion) -> Check:
    """Which samples the evidence is of."""
    words = _ranges(indices)
    return Check("sample", "fine", f"looked at {len(indices)} samples ({words}); clean accuracy there {clean}")


def _ranges(indices: Sequence[int]) -> str:
    if list(indices) == list(range(indices[0], indices[0] + len(indices))):
        return f"{indices[0]}–{indices[-1]}" if len(indices) > 1 else f"{indices[0]}"
    shown = ", ".join(map(str, indices[:5]))
    return shown + (f" … {indices[-1]}" if len(indices) > 5 else "")


def state(*, training: bool, changes: bool) -> Check:
    """Whether the model is in eval mode and stays the same when called."""
    if training:
        return Check("state", "invalid", "a part of the model stays in training mode after eval()")
    if changes:
        return Check("state", "invalid", "calling the model changes its own weights or buffers: every number is of another model")
    return Check("state", "fine", "in eval mode, and calling it changes nothing in it")


def randomness(*, randomised: bool, declared: bool, repeatable: bool) -> Check:
    """Whether the model's randomness is known and can be repeated."""
    if not randomised:
        return Check("randomness", "fine", "the same outputs for the same images")
    if not repeatable:
        return Check("randomness", "invalid", "the outputs differ from call to call and no seed fixes them: no number can be repeated; offer reseed(seed)")
    if not declared:
        return Check("randomness", "suspect", "the outputs differ from call to call, and the model does not declare it: an attack that does not average over draws looks weak; set randomised = True on the module")
    return Check("randomness", "fine", "randomised, declared, and repeatable with a seed")


def differentiable(flows: bool) -> Check:
    """Whether gradients reach the image."""
    if flows:
        return Check("gradient-flow", "fine", "gradients reach the image")
    return Check("gradient-flow", "suspect", "no gradient flows through the model (detached, or hard decisions), so gradient attacks cannot run: surviving queries proves little; offer surrogates() or a BPDA backward pass")


def outputs(distinct: float, saturated: float, limits: Limits) -> list[Check]:
    """Whether the outputs are hard or saturated."""
    return [
        at_least("hard-outputs", distinct, limits.distinct,
                 f"the outputs take few values ({percent(distinct)} of them differ): decisions, votes, rounded or clipped scores instead of logits",
                 f"{percent(distinct)} of the output values differ from each other"),
        below("saturated-outputs", saturated, limits.saturated,
              f"the outputs of {percent(saturated)} of the images are one-hot but for less than e^-{limits.margin:g}: the cross-entropy has no useful gradient there; return unscaled logits",
              f"the outputs are saturated (a margin over {limits.margin:g}) on {percent(saturated)} of the images"),
    ]  # fmt: skip


def zero_gradient(scales: Sequence[float], entropy: Sequence[float], of_margin: float, of_log: float, limits: Limits) -> Check:
    """Whether gradients vanish. `entropy`: shares with the logits divided by each of `scales`, the first of them 1."""
    value = max(entropy[0], of_margin)
    shares = ", ".join(f"÷{scale:g} {percent(share)}" for scale, share in zip(scales, entropy, strict=True))
    text = f"the gradient is exactly zero on: cross-entropy {percent(entropy[0])} (logits {shares}; in float64 {percent(of_log)}), margin {percent(of_margin)}"
    return below("zero-gradient", value, limits.zero, f"gradients vanish: {text}", text,
                 Series(list(scales), list(entropy), "logits divided by", "share of images with zero gradient"))  # fmt: skip


def misleading(sizes: Sequence[float], shares: Sequence[float], always: float, limits: Limits) -> Check:
    """Whether steps along the gradient do what it promises. `always`: misled at every size."""
    series = Series(list(sizes), list(shares), "step", "share of images whose margin the step does not lower")
    return below("misleading-gradient", always, limits.misled,
                 f"on {percent(always)} of the images no step against the gradient of the margin lowers it: the backward pass is not that of the forward",
                 f"steps against the gradient fail to lower the margin on {percent(always)} of the images", series)  # fmt: skip


def steadiness(radii: Sequence[float], cosines: Sequence[float], limits: Limits) -> Check:
    """Whether the gradient at neighbouring points is about the same; the smallest radius decides."""
    series = Series(list(radii), list(cosines), "distance", "cosine with the gradient there")
    return at_least("gradient-steadiness", cosines[0], limits.steady,
                    f"the gradient a tiny step away is another one (cosine {cosines[0]:.2f}): shattered",
                    f"the gradient a tiny step away is much the same (cosine {cosines[0]:.2f})", series)  # fmt: skip


def agreement(draws: Sequence[float], cosines: Sequence[float], claim: Claim | None, limits: Limits) -> Check:
    """Of a randomised model: how far gradients of independent draws agree; the last entry is with the audit's EOT."""
    series = Series(list(draws), list(cosines), "draws averaged", "cosine of two independent gradients")
    one, many = cosines[0], cosines[-1]
    words = f"gradients of two draws agree with cosine {one:.2f}, means of {draws[-1]:g} draws with {many:.2f}"
    if claim is not None and one < limits.cosine and not claim.averaged:
        return Check("gradient-agreement", "suspect", f"{words}, and no attack averaged over draws; use adaptive, or eot=20", one, limits.cosine, series)
    return at_least("gradient-agreement", many, limits.cosine, f"{words}: too noisy for the gradient attacks", words, series)


def sweep(eps: Sequence[float], standing: Sequence[float], limits: Limits) -> list[Check]:
    """Whether everything breaks in a large enough ball, and a larger ball is never harder."""
    series = Series(list(eps), list(standing), "eps", "robust accuracy under APGD")
    last, rise = standing[-1], max([0.0, *(b - min(standing[: i + 1]) for i, b in enumerate(standing[1:]))])
    return [
        below("eps-sweep", last, limits.sweep,
              f"{percent(last)} still stand at eps {eps[-1]:.3g}, where any image can become any other or nearly: the attack is blocked",
              f"{percent(last)} stand at eps {eps[-1]:.3g}", series),
        below("eps-monotone", rise, limits.rising,
              f"a larger ball is harder: the robust accuracy rises by {100 * rise:.1f} points with eps",
              "the robust accuracy falls with eps"),
    ]  # fmt: skip


def steps(counts: Sequence[int], standing: Sequence[float], late: float, limits: Limits) -> Check:
    """Whether more steps still help at the end. `late`: broken only by the most steps."""
    series = Series(list(counts), list(standing), "steps", "robust accuracy under APGD")
    words = f"{counts[-1]} steps break {percent(late)} more than {counts[-2]}"
    return below("step-convergence", late, limits.steps, f"{words}: the attack has not converged", words, series)


def restarts(late: float, limits: Limits) -> Check:
    """Whether more restarts still help at the end."""
    words = f"more restarts break {percent(late)} more"
    return below("restarts", late, limits.restarts, f"{words}: a lucky start decides, as where gradients are masked", words)


def stronger(name: str, what: str, share: float, limit: float) -> Check:
    """Whether something weak breaks what stood before strong attacks."""
    words = f"{what} breaks {percent(share)} that stood before gradient attacks"
    return below(name, share, limit, f"{words}: gradients are masked", words)


def stand_ins(names: Sequence[str], shares: Sequence[float], gap: float, limits: Limits) -> Check:
    """Whether attacks through stand-ins break what stood. `shares` are cumulative over `names`."""
    series = Series(list(range(1, len(names) + 1)), list(shares), "stand-ins tried: " + ", ".join(names), "broken besides")
    words = f"through stand-ins ({', '.join(names)}) {percent(gap)} more break"
    return below("stand-in-gap", gap, limits.gap, f"{words}: the model hides from direct attacks, not from these", words, series)


def claimed(gap: float, limits: Limits) -> Check:
    """Whether the audit's attacks break what the record says is robust."""
    words = f"the audit's attacks break {percent(gap)} that this run left standing"
    return below("claim", gap, limits.gap, f"{words}: its attacks were too weak", words)


def attack_list(claim: Claim, *, differentiable: bool, limits: Limits) -> Check:
    """Whether the record's attacks are a measure at all."""
    if claim.insufficient:
        return Check("attacks", "suspect", claim.insufficient)
    if differentiable and not claim.gradient_attacks:
        return Check("attacks", "suspect", "no gradient attack was run on a model that has gradients; add autoattack")
    if differentiable and claim.backwards < limits.backwards:
        return Check("attacks", "suspect", f"gradient attacks had at most {claim.backwards} backward passes a sample: too few to trust what stands; use autoattack", claim.backwards, limits.backwards)
    return Check("attacks", "fine", f"{claim.gradient_attacks} gradient attacks with up to {claim.backwards} backward passes a sample", claim.backwards, limits.backwards)


def size(robust: Proportion, limits: Limits) -> Check:
    """Whether the samples suffice for a number."""
    width = robust.high - robust.low
    words = f"robust accuracy {robust} on {robust.n} samples"
    return below("sample-size", width, limits.interval, f"{words}: too few to tell; evaluate more", words)


def violations(outside: int, undecided: int) -> Check:
    """Whether an image that counts as a break left the ball, or a sample is undecided."""
    if outside:
        return Check("threat-model", "invalid", f"{outside} samples count as broken by images outside the threat model", outside, 0)
    if undecided:
        return Check("threat-model", "invalid", f"{undecided} samples are UNKNOWN: an attack left the ball or the box, or crashed", undecided, 0)
    return Check("threat-model", "fine", "every adversarial lies in the ball around its original and in the box", 0, 0)
