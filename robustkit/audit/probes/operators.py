"""Operator scan: what the forward pass is made of names causes, and opens other probes.

Cost: one forward of 2 images. Tells from one image. No verdict by itself, but for a derivative taken inside that no
stand-in is declared for: it is an inner optimisation, which a gradient through it does not see, and is suspect.
"""

from robustkit.audit import rules
from robustkit.models.operators import Operators
from robustkit.records.findings import Check

NAME = "operators"


def judge(seen: Operators, *, declared: bool) -> Check:
    """The check; `declared` says that the model declares stand-ins."""
    if seen.why_not:
        return rules.skipped(NAME, f"its operators cannot be watched ({seen.why_not})")
    parts = [*sorted(seen.told), *(f"the backward pass of {kind.__name__}" for kind in seen.written)]
    parts += ["derivatives taken inside"] if seen.derivatives else []
    text = f"of what can hide a gradient the forward pass holds: {', '.join(parts)}" if parts else (
        "the forward pass holds no operator that is known to hide a gradient"
    )  # fmt: skip
    why = "an inner optimisation, through which a gradient sees little; offer surrogates()"
    return rules.judged(NAME, seen.derivatives and not declared, text, why)
