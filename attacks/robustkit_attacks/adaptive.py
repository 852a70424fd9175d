"""The adaptive suite: the attack that a fair reviewer would build against this very model.

It reads what the model declares (randomness, members, stand-ins) and what was seen of it (gradients that are missing,
vanish or mislead). Sources: Tramèr, Carlini, Brendel, Madry 2020, arXiv:2002.08347, for the principle; Zhang, Nikolić,
Carlini, Tramèr 2024, arXiv:2411.14834, section 4, for stand-ins with a warm start; the attacks name their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from robustkit.api import Attack, Expected, ModelFacts, ThreatModel
from robustkit.errors import UsageError
from robustkit.spec import suggest
from robustkit_attacks.accepted import Accepted
from robustkit_attacks.apgd import APGD
from robustkit_attacks.autoattack import AutoAttack
from robustkit_attacks.mora import MORA
from robustkit_attacks.nes import NES
from robustkit_attacks.pgd import PGD
from robustkit_attacks.search import Search
from robustkit_attacks.square import Square
from robustkit_attacks.surrogate_swap import SurrogateSwap

Part = Literal["autoattack", "surrogates", "members", "views", "mora", "losses", "long", "detector", "search", "query"]
PARTS: tuple[Part, ...] = (
    "autoattack", "surrogates", "members", "views", "mora", "losses", "long", "detector", "search", "query",
)  # fmt: skip
_SMOOTHED = "smoothed"  # the harness makes such a view of every model that gradients flow through
_MISLED = 0.1  # share of images on which a gradient that misleads calls for estimated ones; honest networks have none


class _Budget(NamedTuple):
    """How long each part tries. `eot` draws only of a randomised model."""

    steps: int
    targets: int
    queries: int
    eot: int
    swap: int
    direct: int
    swaps: int  # restarts of the two
    long: int
    restarts: int
    estimated: int
    view: int  # steps on each view of the harness's
    search: int  # steps of a trial at first
    trials: int


_BUDGETS = {
    "quick": _Budget(50, 3, 1000, 5, 100, 50, 1, 100, 1, 30, 50, 10, 8),
    "standard": _Budget(100, 9, 5000, 20, 300, 100, 1, 500, 5, 100, 100, 20, 16),
    "thorough": _Budget(200, 9, 20000, 50, 500, 300, 5, 1000, 10, 300, 200, 20, 48),
}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """AutoAttack, and all that the model's declarations and its gradients call for; worst case for each sample.

    * `autoattack`: APGD-CE, APGD-T, FAB-T; with EOT, and without FAB, of a randomised model.
    * `surrogates`: PGD on each declared stand-in, then on the model from there, inside the original ball.
    * `members`: the same on the mean of the members and on each of them, unless they are among the stand-ins already,
      by the names `mean-logits` and `member-1`, `member-2` …
    * `views`: the same on what the harness makes of the model: a network inside it, the model without its steps on
      images, its backward pass rewritten; and smoothed, or by its features, where these or its gradients call for it.
    * `mora`: of ensembles, members reweighed.
    * `losses`: where gradients vanish or mislead, cross-entropy rescaled and in float64, margin and DLR.
    * `long`: PGD on the margin, 500 steps, 5 restarts.
    * `detector`: of models that may refuse, steps on the margin and on the score of refusal in turn.
    * `search`: where anything calls for it, or `search=true`: which stand-in and which loss leads on, each sample by
      itself, each trial from the worst point so far; its log is in the record.
    * `query`: Square; and NES where gradients are missing, vanish or mislead.

    `standard` is never weaker than `autoattack` on a model that is not randomised, for it holds its four attacks.
    `quick` is for a first look. `only` names parts. A module's own BPDA is inside the module.
    """

    budget: Literal["quick", "standard", "thorough"] = "standard"
    only: tuple[str, ...] = ()
    search: bool = False

    looks_inside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for part in self.only:
            if part not in PARTS:
                raise UsageError("adaptive: " + suggest(part, PARTS, "part"))

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The attacks, the cheap ones that break most first, so that the dear ones meet few samples.

        Which those are depends: a model that declares stand-ins, or whose gradients mislead, is attacked through
        stand-ins and members before it is attacked itself. Of a model that is not randomised, what breaks in the end
        does not depend on the order.

        Raises:
            UsageError: for l0, or if nothing of `only` applies to this model.
        """
        if threat.norm == "l0":
            raise UsageError("adaptive has no l0 form; there are: linf, l2, l1")
        found = [
            attack
            for part, attack in self._all(threat, facts, _BUDGETS[self.budget])
            if threat.norm in attack.norms and (not self.only or part in self.only)
        ]
        if not found:
            raise UsageError(f"adaptive: nothing in only={'+'.join(self.only)} applies to this model")
        return found

    def _all(self, threat: ThreatModel, facts: ModelFacts, budget: _Budget) -> Iterator[tuple[Part, Attack]]:
        def eot(attack: Attack) -> Attack:
            return Expected(attack, budget.eot) if facts.randomised else attack

        first, *others = self._autoattack(threat, facts, budget)
        masked = facts.zero_gradient > 0 or facts.misleading_gradient > _MISLED
        through_others = masked or bool(facts.surrogates)
        called_for = through_others or any(not name.startswith(_SMOOTHED) for name in self._views(facts, masked=False))
        if facts.differentiable and not through_others:
            yield "autoattack", eot(first)
        yield from self._stand_ins(facts, budget)
        if through_others:
            yield from self._through_views(facts, budget, called_for)
        if facts.differentiable and through_others:
            yield "autoattack", eot(first)
        if not through_others:
            yield from self._through_views(facts, budget, called_for)
        if facts.members > 1 and (facts.differentiable or facts.surrogates):
            yield "mora", eot(MORA(steps=budget.steps, targets=min(budget.targets, facts.classes - 1)))
        if facts.differentiable:
            if masked:
                for loss in ("ce-float64", "ce-rescaled", "margin", "dlr"):
                    yield "losses", eot(APGD(loss, budget.steps))
            for attack in others:
                yield "autoattack", eot(attack)
            yield "long", eot(PGD(budget.long, budget.restarts, loss="margin"))
        if facts.rejects and facts.differentiable:
            yield "detector", eot(Accepted(budget.long, budget.swaps + 1))
        able = facts.differentiable or facts.surrogates or facts.views
        if able and (self.search or called_for or "search" in self.only):
            yield "search", eot(Search(budget.search, budget.trials, long=budget.view))
        if masked or not facts.differentiable:
            yield "query", NES(steps=budget.estimated)
        yield "query", Square(queries=budget.queries)

    def _views(self, facts: ModelFacts, *, masked: bool) -> list[str]:
        """The harness's stand-ins that are worth an attack; features, and smoothing in `quick`, only of what hides."""
        seen = [name for name in facts.views if name != "features" and not name.startswith(_SMOOTHED)]
        if masked or seen:
            return list(facts.views)
        return [] if self.budget == "quick" else [name for name in facts.views if name == _SMOOTHED]

    def _through_views(self, facts: ModelFacts, budget: _Budget, masked: bool) -> Iterator[tuple[Part, Attack]]:
        for name in self._views(facts, masked=masked):
            made = SurrogateSwap(name, "surrogates", budget.view, budget.view // 2)
            yield "views", Expected(made, budget.eot) if facts.randomised else made

    def _autoattack(self, threat: ThreatModel, facts: ModelFacts, budget: _Budget) -> list[Attack]:
        """AutoAttack without Square, which comes last; without FAB, whose boundary a randomised model does not have."""
        targets = None if self.budget == "standard" else budget.targets
        suite = AutoAttack("plus" if self.budget == "thorough" else "standard", budget.steps, budget.queries, targets)
        found = [attack for attack in suite.attacks(threat, facts) if not isinstance(attack, Square)]
        return [attack for attack in found if isinstance(attack, APGD)] if facts.randomised else found

    def _stand_ins(self, facts: ModelFacts, budget: _Budget) -> Iterator[tuple[Part, Attack]]:
        def swap(only: str, of: Literal["surrogates", "members"], most: int = 12) -> Attack:
            made = SurrogateSwap(only, of, budget.swap, budget.direct, budget.swaps, most=most)
            return Expected(made, budget.eot) if facts.randomised else made

        for name in facts.surrogates:
            yield "surrogates", swap(name, "surrogates")
        attacked = facts.surrogates if not self.only or "surrogates" in self.only else ()
        if facts.members > 1:
            if "mean-logits" not in attacked and not facts.blind_members:
                yield "members", swap("mean", "members", facts.members)
            for number in range(facts.members):
                if f"member-{number + 1}" not in attacked and number not in facts.blind_members:
                    yield "members", swap(str(number), "members", facts.members)
