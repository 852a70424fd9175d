"""MORA, the model-reweighing attack on ensembles. Yu, Gao, Xu 2022 (NeurIPS).

A step climbs the cross-entropy of a mixture: the ensemble's own logits, and its members' weighted by how much each
moves the ensemble's decision, after confident members were scaled down, for their share of the plain gradient vanishes.

For softmax averaging the weight of a member is N·∂(log P_m − log P_y)/∂z_m: P is the mean probability, m the strongest
wrong class. `faithful` keeps two deviations of the authors' program: another sign in the weight, and the ensemble's own
output counted as one more member of P.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.api import Access, Case, Goal, Images, Labels, Logits, Loss, Norm, Oracle, Outputs
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import parts

Mode = Literal["auto", "probs", "vote", "logits"]
_SHARPNESS = {"probs": 0.2, "vote": 0.8, "logits": 0.0}  # of the softmax behind the weights; 0 weighs all alike
_MOMENTUM = 0.75
_CONFIDENT = 10.0  # members whose lead exceeds it are scaled down to it
_TINY = 1e-12


class _State(NamedTuple):
    """The iterate of each row, the one before, the latest that fooled the model, and the row's place in the result."""

    adv: Images
    previous: Images
    found: Images
    hit: Tensor
    place: Tensor


class _Mixture(NamedTuple):
    """For each row, the share of the reweighed members, and the sharpness behind their weights."""

    share: Tensor
    sharpness: Tensor


@dataclass(frozen=True, slots=True)
class MORA:
    """One run for each share in `mixes` of the reweighed members, then one towards each of the `targets` wrong classes.

    `mode` is how the ensemble joins its members; `auto` finds out from the clean outputs. The ensemble must offer
    `members()` and `forward_with_members`, itself or through a stand-in that it declares; any other model counts as an
    ensemble of one.
    """

    steps: int = 100
    mixes: tuple[float, ...] = (0.5, 0.0, 0.25, 0.75, 1.0)
    targets: int = 9
    mode: Mode = "auto"
    faithful: bool = False

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    goal: ClassVar[Goal] = "bounded"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.targets < 0 or len(self.mixes) + self.targets < 1:
            raise UsageError("mora: steps must be positive, and one of mixes and targets given")
        if any(not 0 <= mix <= 1 for mix in self.mixes):
            raise UsageError(f"mora: mixes are shares from 0 to 1, not {self.mixes}")

    def __call__(self, case: Case) -> Images:
        """The last candidate of each sample; what the judge confirms on the way leaves."""
        result = case.x.clone()
        place = torch.arange(len(result), device=result.device)
        joins = self._sharpness(case)
        aims = parts.wrong_classes(case, self.targets) if self.targets and case.target is None else None
        halves = torch.where(joins == 0, 0.0, 0.5)
        runs: list[tuple[Tensor, int | None]] = [(torch.full_like(joins, mix), None) for mix in self.mixes]
        runs += [(halves, rank) for rank in range(0 if aims is None else aims.shape[1])]
        for stream, (mix, rank) in enumerate(runs or [(halves, None)]):
            if not len(place):
                break
            some = case.select(place)
            aim = some.target if rank is None or aims is None else aims[place, rank]
            place, ended = self._climb(some, place, aim, _Mixture(mix[place], joins[place]), stream)
            result[place] = ended
            place = place[rows.positions(~case.select(place).submit(ended))] if len(place) else place
        return result

    def _sharpness(self, case: Case) -> Tensor:
        if self.mode == "auto":
            return sharpness_of(case.oracle.outputs(case.x))
        return torch.full(case.y.shape, _SHARPNESS[self.mode], device=case.y.device)

    def _climb(
        self, case: Case, place: Tensor, aim: Labels | None, mixture: _Mixture, stream: int
    ) -> tuple[Tensor, parts.Left]:
        """One run: the places and candidates of what is not confirmed broken before its end."""
        threat = case.threat
        start = threat.sample(case.x, case.draws.at(stream))
        state = _State(start, start, start, torch.zeros_like(place, dtype=torch.bool), place)
        for step in range(self.steps):
            oracle = source(case.oracle)
            outputs, _, grad = oracle.gradient(state.adv, self._loss(case, aim, mixture))
            voted = oracle is not case.oracle  # a stand-in answers: what the ensemble decides its members' votes say
            hit = case.reached(votes(outputs) if voted else outputs.logits)
            size = 2 * threat.eps * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            move = norms.steepest(grad, threat.norm)
            ahead = threat.project(case.x, state.adv + size * move)
            a = 1.0 if step == 0 else _MOMENTUM
            moved = state.adv + a * (ahead - state.adv) + (1 - a) * (state.adv - state.previous)
            state = _State(
                threat.project(case.x, moved), state.adv, rows.pick(hit, state.adv, state.found), state.hit | hit,
                state.place,
            )  # fmt: skip
            if parts.checkpoint(step + 1):
                case, state, stays = parts.leave(case, state)
                aim, mixture = None if aim is None else aim[stays], parts.select(mixture, stays)
                if not len(state.place):
                    break
        return state.place, rows.pick(state.hit, state.found, state.adv)

    def _loss(self, case: Case, aim: Labels | None, mixture: _Mixture) -> Loss:
        """Cross-entropy of the mixture: raised for y, or lowered for the class aimed at."""

        def loss(outputs: Outputs) -> Tensor:
            logits = outputs.logits
            members = logits[None] if outputs.members is None else outputs.members
            done = rows.reached(members, case.y, case.target)
            share = weights(logits, members, case.y, aim, mixture.sharpness, done, self.faithful)
            joined = (share[:, :, None] * calmed(members)).sum(0) / _away_from_zero(share.sum(0))[:, None]
            mix = mixture.share[:, None]
            total = (1 - mix) * logits / _lead(logits)[:, None] + mix * joined
            if aim is not None:
                return -F.cross_entropy(total, aim, reduction="none")
            return F.cross_entropy(total, case.y, reduction="none")

        return loss

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward and backward a step; a forward to see how members are joined and one to rank the classes."""
        passes = self.steps * (len(self.mixes) + min(self.targets, classes - 1))
        return passes + 2, passes


def source(oracle: Oracle) -> Oracle:
    """The oracle itself, or the first stand-in it declares if no gradient flows through it (hard votes)."""
    return oracle if oracle.differentiable else next(iter(oracle.surrogates.values()), oracle)


def sharpness_of(outputs: Outputs) -> Tensor:
    """For each sample, the sharpness for how its members are joined: mean logits, mean probabilities, or else votes.

    Each sample by its own outputs, so that none is attacked otherwise beside others.
    """
    logits, members = outputs.logits, outputs.members
    if members is None:
        return torch.full_like(logits[:, 0], _SHARPNESS["logits"])
    close = partial(torch.isclose, rtol=1e-3, atol=1e-4)
    by_probs = close(logits.softmax(-1), members.softmax(-1).mean(0)).all(-1)
    by_logits = close(logits, members.mean(0)).all(-1)
    found = torch.where(by_probs, _SHARPNESS["probs"], _SHARPNESS["vote"])
    return torch.where(by_logits, _SHARPNESS["logits"], found).to(logits)


def votes(outputs: Outputs) -> Logits:
    """How many members decide for each class, which is how an ensemble of votes decides; ties by the mean."""
    if outputs.members is None:
        return outputs.logits
    counted = F.one_hot(outputs.members.argmax(-1), outputs.logits.shape[1]).sum(0)
    return counted + outputs.logits.softmax(-1) / 2


def calmed(members: Tensor) -> Tensor:
    """Member logits (members, batch, classes), scaled so that the largest lead of a sample's members is at most 10."""
    return members / (_lead(members).amax(0) / _CONFIDENT).clamp_min(1.0)[None, :, None]


def weights(
    logits: Logits, members: Tensor, y: Labels, aim: Labels | None, sharpness: Tensor, done: Tensor, faithful: bool
) -> Tensor:
    """The weight of each member for each sample, shape (members, batch), without a gradient.

    `done`, of that shape too: which members decide as the attack wants already.
    """
    logits, members = logits.detach(), members.detach()
    strongest = logits.scatter(1, y[:, None], -torch.inf).argmax(1) if aim is None else aim
    scaled = calmed(members)
    p = (sharpness[:, None] * (members if faithful else scaled)).softmax(-1)
    mean = (scaled.softmax(-1) if faithful else p).mean(0)
    if faithful:
        n = len(members)
        mean = (n * mean + logits.softmax(-1)) / (n + 1)
    p_m, p_y = _at(p, strongest), _at(p, y)
    mean_m, mean_y = (_at(mean[None], label)[0].clamp_min(_TINY) for label in (strongest, y))
    if faithful:
        return _undone(done, sharpness, p_m * ((1 + p_m) / mean_m - p_y / mean_y))
    return _undone(done, sharpness, p_m * (p_y / mean_y + (1 - p_m) / mean_m))


def _undone(done: Tensor, sharpness: Tensor, weight: Tensor) -> Tensor:
    """Members that are done get no weight, unless the mean of the logits decides (sharpness 0), or all are done."""
    return torch.where(~done | done.all(0) | (sharpness == 0), weight, torch.zeros_like(weight))


def _at(values: Tensor, label: Labels) -> Tensor:
    """Entries of (members, batch, classes) at each sample's label: (members, batch)."""
    return values.gather(-1, label[None, :, None].expand(len(values), -1, 1))[..., 0]


def _lead(logits: Tensor) -> Tensor:
    """The first logit minus the second, without a gradient."""
    top = logits.detach().topk(2, dim=-1).values
    return (top[..., 0] - top[..., 1]).clamp_min(_TINY)


def _away_from_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < _TINY, torch.full_like(values, _TINY), values)
