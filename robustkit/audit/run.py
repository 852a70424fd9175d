"""The audit itself: measures on some samples, attacks them in ways that must agree with each other, and judges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from robustkit import datasets, events, spec
from robustkit.api import Dataset, Defense, Expected, Images, Norm, ThreatModel
from robustkit.audit import gradients, rules
from robustkit.audit.chain import RANDOMISED, Chain, Settings
from robustkit.audit.noise import RandomNoise
from robustkit.audit.probes.asking import Look
from robustkit.audit.probing import Probing
from robustkit.audit.rules import Claim, Limits
from robustkit.datasets.choice import choose_samples
from robustkit.engine import plan
from robustkit.engine.costs import cost_of, predict
from robustkit.engine.measure import measure
from robustkit.engine.plan import Named
from robustkit.engine.request import Execution, Request, check_counts, threat_of
from robustkit.errors import UsageError
from robustkit.models import capabilities, defended, standins
from robustkit.models.examination import Subject
from robustkit.models.opening import Model, Opened, check_model, load, open_model
from robustkit.models.turns import one_at_a_time
from robustkit.models.views import Views
from robustkit.numerics import norms
from robustkit.records import evidence
from robustkit.records.findings import Audit, Check
from robustkit.records.run import INSUFFICIENT, RunRecord
from robustkit.records.schema import BROKEN, ROBUST, UNKNOWN, WRONG
from robustkit.stats import Proportion

NORMS = tuple(name for name in norms.NORMS if norms.NORMS[name].dual)  # those with gradient steps to compare


@dataclass(frozen=True, slots=True)
class Question:
    """What the record under audit was asked, or would be."""

    threat: ThreatModel
    seed: int
    draws: int = spec.DEFAULT_DRAWS

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", spec.whole(self.seed, "seed", 0))

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> "Question":
        """That of a record's job."""
        return cls(ThreatModel(job["norm"], job["eps"]), job["seed"], job.get("draws") or spec.DEFAULT_DRAWS)


@one_at_a_time()
def audit(
    model: Model,
    data: str | Dataset | tuple[Any, Any],
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    norm: Norm = "linf",
    eps: float | str | None = None,
    seed: int = 0,
    n: int | None = None,
    indices: str | Sequence[int] | None = None,
    outputs: Literal["logits", "probs"] = "logits",
    trust: bool = False,
    device: str = "auto",
    tile: int | None = None,
    on_event: Callable[[events.Event], None] | None = None,
    settings: Settings | None = None,
    draws: int = spec.DEFAULT_DRAWS,
) -> Audit:
    """Whether a gradient attack on this model would tell the truth; without a robust accuracy that is under audit.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits.
        data: a spec, a Dataset, or a pair (x, y).
        defense: what stands before the model at inference.
        norm: of the threat model.
        eps: its radius in [0,1] units; None is the norm's default, as in `robustkit.evaluate`.
        seed: of all random numbers.
        n: so many samples, chosen as in `robustkit.evaluate`; by default 128, or all if there are fewer.
        indices: these samples, instead of n.
        outputs: what the model returns.
        trust: unpickle checkpoints that are more than weights.
        device: as in `robustkit.evaluate`.
        tile: width of the batches the model sees.
        on_event: told the budget before it is spent, and each check.
        settings: how much is spent; None is `Settings()`, or `RANDOMISED` where the model is.
        draws: of a randomised model, how many fresh draws vote on a sample.

    Raises:
        UsageError: for anything that cannot be run as given.
    """
    question = Question(threat_of(norm, eps), seed, draws)
    check_norm(norm)
    check_counts(draws=draws)
    check_model(model, data, norm)
    defenses = defended.resolve(defense)
    dataset = datasets.resolve(data)
    loaded = load(model, dataset.name, norm, outputs=outputs, trust=trust, device=device)
    if n is None and indices is None:
        n = min(Settings().n, len(dataset))
    samples = choose_samples(dataset, n, indices)
    with open_model(loaded, samples, defenses=defenses, tile=tile, seed=seed) as opened:
        found = audit_opened(opened, question, tell=on_event, settings=settings)
        return replace(found, subject=_subject(opened, question, data if isinstance(data, str) else dataset.name))


def _subject(opened: Opened, question: Question, data: str) -> dict[str, Any]:
    """What was audited, as JSON data."""
    threat = question.threat
    asked = {"data": data, "norm": threat.norm, "eps": threat.eps, "seed": question.seed, "draws": question.draws}
    return {**opened.identity, **asked, "versions": plan.versions()}


def check_norm(norm: str) -> None:
    """Refuse a norm without gradient attacks to compare with.

    Raises:
        UsageError: for l0.
    """
    if norm not in NORMS:
        raise UsageError(f"the audit has no {norm} form; there are: {', '.join(NORMS)}")


def audit_opened(
    opened: Opened,
    question: Question,
    *,
    record: RunRecord | None = None,
    attacks: Sequence[Named] = (),
    tell: Callable[[events.Event], None] | None = None,
    settings: Settings | None = None,
) -> Audit:
    """Audit a model that is open already: all its samples, or of a record, what `attacks` made of it, 128."""
    say = tell or (lambda event: None)
    some = opened if record is None else opened.on(opened.samples.some(Settings().n))
    checks = []
    for check in _Audit(some, question, record, attacks, say, settings).checks():
        checks.append(check)
        say(events.Checked(check.name, check.outcome, check.text))
    return Audit(tuple(checks))


@dataclass(frozen=True)
class _Audit:
    opened: Opened
    question: Question
    record: RunRecord | None
    attacks: Sequence[Named]
    tell: Callable[[events.Event], None]
    settings: Settings | None
    limits: Limits = field(default_factory=Limits)

    @property
    def module(self) -> nn.Module:
        """The model behind its defenses."""
        return self.opened.module

    @property
    def indices(self) -> tuple[int, ...]:
        """The samples that are looked at."""
        return self.opened.samples.indices

    def checks(self) -> Iterator[Check]:
        """Every check; what is invalid ends it, for numbers of such a model mean nothing."""
        subject = self.opened.subject
        x = self.opened.samples.batch(0, len(self.indices))[0].to(self.opened.device)
        facts = subject.facts
        settings = self.settings or (RANDOMISED if facts.randomised else Settings())
        probing, inside = self._probing(subject, x, settings)
        chain = Chain.of(facts, settings, inside)
        self._budget(subject, chain, settings, x)

        training = any(part.training for part in self.module.modules())
        state = rules.state(training=training, changes=subject.stateful, counts=bool(subject.volatile))
        declared = capabilities.randomised(self.module)
        noise = rules.randomness(randomised=facts.randomised, declared=declared, repeatable=bool(subject.noisy_sha256))
        yield state
        yield noise
        outcomes = [state.outcome, noise.outcome]
        if self.record is not None:
            rules_kept = self._violations(self.record)
            outcomes.append(rules_kept.outcome)
            yield rules_kept
        if "invalid" in outcomes:
            return
        for check in probing.function():
            outcomes.append(check.outcome)
            yield check
        if "invalid" in outcomes:
            return
        yield from self._gradients(subject, x, settings)
        yield from probing.gradients(flows=facts.differentiable)
        yield from self._attacked(subject, chain, inside, settings)

    def _probing(self, subject: Subject, x: Images, settings: Settings) -> tuple[Probing, dict[str, nn.Module]]:
        """The probes, and what the audit may attack in the model's place, besides what the model declares.

        What the probes found decides which: a rough model is smoothed over wide noise too, one whose outputs jump is
        attacked by its features. Those that the probes may pass for the model are what it declares, and its copies.
        """
        finder = Views(subject.reference, x, subject.facts, self.question.threat, settings.copies)
        look = Look(subject.reference, x, torch.tensor(self.indices, device=x.device), self.question.seed)
        declared = capabilities.surrogates(self.module)
        passes = dict(declared)
        probing = Probing(look, finder.operators, passes, bool(declared), self.limits)
        flows = subject.facts.differentiable
        found = finder.found(rough=flows and probing.rough, hidden_head=probing.hidden_head)
        passes |= {name: module for name, module in found.items() if name.startswith("without ")}
        return probing, found

    def _budget(self, subject: Subject, chain: Chain, settings: Settings, x: Images) -> None:
        """Tell what the attacks take at most, before any of it is spent."""
        weak = [_noise(settings), *([chain.one_step] if chain.steps else [])]
        sweep = self._sweep_attacks(chain) * len(self._radii()) if chain.steps else []
        whole = [*chain.all, *sweep, *weak]
        cost = predict(subject, whole, x[: subject.reference.tile], len(self.indices))
        self.tell(events.Auditing(len(self.indices), cost.forwards, cost.backwards, cost.seconds))

    def _violations(self, record: RunRecord) -> Check:
        broken = record.samples["status"] == BROKEN
        limit = spec.limit(float(record.job["eps"]))
        outside = int((record.samples["distance"][broken] > limit).sum())
        return rules.violations(outside, record.unknown)

    def _gradients(self, subject: Subject, x: Images, settings: Settings) -> Iterator[Check]:
        network, limits = subject.reference, self.limits
        seen = gradients.outputs(network, x)
        if network.dtype in (torch.float32, torch.float64):
            yield rules.hard_outputs(seen.distinct, limits)
        else:  # which rounds every output
            yield rules.skipped("hard-outputs", f"the model computes in {network.dtype}")
        yield rules.saturated_outputs(seen.saturated(limits.margin), len(x), limits)
        yield rules.differentiable(subject.facts.differentiable)
        if not subject.facts.differentiable:
            return
        zero = gradients.vanishing(network, x)
        yield rules.zero_gradient(gradients.SCALES, zero.entropy, zero.of_log, zero.of_margin, len(x), limits)
        misled = gradients.misleading(network, x)
        yield rules.misleading(gradients.STEPS, misled.shares, misled.always, len(x), limits)
        steady = gradients.steadiness(network, x, torch.tensor(self.indices, device=x.device))
        if steady:
            yield rules.steadiness(gradients.RADII, steady, limits)
        else:
            yield rules.skipped("gradient-steadiness", "every gradient is zero")
        if subject.facts.randomised:
            draws = (1, settings.eot)
            yield rules.agreement(draws, gradients.agreement(network, x, draws), self._claim(subject), limits)

    def _attacked(
        self, subject: Subject, chain: Chain, inside: dict[str, nn.Module], settings: Settings
    ) -> Iterator[Check]:
        limits, n = self.limits, len(self.indices)
        watched = self.opened.offering(standins.Watched(self.module, inside), inside)
        ran = self._run(watched, chain.all, self.question.threat.eps)
        status, by = ran.samples["status"], ran.samples["broken_by"]
        right = status != WRONG
        yield rules.sample(self.indices, Proportion(int(right.sum()), n))
        if (status == UNKNOWN).any():
            yield rules.skipped("own-attacks", f"attacks of the audit failed here: {ran.why_no_robust_accuracy}")

        def broken(named: Sequence[Named]) -> np.ndarray:
            found: np.ndarray = np.isin(by, [one.name for one in named]) & (status == BROKEN)
            return found

        claimed = self._claimed()
        stood = right & ~broken(chain.direct) if claimed is None else claimed

        def share(which: np.ndarray) -> float:
            return float((which & stood if claimed is not None else which).sum()) / n

        claim = self._claim(subject)
        if claim is not None and claimed is not None:
            yield rules.attack_list(claim, differentiable=subject.facts.differentiable, limits=limits)
            yield rules.size(claim.robust, limits)
            yield rules.own_signs([sign.text for sign in evidence.signs(self.record)] if self.record else [])
            yield rules.claimed(share(status == BROKEN), n, limits)
        if chain.steps:
            counts = settings.steps
            standing = [float((right & ~broken(chain.steps[: k + 1])).sum()) / n for k in range(len(counts))]
            yield rules.steps(counts, standing, share(broken(chain.steps[-1:])), n, limits)
            yield rules.restarts(share(broken(chain.restarts)), n, limits)
            if chain.accepted:
                yield rules.refusals(share(broken(chain.accepted)), n, limits)
            if chain.more_draws:
                yield rules.draws(settings.eot, share(broken(chain.more_draws)), n, limits)
            yield from self._sweep(watched, chain, standing[1])
        if chain.stand_ins:
            so_far = [float(broken(chain.stand_ins[: k + 1]).sum()) / n for k in range(len(chain.stand_ins))]
            gap = share(broken(chain.stand_ins))
            yield rules.stand_ins(chain.labels, so_far, gap, n, limits)
        base = right if claimed is None else claimed
        for name, what, group in (
            ("boundary", "a walk along the boundary", chain.boundary), ("queries", "a query attack", chain.queries)
        ):  # fmt: skip
            if group and chain.before(group):
                left = base & ~broken(chain.before(group))
                yield rules.others(name, what, int((broken(group) & left).sum()), int(left.sum()), limits)
        noise = self._run(watched, [_noise(settings)], self.question.threat.eps)
        yield self._weak("noise", "random noise", noise, stood, limits)
        if chain.steps and self.question.threat.norm != "l1":
            one = self._run(watched, [chain.one_step], self.question.threat.eps)
            yield self._weak("one-step", "one step (FGSM)", one, stood, limits)

    def _weak(self, name: str, what: str, ran: RunRecord, stood: np.ndarray, limits: Limits) -> Check:
        both = (ran.samples["status"] == BROKEN) & stood
        return rules.others(name, what, int(both.sum()), int(stood.sum()), limits)

    def _sweep(self, watched: Opened, chain: Chain, here: float) -> Iterator[Check]:
        """APGD in larger and larger balls until nothing stands."""
        eps, standing = [self.question.threat.eps], [here]
        for radius in self._radii():
            if standing[-1] <= 0:
                break
            ran = self._run(watched, self._sweep_attacks(chain), radius)
            eps.append(radius)
            standing.append(ran.counts[ROBUST] / ran.n)
        yield rules.sweep(eps, standing, len(self.indices), self.limits)
        yield rules.monotone(standing, len(self.indices), self.limits)

    def _sweep_attacks(self, chain: Chain) -> list[Named]:
        """APGD, and for a record, whose attacks may have known better, the stand-ins."""
        return [chain.sweep, *(chain.stand_ins if self.record is not None else [])]

    def _radii(self) -> list[float]:
        """Twice the radius, and again, up to one that holds every image."""
        threat = self.question.threat
        top = norms.widest(self.opened.subject.probes.shape[1:], threat.norm)
        found = [threat.eps * 2**k for k in range(1, 12)]
        return [radius for radius in found if radius < top] + [top]

    def _run(self, opened: Opened, attacks: Sequence[Named], eps: float) -> RunRecord:
        """Attack the audit's samples."""
        q = self.question
        request = Request(
            [named.attack for named in attacks], ThreatModel(q.threat.norm, eps), opened.samples.dataset.name,
            seed=q.seed, draws=q.draws,
        )  # fmt: skip
        return measure(opened, request, Execution(tell=self._progress))

    def _progress(self, event: events.Event) -> None:
        """Of what an evaluation tells only how far it is: the rest would look like the record's."""
        if isinstance(event, events.Progress):
            self.tell(replace(event, attack=f"audit: {event.attack}"))

    def _claimed(self) -> np.ndarray | None:
        """Which of the audit's samples the record says are robust."""
        if self.record is None:
            return None
        robust = set(self.record.samples["index"][self.record.samples["status"] == ROBUST].tolist())
        return np.array([index in robust for index in self.indices])

    def _claim(self, subject: Subject) -> Claim | None:
        record = self.record
        if record is None or record.n == 0:
            return None
        white = [named.attack for named in self.attacks if named.attack.access == "white-box"]
        backwards = sum(cost_of(attack, subject.facts)[1] for attack in white)
        insufficient = next((str(flag["message"]) for flag in record.flags if flag["kind"] == INSUFFICIENT), "")
        robust = Proportion(record.counts[ROBUST], record.n)
        averaged = any(isinstance(attack, Expected) and attack.k > 1 for attack in white)
        return Claim(robust, len(white), backwards, averaged, insufficient)


def _noise(settings: Settings) -> Named:
    return Named("noise", RandomNoise(settings.noise))
