"""What a run will take at most, told before it starts: the attacks' own counts of passes, at this model's speed."""

import time
from collections.abc import Callable, Sequence

import torch

from robustkit.api import Images
from robustkit.engine.events import Predicted
from robustkit.engine.plan import Named
from robustkit.engine.subject import Subject
from robustkit.oracle import Counts, ModelOracle

LONG_ENOUGH_S = 0.2  # of calls to take the mean of, so that a machine that others use counts as it is


def predict(subject: Subject, attacks: Sequence[Named], x: Images, n: int) -> Predicted:
    """The most passes that `attacks` can take on `n` samples, and about how long, timed on one tile of the images `x`.

    It is the cost if nothing breaks: a sample that breaks leaves early, and most of a weak model's do at once. What an
    attack computes beside the model is not in it.
    """
    costs = [named.attack.cost(subject.facts.classes) for named in attacks]
    forwards, backwards = (sum(passes) for passes in zip(*costs, strict=True))
    forward, backward = seconds_of_a_tile(subject, x)
    tiles = -(-n // subject.reference.tile)
    return Predicted(n * forwards, n * backwards, tiles * (forwards * forward + backwards * backward))


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
    while True:
        call()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - began
        if spent > LONG_ENOUGH_S:
            return spent / calls
