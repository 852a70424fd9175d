"""What a run will take at most, told before it starts: the attacks' own counts of passes, at this model's speed."""

import inspect
import time
from collections.abc import Callable, Sequence

import torch

from robustkit.api import Attack, Expected, Images, ModelFacts
from robustkit.engine.plan import Named
from robustkit.events import Predicted
from robustkit.models.examination import Subject
from robustkit.models.oracle import Counts, ModelOracle
from robustkit.numerics import devices

LONG_ENOUGH_S, CALLS = 0.2, 8  # of calls to take the mean of, whichever comes first


def predict(subject: Subject, attacks: Sequence[Named], x: Images, n: int) -> Predicted:
    """The most passes that `attacks` can take on `n` samples, and about how long, timed on one tile of the images `x`.

    It is the cost if nothing breaks: a sample that breaks leaves early, and most of a weak model's do at once. What an
    attack computes beside the model is not in it.
    """
    return bound(subject.facts, attacks, n, subject.reference.tile, seconds_of_a_tile(subject, x))


def bound(
    facts: ModelFacts, attacks: Sequence[Named], n: int, tile: int, seconds_of_tile: tuple[float, float]
) -> Predicted:
    """The same for a model of which these facts are known, and the time of a tile's forward and backward pass."""
    costs = [cost_of(named.attack, facts) for named in attacks]
    forwards, backwards = (sum(passes) for passes in zip(*costs, strict=True))
    forward, backward = seconds_of_tile
    tiles, seconds = -(-n // tile), 0.0
    for named, (forwards_here, backwards_here) in zip(attacks, costs, strict=True):
        share = max(1, facts.members) if climbs_on_members(named.attack) else 1  # a pass is of one member
        seconds += tiles * (forwards_here * forward + backwards_here * backward) / share
    # At the least the images are seen clean, then by the first attack: a step, and the judge's own look.
    least = tiles * ((3 if forwards else 1) * forward + (backward if backwards else 0.0))
    return Predicted(n * forwards, n * backwards, seconds, min(seconds, least))


def cost_of(attack: Attack, facts: ModelFacts, passes: int = 1) -> tuple[int, int]:
    """The most forward and backward passes that one sample can take on this model.

    A pass of the whole model counts as `passes`. An attack that climbs on an ensemble's members takes passes of single
    members, and says how many on so many.
    """
    if isinstance(attack, Expected):
        forwards, backwards = cost_of(attack.attack, facts, passes)
        return attack.k * forwards, attack.k * backwards
    cost: Callable[..., tuple[int, int]] = attack.cost
    if facts.members and climbs_on_members(attack):
        return cost(facts.classes, facts.members)
    forwards, backwards = cost(facts.classes)
    return passes * forwards, passes * backwards


def climbs_on_members(attack: Attack) -> bool:
    """Whether an attack takes passes of an ensemble's members: its `cost` then asks how many there are."""
    inner = attack.attack if isinstance(attack, Expected) else attack
    return "members" in inspect.signature(inner.cost).parameters


def seconds_of_a_tile(subject: Subject, x: Images) -> tuple[float, float]:
    """How long a forward and a backward pass of one tile take, through the oracle as an attack has it."""
    network = subject.reference
    if network.noise is not None:
        network = network.seeded("timing")
    x = x[: network.tile].to(network.device)
    samples = torch.arange(len(x), device=x.device)
    oracle = ModelOracle(network, Counts(len(x), x.device), samples, subject.facts.classes)
    forward = _mean(lambda: oracle.outputs(x), x.device)
    if not subject.facts.differentiable:
        return forward, 0.0
    both = _mean(lambda: oracle.gradient(x, lambda outputs: outputs.logits.logsumexp(1)), x.device)
    return forward, max(0.0, both - forward)


def _mean(call: Callable[[], object], device: torch.device) -> float:
    call()  # the first call of a kind is slower
    began, calls = time.perf_counter(), 0
    spent = 0.0
    while calls < CALLS and spent < LONG_ENOUGH_S:
        call()
        calls += 1
        devices.synchronize(device)
        spent = time.perf_counter() - began
    return spent / calls
