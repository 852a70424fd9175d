"""The probes of an audit, asked of the model, and of what stands in for it where the model itself cannot pass.

A model that rounds or votes on purpose fails the gradient check and jumps at its boundary, and there is no sign of
masking in that if it is attacked through a stand-in: one that passes both, and decides as the model does. It is what
the model declares, or the model without its steps on images; what breaks through it is counted beside (stand-in-gap).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from robustkit.audit.probes import boundary, contract, directions, operators, units
from robustkit.audit.probes.asking import Look, answers
from robustkit.audit.rules import Limits
from robustkit.models.operators import Operators
from robustkit.numerics import devices
from robustkit.records.findings import Check


@dataclass(frozen=True)
class Probing:
    """What the probes look at: the model, and its stand-ins by name, of which `declared` are its own."""

    look: Look
    operators: Operators
    stand_ins: Mapping[str, nn.Module]
    declared: bool
    limits: Limits

    def function(self) -> list[Check]:
        """Whether it is one function of one image."""
        return contract.judge(contract.measure(self.look), self.limits)

    @cached_property
    def slopes(self) -> directions.Directions:
        """What differences of the model itself say."""
        return self._directions(self.look, self.operators.quantises)

    @cached_property
    def jumps(self) -> boundary.Jumps:
        """What happens at the model's own boundary."""
        return boundary.measure(self.look)

    @property
    def rough(self) -> bool:
        """Whether its differences are of kinks: then a gradient at a point says little (the kink meter)."""
        return self.slopes.kinks[0] > self.limits.kinks

    @property
    def hidden_head(self) -> bool:
        """Whether its outputs jump, so that its features may say more than they do."""
        return self.jumps.largest > self.limits.jump

    def gradients(self, *, flows: bool) -> Iterator[Check]:
        """Operators, the gradient check where gradients flow, and the boundary."""
        yield operators.judge(self.operators, declared=self.declared)
        if flows:
            yield self._excused(directions.judge(self.slopes, self.limits))
            yield units.judge(units.measure(self.look, self.limits), self.limits)
        yield self._excused(boundary.judge(self.jumps, self.limits))

    def _directions(self, look: Look, quantises: bool) -> directions.Directions:
        network = look.network
        exact = network.dtype in (torch.float32, torch.float64) and not network.probabilities
        return directions.measure(look, fine=exact and not quantises)

    def _excused(self, found: Check) -> Check:
        """The check; where it doubts a model that has a sound stand-in, only told."""
        if found.outcome != "suspect" or not self._sound:
            return found
        name = self._sound[0]
        text = f"{found.text}; but {name} passes in its place, and what breaks through it counts under stand-in-gap"
        return replace(found, outcome="fine", text=text)

    @cached_property
    def _sound(self) -> list[str]:
        """The stand-ins that decide as the model does, and pass both probes."""
        (own,) = answers(self.look.network, [self.look.x])
        found = []
        for name, module in self.stand_ins.items():
            look = self.look.through(module)
            agree = float(devices.wide(answers(look.network, [look.x])[0].argmax(1) == own.argmax(1)).mean())
            if agree < self.limits.agree:
                continue
            slopes = directions.judge(self._directions(look, False), self.limits)
            jumps = boundary.judge(boundary.measure(look), self.limits)
            if slopes.outcome == "fine" and jumps.outcome in ("fine", "skipped"):
                found.append(name)
        return found
