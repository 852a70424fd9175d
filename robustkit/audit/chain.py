"""How much an audit spends, and the attacks that must agree with each other, in the order in which they run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from robustkit import plugins, spec
from robustkit.api import Attack, Expected, ModelFacts
from robustkit.engine import plan
from robustkit.engine.plan import Named


@dataclass(frozen=True, slots=True)
class Settings:
    """How much an audit spends: it looks at the first `n` samples. `eot` draws only of a randomised model."""

    n: int = 128
    steps: tuple[int, int, int] = (10, 50, 200)
    targets: int = 3
    restarts: int = 3
    swap: int = 50
    copies: int = 8
    boundary: int = 30
    queries: int = 1000
    noise: int = 100
    eot: int = 1


RANDOMISED = Settings(steps=(10, 30, 90), targets=2, restarts=2, swap=30, copies=4, queries=300, eot=5)


@dataclass(frozen=True)
class Chain:
    """The attacks of an audit in the order in which they run, each on what still stands."""

    alone: list[Named]
    steps: list[Named]
    targeted: list[Named]
    restarts: list[Named]
    accepted: list[Named]
    more_draws: list[Named]
    boundary: list[Named]
    stand_ins: list[Named]
    labels: list[str]
    queries: list[Named]
    draws: int

    @classmethod
    def of(cls, facts: ModelFacts, settings: Settings, inside: Iterable[str]) -> "Chain":
        """What applies to this model; `inside` are the stand-ins that it does not declare."""
        empty = cls([], [], [], [], [], [], [], [], [], [], settings.eot)
        labels = list(dict.fromkeys((*facts.surrogates, *inside)))
        stand_ins = [empty.swap(name, "surrogates", settings) for name in labels]
        if facts.members > 1:
            seeing = [str(number) for number in range(facts.members) if number not in facts.blind_members]
            for name in ([] if facts.blind_members else ["mean"]) + seeing:
                stand_ins.append(empty.swap(name, "members", settings))
                labels.append("mean of members" if name == "mean" else f"member {name}")
        queries = [empty.named(f"square:queries={settings.queries}", averaged=False)]
        if not facts.differentiable:  # then queries are all there is to attack the model itself with
            return replace(empty, alone=queries, stand_ins=stand_ins, labels=labels)
        middle, targets = settings.steps[1], min(settings.targets, facts.classes - 1)
        return replace(
            empty,
            steps=[empty.named(f"apgd:steps={steps}") for steps in settings.steps],
            targeted=[empty.named(f"apgd:loss=dlr-targeted,steps={middle},targets={targets}")],
            restarts=[empty.named(f"apgd:loss=margin,steps={middle},restarts={settings.restarts}")],
            accepted=[empty.named(f"accepted:steps={middle}")] if facts.rejects else [],
            more_draws=[empty.eot_of(f"apgd:loss=margin,steps={middle}", 4 * settings.eot)] if facts.randomised else [],
            # A randomised model has no one boundary to follow.
            boundary=[] if facts.randomised else [
                empty.named(f"fab:targets={targets},steps={settings.boundary},minimise=false")
            ],
            stand_ins=stand_ins,
            labels=labels,
            queries=queries,
        )  # fmt: skip

    @property
    def direct(self) -> list[Named]:
        """What attacks the model itself: gradients, or queries where none flow."""
        return [*self.alone, *self.steps, *self.targeted, *self.restarts]

    @property
    def all(self) -> list[Named]:
        """All of them."""
        return [*self.direct, *self.accepted, *self.more_draws, *self.boundary, *self.stand_ins, *self.queries]

    def before(self, group: Sequence[Named]) -> list[Named]:
        """What runs before the first of a group."""
        return self.all[: self.all.index(group[0])]

    @property
    def sweep(self) -> Named:
        """The attack of larger and larger balls."""
        return self.named("apgd:steps=50")

    @property
    def one_step(self) -> Named:
        """The weakest gradient attack."""
        return self.named("fgsm")

    def eot(self, attack: Attack) -> Attack:
        """The attack, averaged over draws of a randomised model."""
        return Expected(attack, self.draws) if self.draws > 1 else attack

    def named(self, text: str, *, averaged: bool = True) -> Named:
        """The attack of a spec."""
        made = plan.make_attack(text)
        attack = self.eot(made) if averaged else made
        return Named(plan.name_of(attack), attack)

    def eot_of(self, text: str, draws: int) -> Named:
        """The attack of a spec, averaged over so many draws."""
        attack = Expected(plan.make_attack(text), draws)
        return Named(plan.name_of(attack), attack)

    def swap(self, name: str, of: str, settings: Settings) -> Named:
        """Steps on one stand-in, judged on the model."""
        options = {"only": name, "of": of, "steps": str(settings.swap), "direct": "0"}
        made = spec.build(plugins.load("attacks", "surrogate-swap"), options, "surrogate-swap")
        attack = self.eot(made)
        return Named(plan.name_of(attack), attack)
