"""The losses that attacks maximise, one value a sample. The true class is hidden by −inf, never by multiplication.

Sources: CE and margin (Carlini & Wagner, arXiv:1608.04644, §IV), DLR and targeted DLR (Croce & Hein,
arXiv:2003.01690, §4.1). DLR needs 3 classes and targeted DLR 4; with fewer they fall back to the margin, which ranks
the same points alike but is not scale-invariant.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Loss
from robustkit.errors import UsageError
from robustkit.numerics import devices, rows

Name = Literal["ce", "margin", "margin-targeted", "dlr", "dlr-targeted", "ce-rescaled", "ce-float64"]
TOWARDS_A_CLASS = frozenset({"margin-targeted", "dlr-targeted"})  # run once for each of several wrong classes


def make(name: Name, y: Tensor, target: Tensor | None, aim: Tensor | None = None) -> Loss:
    """The loss `name` for these labels; with a target, the loss that leads to it.

    `aim` is for the losses ending in `-targeted` where any wrong class will do: the class to overtake the true one, by
    default the best wrong class at each point. A target must overtake all others: there they are `dlr` and `margin`.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in _LOSSES:
        raise UsageError(f"no loss called {name!r}; there are: {', '.join(_LOSSES)}")
    if name in TOWARDS_A_CLASS and target is None:
        return lambda outputs: _lead(outputs.logits, y, aim) / (_gap(outputs.logits) if name == "dlr-targeted" else 1)
    function = _LOSSES[name]
    return lambda outputs: function(outputs.logits, y, target)


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """CE of the true class, or minus CE of the target."""
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def rescaled_cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """CE of logits divided by their spread, so that saturated (large) logits still give a gradient."""
    spread = (logits.amax(1) - logits.amin(1)).detach().clamp_min(1e-12)
    return cross_entropy(logits / spread[:, None], y, target)


def cross_entropy_float64(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """The logarithm of CE, in float64: it leads where CE leads, and does not vanish however sure the model is.

    In float32, where the device has no float64.

    log CE = log softplus(u), u the log-sum-exp of the wrong logits minus z_y; for u → −∞ it is u. With a target minus
    CE of the target, which vanishes only where the target is reached.
    """
    logits = logits.to(devices.widest(logits.device))
    if target is not None:
        return cross_entropy(logits, y, target)
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True)
    lead = logits.masked_fill(hidden, -torch.inf).logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    # Below −30 softplus(u) is exp(u) to the last digit, and its logarithm u itself.
    return torch.where(lead < -30, lead, F.softplus(lead.clamp_min(-30)).log())


def negative_margin(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Minus the margin: above zero when the goal is reached."""
    return -rows.margin(logits, y, target)


def difference_of_logits_ratio(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """DLR: minus the margin, in units of the gap between the first and third logit; with a target, as targeted DLR."""
    if target is not None:
        return negative_margin(logits, y, target) / _gap(logits)
    if logits.shape[1] < 3:
        return negative_margin(logits, y, None)
    top = logits.topk(3, dim=1).values
    return -rows.margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def _lead(logits: Tensor, y: Tensor, aim: Tensor | None) -> Tensor:
    """z_aim − z_y; over `_gap` it is targeted DLR."""
    if aim is None:
        aim = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    return logits.gather(1, aim[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def _gap(logits: Tensor) -> Tensor:
    """The unit of targeted DLR: from the first logit to the mean of third and fourth; 1 with fewer than 4 classes."""
    if logits.shape[1] < 4:
        return torch.ones_like(logits[:, 0])
    top = logits.topk(4, dim=1).values
    return top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "ce": cross_entropy,
    "margin": negative_margin,
    "margin-targeted": negative_margin,  # towards a target that was asked for, as the other below
    "dlr": difference_of_logits_ratio,
    "dlr-targeted": difference_of_logits_ratio,
    "ce-rescaled": rescaled_cross_entropy,
    "ce-float64": cross_entropy_float64,
}
