"""FAB, the fast adaptive boundary attack, and its targeted form FAB-T. Croce & Hein 2020, arXiv:1907.02044.

Each step linearises a difference of logits, f, and goes a little beyond the hyperplane f = 0: from the current point
and from the original image, mixed in proportion to how far each is from it. What is misclassified is kept if it is
the nearest so far, and the search continues from closer to the original.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Access, Case, Goal, Images, Labels, Logits, Loss, Norm, Outputs
from robustkit.errors import UsageError
from robustkit.numerics import norms, rows
from robustkit_attacks import hyperplane, parts

GRADIENTS_AT_ONCE = 16  # gradients that one forward pass serves, so that a thousand classes fit into memory


class _Plane(NamedTuple):
    """f and its gradient at the current points."""

    value: Tensor
    grad: Images


class _State(NamedTuple):
    """The samples still searched, a row each; `places` are their rows in the result."""

    case: Case
    places: Tensor
    classes: Tensor
    x: Images
    best: Images
    distance: Tensor
    offered: Tensor

    def select(self, kept: Tensor) -> "_State":
        """The state of some of the samples."""
        case, *tensors = self
        return _State(case.select(kept), *(tensor[kept] for tensor in tensors))


@dataclass(frozen=True, slots=True)
class FAB:
    """The nearest adversarial by projections onto linearised decision boundaries.

    `targeted` searches towards each of the `targets` best wrong classes at the clean image, one after the other;
    otherwise one search goes, at each step, for the nearest boundary to any other class. In a targeted evaluation
    there is one search, for the boundary of the target against all others.

    With `minimise` false, a sample is done as soon as the judge confirms a break within eps: cheaper, and all that a
    robust accuracy needs.
    """

    targets: int = 9
    targeted: bool = True
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimise: bool = True

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})
    goal: ClassVar[Goal] = "minimal"
    access: ClassVar[Access] = "white-box"

    def __post_init__(self) -> None:
        if min(self.targets, self.steps, self.restarts) < 1:
            raise UsageError("targets, steps and restarts of FAB must be at least 1")

    def __call__(self, case: Case) -> Images:
        """The nearest adversarial found for each sample, or the sample itself."""
        result = case.x.clone()
        logits = case.oracle.outputs(case.x).logits
        standing = rows.positions(~case.reached(logits))
        state = self._begin(case, logits).select(standing)
        for restart in range(self.restarts):
            for search in range(state.classes.shape[1]):
                state = self._start(state, restart, search)
                for step in range(1, self.steps + 1):
                    if len(state.places) == 0:
                        return result
                    state = self._step(state, search)
                    if not self.minimise and (parts.checkpoint(step) or step == self.steps):
                        state = self._leave(state, result)
        result[state.places] = state.best
        return result

    def cost(self, classes: int) -> tuple[int, int]:
        """One forward for the clean image; in each step one or more with gradients, and one for the new point."""
        if self.targeted:
            searched = self.restarts * self.steps * min(self.targets, classes - 1)
            return 1 + 2 * searched, searched
        forwards = 1 + -(-(classes - 1) // GRADIENTS_AT_ONCE)
        return 1 + self.restarts * self.steps * forwards, self.restarts * self.steps * (classes - 1)

    def _begin(self, case: Case, logits: Logits) -> _State:
        nowhere = torch.full_like(logits[:, 0], torch.inf)
        if case.target is not None:
            classes = case.target[:, None]
        elif self.targeted:
            wrong = logits.scatter(1, case.y[:, None], -torch.inf)
            ranked = wrong.argsort(dim=1, descending=True, stable=True)
            classes = ranked[:, : min(self.targets, logits.shape[1] - 1)]
        else:
            classes = case.y[:, None]  # one search, towards none in particular
        places = torch.arange(len(case.x), device=case.x.device)
        return _State(case, places, classes, case.x, case.x, nowhere, nowhere)

    def _start(self, state: _State, restart: int, search: int) -> _State:
        """Back to the original image, from the second restart on to random points around it."""
        case = state.case
        if restart == 0:
            return state._replace(x=case.x)
        draws, shape = case.draws.at(restart).at(search), case.x.shape[1:]
        noise = 2 * draws.uniform(shape) - 1 if case.threat.norm == "linf" else draws.normal(shape)
        radius = 0.5 * state.distance.clamp(max=case.threat.eps)
        start = case.x + rows.spread(radius, noise) * norms.unit(noise, case.threat.norm)
        return state._replace(x=case.threat.clip(start))

    def _step(self, state: _State, search: int) -> _State:
        case, threat = state.case, state.case.threat
        f, grad = self._boundary(state, search)
        x = hyperplane.beyond(threat, state.x, case.x, f, grad, alpha_max=self.alpha_max, eta=self.eta)

        fooled = case.reached(case.oracle.outputs(x).logits)
        distance = norms.length(x - case.x, threat.norm)
        better = fooled & (distance < state.distance)
        return state._replace(
            x=rows.pick(fooled, case.x + self.beta * (x - case.x), x),
            best=rows.pick(better, x, state.best),
            distance=torch.where(better, distance, state.distance),
        )

    def _boundary(self, state: _State, search: int) -> _Plane:
        case = state.case
        if case.target is not None:
            found = case.oracle.gradient(state.x, _margin(case.y, case.target))
            return _Plane(found.loss, found.grad)
        if self.targeted:
            found = case.oracle.gradient(state.x, _differences(case.y, state.classes[:, search]))
            return _Plane(found.loss, found.grad)
        return self._nearest(state)

    def _nearest(self, state: _State) -> _Plane:
        """Of the boundaries to all other classes the one that is nearest if f is linear and there is no box."""
        case = state.case
        others = torch.arange(case.oracle.classes - 1, device=case.y.device)[:, None]
        others = others + (others >= case.y)
        nearest, plane = torch.full_like(state.distance, torch.inf), _Plane(state.distance, state.x)
        for first in range(0, len(others), GRADIENTS_AT_ONCE):
            some = others[first : first + GRADIENTS_AT_ONCE]
            found = case.oracle.gradient(state.x, _differences(case.y, some))
            for value, grad in zip(found.loss, found.grad, strict=True):
                size = norms.length(grad, norms.NORMS[case.threat.norm].dual)
                ratio = torch.where(size > 0, value.abs() / size, torch.full_like(size, torch.inf))
                closer = ratio < nearest
                nearest = torch.where(closer, ratio, nearest)
                plane = _Plane(torch.where(closer, value, plane.value), rows.pick(closer, grad, plane.grad))
        sound = nearest < torch.inf
        return _Plane(torch.where(sound, plane.value, 0.0), rows.pick(sound, plane.grad, torch.zeros_like(plane.grad)))

    def _leave(self, state: _State, result: Images) -> _State:
        """Offer what is newly within eps to the judge, and let go what it confirms."""
        case = state.case
        improved = state.distance < state.offered
        broken = parts.confirmed(case, state.best, improved & (state.distance <= case.threat.limit))
        result[state.places] = rows.pick(broken, state.best, result[state.places])
        state = state._replace(offered=torch.where(improved, state.distance, state.offered))
        return state.select(rows.positions(~broken))


def _differences(y: Labels, others: Tensor) -> Loss:
    """z_other − z_y, for one class a sample or for several rows of them."""

    def loss(outputs: Outputs) -> Tensor:
        z = outputs.logits
        at = others.reshape(-1, len(y))
        values = z.gather(1, at.T).T - z.gather(1, y[:, None]).T
        return values.view(others.shape)

    return loss


def _margin(y: Labels, target: Labels) -> Loss:
    """z_target − max of the others."""
    return lambda outputs: -rows.margin(outputs.logits, y, target)
