"""Search: which stand-in of the model, and which loss, leads an attack on, found out for each sample by itself.

Each trial is PGD on one view (the model, or a stand-in) and one loss, judged by the *model's* margin where it ends.
What lowers that margin most stays: of the trials of a rung each sample keeps its best quarter, and the next rung tries
these with twice the steps, from the worst point that any trial has found so far. Nothing is learnt from other samples,
so a sample's result does not depend on its batch. After A3, Yao, Bielik, Tsankov, Vechev 2021, arXiv:2102.11860, which
halves over samples; the warm start within the original ball, after Zhang, Nikolić, Carlini, Tramèr 2024,
arXiv:2411.14834.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Norm
from robustkit.errors import NoGradientError, UsageError
from robustkit.numerics import rows
from robustkit_attacks import losses
from robustkit_attacks.pgd import PGD

_MODEL = "model"
_LOSSES: tuple[losses.Name, ...] = ("margin", "ce-rescaled", "dlr")


class _Trial(NamedTuple):
    view: str
    loss: losses.Name

    def __str__(self) -> str:
        return f"{self.view}/{self.loss}"


class _State(NamedTuple):
    """A row a sample of the whole case: its worst point, the model's margin there, and who still stands."""

    worst: Images
    margin: Tensor
    standing: Tensor  # on the host: a trial that nobody wants then asks nothing of the device


@dataclass(frozen=True, slots=True)
class Search:
    """Trials of every view and loss, `steps` each, then the best quarter of them with twice the steps, and so on.

    `most` trials are tried at first: those of the model itself, then those of its stand-ins in their order, the first
    loss of each before the second of any. `rounds` times it ends with the best trial, `long` steps from the worst
    point; every second round begins at a random point.
    """

    steps: int = 20
    most: int = 16
    rounds: int = 2
    long: int = 100

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.steps, self.most, self.rounds, self.long) < 1:
            raise UsageError("search: steps, most, rounds and long must be positive")

    def __call__(self, case: Case) -> Images:
        """Each sample's point of lowest margin; what the judge confirms on the way leaves."""
        trials = self._trials(case)
        everyone = torch.ones(len(case.x), dtype=torch.bool)
        state = _State(case.x.clone(), _margin(case, case.x), everyone)  # written to, a trial at a time
        alive = torch.ones(len(trials), len(case.x), dtype=torch.bool, device=case.x.device)
        steps, rung = self.steps, 0
        falls = torch.full(alive.shape, -torch.inf, dtype=state.margin.dtype, device=case.x.device)
        keep = len(trials)
        while True:
            state, falls = self._rung(case, trials, alive, falls, state, steps, rung)
            if keep <= 1:
                break
            keep = math.ceil(keep / 4)
            alive = _best(falls, alive, keep)
            steps, rung = 2 * steps, rung + 1
        for turn in range(self.rounds):
            state, falls = self._rung(case, trials, alive, falls, state, self.long, rung + 1 + turn, anew=turn % 2 == 1)
        return state.worst

    def _rung(
        self, case: Case, trials: list[_Trial], alive: Tensor, falls: Tensor, state: _State, steps: int, rung: int, *,
        anew: bool = False,
    ) -> tuple[_State, Tensor]:  # fmt: skip
        """Every trial on the samples that still want it; how far each lowered the model's margin."""
        before, falls, wanted = state.margin.clone(), falls.clone(), alive.cpu()
        broke = torch.full_like(case.rows, -1)  # by which trial
        for number, trial in enumerate(trials):
            here = rows.positions(wanted[number] & state.standing)
            if not len(here):
                continue
            some = case.select(at := here.to(case.x.device))
            random = anew or rung == 0  # the first rung begins at the image: within an eighth of the ball around it
            start = some.threat.sample(some.x, some.draws.at(rung * len(trials) + number))
            if rung == 0:
                start = some.threat.project(some.x, some.x + (start - some.x) / 8)
            found = self._tried(some, trial, start if random else state.worst[at], steps)
            if found is None:
                alive[number] = False
                continue
            ended, state.standing[here] = found
            stays, margin = state.standing[here].to(at.device), _margin(some, ended)
            falls[number, at] = before[at] - margin
            better = ~stays | (margin < state.margin[at])
            state.worst[at] = rows.pick(better, ended, state.worst[at])
            state.margin[at] = torch.where(better, margin, state.margin[at])
            broke[at] = torch.where(stays, -1, number)
        first = _best(falls, alive, 1) & state.standing.to(case.x.device)
        leads = torch.where(first.any(0), len(trials) + first.byte().argmax(0), -1)
        words = [*(f"{trial} broke it in rung {rung}" for trial in trials),
                 *(f"{trial} leads after {steps} steps" for trial in trials)]  # fmt: skip
        case.say(words, torch.where(broke >= 0, broke, leads))
        return state, falls

    def _tried(self, case: Case, trial: _Trial, start: Images, steps: int) -> tuple[Images, Tensor] | None:
        """Where PGD on the view ends, and which samples still stand (on the host); None where no gradient flows."""
        oracle = case.oracle if trial.view == _MODEL else case.oracle.surrogates[trial.view]
        place = torch.arange(len(start), device=start.device)
        try:
            _, left, ended = PGD(steps=steps, loss=trial.loss).climb(replace(case, oracle=oracle), place, start)
        except NoGradientError:
            return None
        result, stays = start.clone(), torch.zeros_like(place, dtype=torch.bool)
        if not len(left):
            return result, torch.zeros(len(place), dtype=torch.bool)
        result[left] = ended
        stays[left] = ~case.select(left).submit(ended)
        return result, stays.cpu()

    def _trials(self, case: Case) -> list[_Trial]:
        views = [_MODEL] if case.oracle.differentiable else []
        views += list(case.oracle.surrogates)
        if not views:
            raise NoGradientError("no gradient flows through this model, and it has no stand-in")
        return [_Trial(view, loss) for loss in _LOSSES for view in views][: self.most]

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and backward a step, of the view; one forward of the model where a trial ends."""
        steps, keep, passes, ends = self.steps, self.most, 0, 0
        while True:
            passes, ends = passes + keep * steps, ends + keep
            if keep <= 1:
                break
            steps, keep = 2 * steps, math.ceil(keep / 4)
        passes, ends = passes + self.rounds * self.long, ends + self.rounds
        return 1 + passes + ends, passes


def _margin(case: Case, x: Images) -> Tensor:
    """The model's own margin: what counts."""
    return rows.margin(case.oracle.outputs(x).logits, case.y, case.target)


def _best(falls: Tensor, alive: Tensor, keep: int) -> Tensor:
    """For each sample the trials that lowered its margin most, (trials, batch)."""
    ranked = falls.masked_fill(~alive, -torch.inf).argsort(dim=0, descending=True, stable=True)[:keep]
    return torch.zeros_like(alive).scatter_(0, ranked, True) & alive
