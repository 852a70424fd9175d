"""What a verification competition asks: does any input of a box violate a property? Proved, broken, or open.

First an attack and its judge look for a counterexample, which is the cheaper answer where there is one; then the bounds
climb. The box becomes an image of its own, z in [0,1] with input l + (u − l) z, so that attack and judge see what they
know: a ball of radius 1/2 around its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.certificates import ladder, regions, tracing
from robustkit.certificates.graph import NotCertifiableError
from robustkit.certificates.vnnlib import Instance
from robustkit.errors import UsageError
from robustkit.evaluation import evaluate
from robustkit.models.sources.exported import onnx_program

Answer = Literal["holds", "violated", "unknown"]
PROOF = "robustkit/proof/1"
WORDS = {"holds": "unsat", "violated": "sat", "unknown": "unknown"}  # the competition's: can the property be violated?
ATTACK = "apgd:loss=margin,steps=100,restarts=5"


@dataclass(frozen=True, slots=True)
class Proof:
    """An answer, how it came about, and the counterexample of a violation: inputs and outputs, flat."""

    answer: Answer
    by: str
    inputs: tuple[float, ...] = ()
    outputs: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        found = {"inputs": list(self.inputs), "outputs": list(self.outputs)} if self.inputs else None
        told = {"answer": self.answer, "result": WORDS[self.answer], "by": self.by, "counterexample": found}
        return {"schema": PROOF, **told}

    def result(self) -> str:
        """The text of a competition's result file: sat, unsat or unknown, and the counterexample below sat."""
        if self.answer != "violated":
            return f"{WORDS[self.answer]}\n"
        named = [(f"{name}_{i}", value) for name, values in (("X", self.inputs), ("Y", self.outputs))
                 for i, value in enumerate(values)]  # fmt: skip
        return "sat\n(" + "\n ".join(f"({name} {value!r})" for name, value in named) + ")\n"


class _Violations(nn.Module):
    """z in [0,1] to 0 and the violation of each case: label 0 is lost where any case is met.

    `joined` takes the least of a case's comparisons, which an attack can climb; else each comparison counts by itself,
    which is affine.
    """

    low: Tensor
    width: Tensor
    weight: Tensor

    def __init__(self, network: nn.Module, instance: Instance, shape: Sequence[int], cases: Sequence[Any]) -> None:
        super().__init__()
        low, high = (torch.tensor(end, dtype=torch.float64).view(1, *shape) for end in (instance.lower, instance.upper))
        self.network, self.sizes = network, [len(case) for case in cases]
        rows = torch.zeros(1 + sum(self.sizes), instance.outputs)
        for row, (i, j) in enumerate((pair for case in cases for pair in case), start=1):
            rows[row, i] += 1
            rows[row, j] -= 1
        self.register_buffer("low", low.float())
        self.register_buffer("width", (high - low).float())
        self.register_buffer("weight", rows)
        self.eval().requires_grad_(False)

    def inputs(self, z: Tensor) -> Tensor:
        """The network's inputs."""
        return self.low + self.width * z

    def forward(self, z: Tensor) -> Tensor:
        """(batch, 1 + comparisons), or where a case has several (batch, 1 + cases)."""
        differ: Tensor = self.network(self.inputs(z)).flatten(1) @ self.weight.T
        if set(self.sizes) == {1}:
            return differ
        first, *cases = torch.split(differ, [1, *self.sizes], dim=1)
        return torch.cat([first, *(case.amin(1, keepdim=True) for case in cases)], 1)


class _EachByItself(nn.Module):
    """A network that was exported for batches of one, called on any."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, a row a sample."""
        found: Tensor = torch.vmap(lambda one: self.network(one[None])[0])(x)
        return found


def read_network(file: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The network in an ONNX file and the shape of one input.

    Raises:
        UsageError: if it cannot be read, or its input has no fixed shape.
    """
    program, batch = onnx_program(file)
    if not program.input_shape:
        raise UsageError(f"{file} does not say the shape of its input; export it with fixed sizes")
    return _EachByItself(program.module) if batch == 1 else program.module, program.input_shape


def prove(
    network: nn.Module, shape: Sequence[int], instance: Instance, *, method: str = "alpha-crown", attack: str = ATTACK,
    seed: int = 0,
) -> Proof:  # fmt: skip
    """Whether a network violates an instance.

    Args:
        network: takes (batch, *shape) to outputs, in eval mode.
        shape: of one input.
        instance: what is asked; its inputs are the entries of the shape in order.
        method: the last rung of the bounds: "ibp", "crown" or "alpha-crown".
        attack: what looks for a counterexample first; a spec.
        seed: of the attack's random numbers.

    Raises:
        UsageError: if the instance has other inputs or outputs than the network.
    """
    if torch.Size(shape).numel() != len(instance.lower):
        raise UsageError(f"the instance has {len(instance.lower)} inputs, the network {torch.Size(shape).numel()}")
    image = (1,) * (3 - len(shape)) + tuple(shape)
    inner = nn.Sequential(_Shaped(shape), network).eval()
    centre = torch.full((1, *image), 0.5)
    with torch.no_grad():
        outputs = inner(torch.zeros(1, *image)).flatten(1).shape[1]
    if outputs != instance.outputs:
        raise UsageError(f"the instance has {instance.outputs} outputs, the network {outputs}")
    whole = _Violations(inner, instance, image, instance.cases)
    found = _attacked(whole, centre, attack, seed)
    for z in found:
        if proof := _confirmed(inner, instance, whole.inputs(z[None]), attack):
            return proof
    try:
        left = [case for case in instance.cases if not _refuted(inner, instance, image, case, method)]
    except NotCertifiableError as error:
        return Proof("unknown", str(error))
    if not left:
        return Proof("holds", method)
    return Proof("unknown", f"{attack} breaks none, and {method} leaves {len(left)} of {len(instance.cases)} cases")


class _Shaped(nn.Module):
    """An image as the network's input."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """The same entries."""
        return x.reshape(len(x), *self.shape)


def _attacked(whole: _Violations, centre: Tensor, attack: str, seed: int) -> list[Tensor]:
    """Images z that the judge found to violate: the centre, or what an attack found."""
    y = torch.zeros(1, dtype=torch.int64)
    record = evaluate(
        whole, (centre, y), attack, norm="linf", eps=0.5, seed=seed, save_adversarial=True, doctor=False
    )  # fmt: skip
    if record.samples["status"][0] == "WRONG":
        return [centre[0]]
    kept = record.adversarial
    return [] if kept is None else [torch.from_numpy(adv) for adv in kept["adv"]]


def _confirmed(network: nn.Module, instance: Instance, x: Tensor, by: str) -> Proof | None:
    """The counterexample, if the input lies in the box as written and the outputs meet a case."""
    low, high = (torch.tensor(end, dtype=torch.float64).view(x.shape) for end in (instance.lower, instance.upper))
    x = x.double().clamp(low, high).float()  # and where float32 rounds out of the box, one step back
    x = torch.where(x.double() < low, x.nextafter(torch.full_like(x, torch.inf)), x)
    x = torch.where(x.double() > high, x.nextafter(torch.full_like(x, -torch.inf)), x)
    if bool(((x.double() < low) | (x.double() > high)).any()):
        return None
    with torch.no_grad():
        y = network(x).flatten().double().tolist()
    if not any(all(y[i] >= y[j] for i, j in case) for case in instance.cases):
        return None
    return Proof("violated", by, tuple(x.flatten().double().tolist()), tuple(y))


def _refuted(network: nn.Module, instance: Instance, shape: Sequence[int], case: Any, method: str) -> bool:
    """Whether no input meets a case: one of its comparisons is proved to fail everywhere."""
    y = torch.zeros(1, dtype=torch.int64)
    for pair in case:
        alone = _Violations(network, instance, shape, [(pair,)])
        centre = torch.full((1, *shape), 0.5)
        traced = tracing.trace(alone, centre)
        if bool(ladder.prove(traced, regions.region(centre, "linf", 0.5), y, method).proved):
            return True
    return False
