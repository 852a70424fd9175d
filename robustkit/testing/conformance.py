"""A case to attack without the engine, and the conformance suite for anyone's attack."""

import copy
import dataclasses
import math
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustkit import spec
from robustkit.api import NORMS, Attack, Case, CohortAttack, Images, Labels, Norm, ThreatModel
from robustkit.engine.judge import BROKEN, VIOLATED, Judge, Verdicts
from robustkit.errors import first_line
from robustkit.models import capabilities
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.numerics import rows
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.testing.pretended import pretended


class Attacked(NamedTuple):
    """The result of one attack on one batch."""

    broken: Tensor
    verdicts: Verdicts
    judge: Judge
    forwards: Tensor
    backwards: Tensor


def attack_batch(
    attack: Attack,
    module: nn.Module,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    *,
    target: Labels | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    tile: int = 32,
    on_call: Callable[[], None] | None = None,
) -> Attacked:
    """Run one attack on one batch as the engine does, judged, without shards or a journal.

    It runs where `x` is, and `module` must be; `y`, `target` and `indices` are brought there. `on_call` is called at
    each call of the model by the attack.
    """
    y, target = y.to(x.device), None if target is None else target.to(x.device)
    everyone = torch.arange(len(x), device=x.device)
    indices = everyone if indices is None else indices.to(x.device)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    refuses = capabilities.rejects(module, x[:1].to(dtype)) is not None
    network = Network(module, tile, x.device, dtype, refuses=refuses)
    classes = int(network.logits(x[:1]).shape[1])
    counts = Counts(len(x), x.device, on_call)
    judge = Judge(network, threat, x, y, target, attack.goal)
    lent = judge.lent()
    oracle = ModelOracle(network, counts, everyone.clone(), classes)
    draws = SampleDraws(key_of(seed, attack), indices.clone())
    case = Case(oracle, *lent, threat, draws, judge.submit, everyone)
    judge.submit(case.rows, attack(case))
    verdicts = judge.verdicts()
    return Attacked(verdicts.outcome == BROKEN, verdicts, judge, counts.forwards, counts.backwards)


Level = Literal["strict", "judge-safe"]


class Failure(AssertionError):
    """An attack does not conform; the message names the check, what was seen and what is due."""


def check_attack(
    attack: Attack, *, norms: Sequence[Norm] | None = None, level: Level = "strict", targeted: bool = False,
    device: torch.device | str = "cpu",
) -> list[str]:  # fmt: skip
    """Hold an attack to the contract on small models; returns the checks it passed.

    Give it settings that are quick but able (a few dozen steps). `norms` defaults to all it says it works in.

    Args:
        attack: the attack.
        norms: where to check it.
        level: "strict", what this project's attacks keep, on linear models whose optimum is known; or "judge-safe", for
            adapters to other libraries, on a small convolutional network: only what the judge needs for its verdict to
            hold. What is then reported but not required ends the list: "linf: reported: …".
        targeted: judge-safe with targets, for an attack that knows nothing else.
        device: where the models and images are.

    Raises:
        Failure: at the first check that fails.
    """
    if level == "judge-safe":
        return _check_judge_safe(attack, norms, targeted, torch.device(device))
    passed = [name for name, check in _SETTINGS_CHECKS.items() if check(attack) is None]
    for norm in norms or [n for n in NORMS if n in attack.norms]:
        problem = _Problem.make(norm).to(torch.device(device))
        first = _run(attack, problem)
        for name, check in _RUN_CHECKS.items():
            check(attack, problem, first)
            passed.append(f"{norm}: {name}")
    return passed


class _Problem(NamedTuple):
    """A linear model, images it gets right, and an eps at which nearly all of them can be broken."""

    module: nn.Module
    x: Images
    y: Labels
    threat: ThreatModel

    def to(self, device: torch.device) -> "_Problem":
        return self._replace(module=self.module.to(device), x=self.x.to(device), y=self.y.to(device))

    @classmethod
    def make(cls, norm: Norm, classes: int = 4, n: int = 21) -> "_Problem":
        generator = torch.Generator().manual_seed(17)
        linear = nn.Linear(2 * 6 * 5, classes)
        module = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
        weight = torch.randn(classes, 60, generator=generator)
        linear.weight.copy_(weight)
        linear.bias.zero_()
        x = 0.25 + 0.5 * torch.rand(n, 2, 6, 5, generator=generator)
        logits = module(x)
        y = logits.argmax(1)
        gaps = logits.gather(1, y[:, None]) - logits
        directions = (weight[y][:, None] - weight[None]).abs()
        reach = {
            "linf": directions.sum(2),
            "l2": directions.square().sum(2).sqrt(),
            "l1": directions.amax(2),
            "l0": directions.view(n, classes, 2, 30).sum(2).topk(4).values.sum(-1) / 8,
        }[norm]
        radius = torch.where(gaps > 0, gaps / reach.clamp_min(1e-9), torch.inf).amin(1)
        eps = float(radius.median()) * 3
        return cls(module, x, y, ThreatModel(norm, math.ceil(eps) + 3 if norm == "l0" else min(eps, 0.9 * 60)))


def _run(attack: Attack, problem: _Problem, rows: Tensor | None = None, **options: Any) -> Attacked:
    rows = torch.arange(len(problem.x)) if rows is None else rows
    module, x, y, threat = problem
    return attack_batch(attack, module, x[rows], y[rows], threat, indices=rows, tile=8, **options)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise Failure(text)


def _is_settings(attack: Attack) -> None:
    params = getattr(type(attack), "__dataclass_params__", None)
    _require(params is not None and params.frozen, f"{attack!r} must be an instance of a frozen dataclass")
    _require(
        all(f.default is not dataclasses.MISSING for f in dataclasses.fields(attack)),  # type: ignore[arg-type]
        f"every setting of {type(attack).__name__} must have a default",
    )


def _declares(attack: Attack) -> None:
    unknown = set(attack.norms) - set(NORMS)
    _require(bool(attack.norms) and not unknown, f"norms must be some of {NORMS}, not {attack.norms!r}")
    _require(attack.goal in ("bounded", "minimal"), f"goal is {attack.goal!r}; there are: bounded, minimal")
    known = ("white-box", "score", "decision", "transfer")
    _require(attack.access in known, f"access is {attack.access!r}; there are: {', '.join(known)}")
    forwards, backwards = attack.cost(10)
    _require(forwards >= 0 and backwards >= 0, "cost(classes) must give the most forward and backward passes")


def _keeps_the_rules(attack: Attack, problem: _Problem, first: Attacked) -> None:
    reasons = sorted(first.judge.reasons)
    _require(not reasons, f"{problem.threat.norm}: broke the rules: {'; '.join(reasons)}")
    _require(not bool((first.verdicts.outcome == VIOLATED).any()), "some samples were violated")


def _does_the_job(attack: Attack, problem: _Problem, first: Attacked) -> None:
    share = rows.share(first.broken)
    _require(share >= 0.5, f"broke {share:.0%} of samples of which nearly all can be broken; did it return its input?")


def _repeats(attack: Attack, problem: _Problem, first: Attacked) -> None:
    _same(first, _run(attack, problem), torch.arange(len(problem.x)), "a second run with the same seed")


def _independent_of_the_batch(attack: Attack, problem: _Problem, first: Attacked) -> None:
    if isinstance(attack, CohortAttack):
        return  # its result is a function of the samples that it ranks together, which it always gets together
    for some in (torch.tensor([5]), torch.tensor([20, 3, 11, 8, 0])):
        _same(first, _run(attack, problem, some), some, f"attacking samples {some.tolist()} without the others")


def _same(first: Attacked, other: Attacked, rows: Tensor, what: str) -> None:
    for name, a, b in (
        ("images", first.verdicts.adv[rows], other.verdicts.adv),
        ("outcomes", first.verdicts.outcome[rows], other.verdicts.outcome),
        ("forward counts", first.forwards[rows], other.forwards),
    ):
        _require(
            torch.equal(a, b),
            f"{what} gave other {name}; use case.draws and sums per sample",
        )


def _leaves_the_world_alone(attack: Attack, problem: _Problem, first: Attacked) -> None:
    device = problem.x.device
    states, weights = _generators(device), [p.clone() for p in problem.module.parameters()]
    network = Network(problem.module, 8, device)
    judge = Judge(network, problem.threat, problem.x, problem.y, None, attack.goal)
    lent, rows = judge.lent(), torch.arange(len(problem.x), device=device)
    oracle = ModelOracle(network, Counts(len(rows), device), rows, 4)
    attack(Case(oracle, *lent, problem.threat, SampleDraws((0, 0), rows), judge.submit, rows))
    _require(judge.unchanged(*lent), "changed the images or labels it was lent, in place")
    _require(states == _generators(device), "used the global random generator; use case.draws")
    now = list(problem.module.parameters())
    _require(all(torch.equal(a, b) for a, b in zip(weights, now, strict=True)), "changed the model")
    _require(all(p.grad is None for p in now), "left gradients on the model's weights")


def _counts_within_cost(attack: Attack, problem: _Problem, first: Attacked) -> None:
    forwards, backwards = attack.cost(4)
    seen = int(first.forwards.max()), int(first.backwards.max())
    _require(seen[0] <= forwards and seen[1] <= backwards, f"took {seen} passes, more than cost() = {attack.cost(4)}")


def _runs_on_a_device(attack: Attack, problem: _Problem, first: Attacked) -> None:
    if problem.x.device.type != "cpu":
        return
    try:
        there, _ = _on_a_pretended_device(attack, problem)
    except (RuntimeError, TypeError) as error:
        raise Failure(f"does not run on a pretended CUDA device: {error}") from error
    near = (there.verdicts.adv.cpu() - first.verdicts.adv).abs().flatten(1).amax(1) < 1e-3
    same = near & (there.verdicts.outcome.cpu() == first.verdicts.outcome)
    _require(bool(same.all()), "gave other images on a pretended CUDA device, whose numbers are the CPU's")


def _on_a_pretended_device(attack: Attack, problem: _Problem, **options: Any) -> tuple[Attacked, str]:
    """The attack on the same problem there, and what it made the host wait for."""
    with pretended("cuda") as log:
        there = problem._replace(module=copy.deepcopy(problem.module)).to(torch.device("cuda"))
        waits = [log.waited]
        found = _run(attack, there, on_call=lambda: waits.append(log.waited), **options)
        between = [after - before for before, after in pairwise(waits[1:])]
    any_, most = sum(map(bool, between)), max(between, default=0)
    return found, f"waits for a device after {any_} of {len(waits) - 1} calls of the model, {most} times at most"


def _works_with_two_classes(attack: Attack, problem: _Problem, first: Attacked) -> None:
    two = _Problem.make(problem.threat.norm, classes=2).to(problem.x.device)
    _keeps_the_rules(attack, two, _run(attack, two))


def _reaches_targets(attack: Attack, problem: _Problem, first: Attacked) -> None:
    target = (problem.y + 1) % 4
    done = _run(attack, problem, target=target)
    _keeps_the_rules(attack, problem, done)
    wide = problem._replace(threat=dataclasses.replace(problem.threat, eps=_wider(problem.threat)))
    share = rows.share(_run(attack, wide, target=target).broken)
    _require(share >= 0.5, f"reached a given target on {share:.0%} of samples at twice the eps; heed case.target")


def _check_judge_safe(attack: Attack, norms: Sequence[Norm] | None, targeted: bool, device: torch.device) -> list[str]:
    """Settings, shapes, budget, honesty, an untouched world, and the same answer to the same batch."""
    _require(dataclasses.is_dataclass(attack) and _frozen(attack), f"{attack!r} must be a frozen dataclass")
    hash(attack)
    _declares(attack)
    passed = ["is a frozen dataclass", "declares norms, goal, access and cost"]
    for norm in norms or [n for n in NORMS if n in attack.norms]:
        problem = _small_network(norm).to(device)
        target = {"target": (problem.y + 1) % 10} if targeted else {}
        before = _world(problem)
        first = _run(attack, problem, **target)
        _keeps_the_rules(attack, problem, first)
        if attack.goal == "bounded":
            for scale in (0.3, 4.0):
                _keeps_its_budget(attack, norm, scale, targeted, device)
        _require(torch.equal(first.broken, _confirmed(first)), "the model was fooled only while the attack ran")
        for what, then, now in zip(_WORLD, before, _world(problem), strict=True):
            _require(then == now, f"left {what} other than it was")
        _same(first, _run(attack, problem, **target), torch.arange(len(problem.x)), "a second run with the same seed")
        _counted(attack, first)
        some = torch.tensor([5, 3, 11])
        alone = _run(attack, problem, some, **{name: wanted[some] for name, wanted in target.items()})
        same = torch.equal(first.verdicts.adv[some], alone.verdicts.adv)
        passed += [f"{norm}: {check}" for check in _SAFE]
        passed += [
            f"{norm}: reported: {'the same' if same else 'another'} result for a sample in another batch",
            f"{norm}: reported: broke {rows.share(first.broken):.0%}",
            f"{norm}: reported: {_of_a_device(attack, problem, **target)}",
        ]
    return passed


def _of_a_device(attack: Attack, problem: _Problem, **options: Any) -> str:
    """What is reported of an attack on a pretended device; a library may refuse its tensors."""
    if problem.x.device.type != "cpu":
        return f"ran on {problem.x.device}"
    try:
        return _on_a_pretended_device(attack, problem, **options)[1]
    except Exception as error:  # whatever a foreign library raises on tensors of a class that it does not know
        return f"does not run on a pretended CUDA device: {first_line(error)}"


_SAFE = (
    "keeps to the box, and to the ball unless it seeks the nearest",
    "its breaks are confirmed by the model as it was",
    "leaves images, labels, the model and global generators alone",
    "repeats with the same seed and the same batch",
    "has its passes counted",
)
_WORLD = ("torch's generator", "numpy's generator", "Python's generator", "the model", "the tracer", "gradient mode")


def _keeps_its_budget(attack: Attack, norm: Norm, scale: float, targeted: bool, device: torch.device) -> None:
    """At another eps, on more images: what leaves the ball by rounding does so for some images only."""
    problem = _small_network(norm, n=40).to(device)
    eps = problem.threat.eps * scale
    problem = problem._replace(threat=ThreatModel(norm, math.ceil(eps) if norm == "l0" else eps))
    target = {"target": (problem.y + 1) % 10} if targeted else {}
    _keeps_the_rules(attack, problem, _run(attack, problem, **target))


def _frozen(attack: Attack) -> bool:
    return bool(type(attack).__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _generators(device: torch.device) -> list[list[int]]:
    """The states of torch's global generators: the host's, and the device's if it has its own."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [state.tolist() for state in (torch.get_rng_state(), *cuda)]


def _world(problem: "_Problem") -> tuple[object, ...]:
    """What an attack must leave as it was, in the order of `_WORLD`."""
    module = problem.module
    state = [(p.tolist(), p.grad is None, p.requires_grad) for p in module.parameters()]
    mode = [(m.training, len(m._forward_hooks)) for m in module.modules()]
    numpy_state = np.random.get_state(legacy=False)
    drawn = numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"], numpy_state["gauss"]
    return (
        _generators(problem.x.device), drawn, random.getstate(), (state, mode), sys.gettrace(),
        torch.is_grad_enabled(),
    )  # fmt: skip


def _confirmed(first: Attacked) -> Tensor:
    """What the model as it is now confirms; `first.broken` is what it said while the attack ran."""
    first.judge.confirm_again()
    return first.judge.broken


def _counted(attack: Attack, first: Attacked) -> None:
    forwards, backwards = int(first.forwards.sum()), int(first.backwards.sum())
    _require(forwards > 0 or not first.broken.any(), "broke samples and no forward pass was counted")
    white_box = attack.access == "white-box"
    _require(bool(backwards) == white_box, f"{backwards} backward passes were counted of a {attack.access} attack")


def _small_network(norm: Norm, n: int = 12) -> "_Problem":
    """A random convolutional network of ten classes, colour images with saturated pixels, and a usual eps."""
    generator = torch.Generator().manual_seed(17)
    with torch.random.fork_rng():
        torch.manual_seed(17)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)
        ).requires_grad_(False)  # fmt: skip
    module.eval()
    x = (1.3 * torch.rand(n, 3, 16, 16, generator=generator) - 0.15).clamp(0, 1)
    return _Problem(module, x, module(x).argmax(1), ThreatModel(norm, spec.number(spec.NORMS[norm].eps)))


def _wider(threat: ThreatModel) -> float:
    return min(2 * threat.eps, spec.NORMS[threat.norm].most)


_SETTINGS_CHECKS: dict[str, Callable[[Attack], None]] = {
    "is a frozen dataclass with defaults": _is_settings,
    "declares norms, goal, access and cost": _declares,
}
_RUN_CHECKS: dict[str, Callable[[Attack, _Problem, Attacked], None]] = {
    "keeps to the ball and the box": _keeps_the_rules,
    "breaks what is easily broken": _does_the_job,
    "repeats with the same seed": _repeats,
    "gives a sample the same result in any batch": _independent_of_the_batch,
    "leaves images, labels, weights and global generators alone": _leaves_the_world_alone,
    "takes no more passes than it says": _counts_within_cost,
    "runs on a pretended CUDA device": _runs_on_a_device,
    "works with two classes": _works_with_two_classes,
    "heeds targets": _reaches_targets,
}
