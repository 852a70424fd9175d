"""What attacks submit in a transfer run. No judge confirms it, for the victim is another; the best offer is kept.

An attack of several runs or targets counts on the judge to keep what broke a sample, and ends with whatever its last
run reached. Here the surrogates' own margin tells which of its offers, and of what it returned, is the one to transfer.
"""

from typing import Any

import torch
from torch import Tensor

from robustkit.api import Images, Labels, Mask, ThreatModel
from robustkit.models.oracle import ModelOracle
from robustkit.numerics import devices, rows
from robustkit.transfers.check import Checked, check


class Offers:
    """For each sample of a batch, the allowed offer that the surrogates get wrong by most; each costs a forward."""

    def __init__(self, oracle: ModelOracle, threat: ThreatModel, x: Images, y: Labels, target: Labels | None) -> None:
        self.oracle, self.threat, self.x, self.y, self.target = oracle, threat, x, y, target
        self.adv = x.clone()
        self.margin = torch.full_like(y, torch.inf, dtype=devices.widest(y.device))

    def keep(self, samples: Tensor, adv: Any) -> Tensor:
        """What `Case.submit` answers for these rows: nothing is confirmed, for no attack here can ask its victim."""
        if len(samples):
            checked = check(self.threat, self.x[samples], adv)
            margin = self._margin(samples, checked.adv, checked.violated)
            better = margin < self.margin[samples]
            self.adv[samples] = rows.pick(better, checked.adv, self.adv[samples])
            self.margin[samples] = torch.where(better, margin, self.margin[samples])
        return torch.zeros_like(samples, dtype=torch.bool)

    def best(self, returned: Checked) -> Checked:
        """What the attack returned, with a better offer in the place of what is allowed."""
        offered = rows.positions(self.margin.isfinite())  # a sample without an offer pays no pass, whoever is beside it
        if not len(offered):
            return returned
        ended = torch.full_like(self.margin, torch.inf)
        ended[offered] = self._margin(offered, returned.adv[offered], returned.violated[offered])
        better = ~returned.violated & (self.margin < ended)
        found = check(self.threat, self.x, rows.pick(better, self.adv, returned.adv))
        return returned._replace(
            adv=found.adv,
            distance=torch.where(returned.violated.to(found.distance.device), returned.distance, found.distance),
        )

    def _margin(self, samples: Tensor, adv: Images, violated: Mask) -> Tensor:
        logits = devices.wide(self.oracle.select(samples).outputs(adv).logits)
        target = None if self.target is None else self.target[samples]
        margin = rows.margin(logits, self.y[samples], target)
        return torch.where(violated | margin.isnan(), torch.inf, margin)
