"""Surrogate swap: attack a stand-in of the model, then the model itself from where that led.

An aggregation that blocks gradients (a median over members, hard votes, quantisation) does not make a model robust: the
same weights behind a smooth stand-in give usable directions. Source: Zhang, Nikolić, Carlini, Tramèr 2024,
arXiv:2411.14834, against CrossMax. The ball is the one around the original image from the first step to the last.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm, Oracle
from robustkit.errors import NoGradientError, UsageError
from robustkit.numerics import rows
from robustkit.spec import suggest
from robustkit_attacks import losses, parts
from robustkit_attacks.mean_of_members import MeanOfMembers
from robustkit_attacks.pgd import PGD


@dataclass(frozen=True, slots=True)
class SurrogateSwap:
    """PGD on each stand-in, judged on the model, then PGD on the model from the point that was reached.

    The stand-ins are the surrogates that the model declares, or with `of=members` the mean of its members ("mean") and
    each member ("0", "1" …). `only` names one (default: each of them, at most `most`). A model that has none is its own
    stand-in. With `direct` 0, or where no gradient flows through the model, the second part is left out.
    """

    only: str = ""
    of: Literal["surrogates", "members"] = "surrogates"
    steps: int = 300
    direct: int = 100
    restarts: int = 1
    loss: losses.Name = "margin"
    most: int = 12

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.most) < 1 or self.direct < 0:
            raise UsageError("surrogate-swap: steps, restarts and most must be positive, direct at least 0")

    def __call__(self, case: Case) -> Images:
        """The last candidate of each sample; what the judge confirms on the way leaves."""
        result = case.x.clone()
        place = torch.arange(len(result), device=result.device)
        stand_ins = self._stand_ins(case)
        dead: NoGradientError | None = None
        attacked = False
        for restart in range(self.restarts):
            for number, stand_in in enumerate(stand_ins):
                some = case.select(place)
                start = some.threat.sample(some.x, some.draws.at(restart * self.most + number))
                try:
                    swapped = replace(some, oracle=stand_in.select(place))
                    place, ended = self._run(case, swapped, self.steps, place, start, result)
                except NoGradientError as error:
                    if self.of == "surrogates":  # which are declared to be differentiable
                        raise
                    dead = error
                    continue
                attacked = True
                warm = self.direct and stand_in is not case.oracle and case.oracle.differentiable
                if warm and len(place):
                    place, ended = self._run(case, case.select(place), self.direct, place, ended, result)
                if not len(place):
                    return result
        if dead and not attacked:
            raise dead
        return result

    def _run(
        self, case: Case, some: Case, steps: int, place: Tensor, start: Tensor, result: Images
    ) -> tuple[Tensor, parts.Left]:
        """PGD of the rows `place` from `start`; the rows that still stand, and where they have got to."""
        _, place, ended = PGD(steps=steps, loss=self.loss).climb(some, place, start)
        result[place] = ended
        if not len(place):
            return place, ended
        stays = rows.positions(~case.select(place).submit(ended))
        return place[stays], ended[stays]

    def _stand_ins(self, case: Case) -> list[Oracle]:
        """The oracles to attack, for all samples of the case."""
        oracle = case.oracle
        found: dict[str, Oracle] = dict(oracle.surrogates)
        if self.of == "members":
            members = list(oracle.members)
            mean: dict[str, Oracle] = {"mean": MeanOfMembers.of(oracle, case.x)} if members else {}
            found = {**mean, **{str(number): member for number, member in enumerate(members)}}
        if self.only and self.only not in found:
            raise UsageError("surrogate-swap: " + suggest(self.only, found, f"stand-in among this model's {self.of}"))
        return [found[self.only]] if self.only else list(found.values())[: self.most] or [oracle]

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and backward a step and stand-in; of the members' mean, up to two forwards of each member."""
        runs, alone = self.restarts * (1 if self.only else self.most), self.only not in ("", "mean")
        direct = runs * self.direct
        if self.of == "surrogates" or alone:
            return runs * self.steps + direct + (self.of == "members"), runs * self.steps + direct
        more = self.restarts * self.most * self.steps
        return 2 * more + runs * self.steps + direct + 1, more + runs * self.steps + direct
