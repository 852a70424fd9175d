"""The contract between the harness and everything that plugs into it.

Images are float32 in [0,1], shape (batch, channels, height, width); eps is a fraction such as 8/255, in those
units; logits are pre-softmax scores. A plugin needs this module, `robustkit.numerics.rows` and `.norms`, and nothing
else; a defense `robustkit.models.wrapping` and `.capabilities` besides, a recipe `robustkit.training.recipes`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustkit import spec
from robustkit.errors import UsageError
from robustkit.numerics import devices, norms, rows
from robustkit.numerics.draws import Draws as Draws  # part of the contract: a plugin finds it here

Norm = Literal["linf", "l2", "l1", "l0"]
Goal = Literal["bounded", "minimal"]
Access = Literal["white-box", "score", "decision", "transfer"]
Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch classes"]
Mask = Bool[Tensor, " batch"]

NORMS: tuple[Norm, ...] = get_args(Norm)


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """What an adversary may change: at most `eps` in `norm` around the original image, inside the box.

    `l0` counts pixels (all channels of a pixel are one). The rule of containment, everywhere: the distance,
    computed in float64, is at most eps·(1+1e-6)+1e-7, and every value lies in [low, high].

    Raises:
        UsageError: for an unknown norm, eps ≤ 0, an eps no image can use, or an empty box.
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"unknown norm {self.norm!r}; there are: {', '.join(NORMS)}")
        if not (self.eps > 0 and self.eps < float("inf")):
            raise UsageError(f"eps must be a positive number such as 8/255, not {self.eps!r}")
        if not self.low < self.high:
            raise UsageError(f"the box [{self.low}, {self.high}] is empty")
        told = spec.NORMS[self.norm]
        if self.eps > told.most * (self.high - self.low):
            raise UsageError(
                f"{self.norm} eps {self.eps:g} is wider than the whole range [{self.low:g}, {self.high:g}]; "
                "pixels are in [0,1], so 8 of 255 levels is 8/255"
            )
        if self.eps < told.least:
            raise UsageError(f"{self.norm} eps counts {told.unit}, such as {told.eps}; {self.eps:g} lets none change")

    def distance(self, x: Images, adv: Images) -> Float[Tensor, " batch"]:
        """Distance of each image from its original, in float64: on the CPU, where their device has none."""
        if not devices.has_float64(adv.device):
            x, adv = torch.stack([x, adv]).cpu().unbind()
        return norms.length(adv.double() - x.double(), self.norm)

    def contains(self, x: Images, adv: Images) -> Mask:
        """Whether each image is finite, inside the box and within eps of its original."""
        return self.in_box(adv) & (self.distance(x, adv) <= self.limit).to(adv.device)

    def in_box(self, adv: Images) -> Mask:
        """Whether each image is finite and inside the box."""
        values = rows.flat(adv)
        return ((values >= self.low) & (values <= self.high)).all(1)  # NaN compares false

    @property
    def limit(self) -> float:
        """The largest distance that still counts as inside."""
        return spec.limit(self.eps)

    def clip(self, adv: Images) -> Images:
        """The nearest image inside the box."""
        return adv.clamp(self.low, self.high)

    def project(self, x: Images, adv: Images) -> Images:
        """An image of the ball and the box near `adv`; what is inside stays as it is, bit for bit.

        It is the nearest for linf and l1; l2 goes to the ball, then to the box; l0 keeps the largest changes. No entry
        ends further from x than `adv` clipped to the box.
        """
        return norms.NORMS[self.norm].project(x, adv, self.eps, self.low, self.high)

    def sample(self, x: Images, draws: Draws) -> Images:
        """A random image of the ball and the box, the usual random start of PGD.

        Uniform in the ball, then projected on the box; l0: random pixels with uniform values.
        """
        return norms.NORMS[self.norm].sample(x, self.eps, self.low, self.high, draws)


class Outputs(NamedTuple):
    """What a model says of a batch: its logits and, of an ensemble that offers them, each member's."""

    logits: Logits
    members: Float[Tensor, "members batch classes"] | None = None


class Gradient(NamedTuple):
    """One forward and one backward (for losses of shape (losses, batch): one forward, `losses` backwards)."""

    outputs: Outputs
    loss: Float[Tensor, "*losses batch"]
    grad: Float[Tensor, "*losses batch channels height width"]


Loss = Callable[[Outputs], Tensor]


@runtime_checkable
class Oracle(Protocol):
    """All that an attack may ask of the model, for exactly the samples of its case."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def randomised(self) -> bool:
        """Whether two calls on the same images differ."""

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow."""

    def select(self, rows: Tensor) -> "Oracle":
        """The same model for some of the samples; counters follow their samples."""

    def outputs(self, x: Images) -> Outputs:
        """One forward pass without gradients."""

    def gradient(self, x: Images, loss: Loss) -> Gradient:
        """The loss of each sample and its gradient with respect to that sample's image.

        Raises:
            NoGradientError: if no gradient flows through the model.
        """

    def eot(self, k: int) -> "Oracle":
        """The expectation over k draws of a randomised model: mean logits, mean loss, mean gradient."""

    @property
    def members(self) -> Sequence["Oracle"]:
        """Sub-models of an ensemble; empty for a single model."""

    @property
    def surrogates(self) -> Mapping[str, "Oracle"]:
        """Differentiable stand-ins that the model declares (mean logits, early probes …)."""

    @property
    def refusal(self) -> "Oracle":
        """Of a model that may refuse (`ModelFacts.rejects`): a classifier of two classes, 1 for what it refuses."""

    @property
    def module(self) -> nn.Module:
        """The network itself; calls through it are not counted."""

    @property
    def tile(self) -> int:
        """Width of the batches the network sees; a run attacks whole tiles of samples together."""

    def counted_module(self) -> nn.Module:
        """The network as a foreign library may have it: its passes are counted, its weights and mode out of reach."""


class Handed(NamedTuple):
    """What the attacks before an attack left of each sample that stands, a row a sample.

    `clean` is the margin of the original image; `margin` the least that any of their last candidates inside the ball
    showed, and `point` where (at first the original image itself).
    """

    clean: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    point: Images

    def select(self, rows: Tensor) -> "Handed":
        """The same of some of the samples."""
        return Handed(self.clean[rows], self.margin[rows], self.point[rows])


def _unheard(row: int, text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Case:
    """What an attack receives, one row a sample. `target` is None in an untargeted evaluation.

    `handed` is there for a `CohortAttack` alone.
    """

    oracle: Oracle
    x: Images
    y: Labels
    target: Labels | None
    threat: ThreatModel
    draws: Draws
    judge: Callable[[Tensor, Images], Mask]
    rows: Int[Tensor, " batch"]
    handed: Handed | None = None
    notes: Callable[[int, str], None] = _unheard

    def select(self, rows: Tensor) -> "Case":
        """The case of some of the samples (a mask or indices; one may come twice): counters and draws follow them."""
        rows = _indices(rows)
        target = None if self.target is None else self.target[rows]
        return Case(
            self.oracle.select(rows), self.x[rows], self.y[rows], target,
            self.threat, self.draws.select(rows), self.judge, self.rows[rows],
            None if self.handed is None else self.handed.select(rows), self.notes,
        )  # fmt: skip

    def submit(self, adv: Images) -> Mask:
        """Hand in candidates; true where the judge confirms a break with the reference model.

        Costs a forward pass of the reference model for these rows: ask at checkpoints, not every step. What was
        submitted counts: an image outside the threat model is a violation, unless `goal` is "minimal".
        """
        return self.judge(self.rows, adv)

    def say(self, words: Sequence[str], which: Int[Tensor, " batch"]) -> None:
        """Note for each sample of the case one of some lines of words, or none where `which` is below zero.

        The record keeps them, and nothing reads them: a search says so which of its trials led on. They must not depend
        on what else is in the batch. Asks the device once.
        """
        for row, number in torch.stack([self.rows, which]).T.tolist():
            if number >= 0:
                self.notes(row, words[number])

    def reached(self, logits: Logits) -> Mask:
        """Whether the model's decision is what the attack wants."""
        return rows.reached(logits, self.y, self.target)


def _indices(chosen: Tensor) -> Tensor:
    """The indices that a mask means: asked once, since every use of a mask as an index waits for the device."""
    return rows.positions(chosen) if chosen.dtype == torch.bool else chosen


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass of settings that can be called. Settings only: the model and the data are arguments."""

    @property
    def norms(self) -> frozenset[Norm]:
        """The norms it works in; as a rule a ClassVar, like the next two."""

    @property
    def goal(self) -> Goal:
        """Bounded, or minimal for an attack that seeks the nearest adversarial and may end beyond eps."""

    @property
    def access(self) -> Access:
        """What it needs of the model."""

    def __call__(self, case: Case) -> Images:
        """One candidate for each sample of the case, in its order."""

    def cost(self, classes: int) -> tuple[int, int]:
        """The most forward and backward passes that one sample can take."""


@runtime_checkable
class CohortAttack(Attack, Protocol):
    """An attack whose effort on a sample depends on the samples beside it: it ranks them, and looks at the nearest.

    Its result is a function of a declared cohort, `cohort` consecutive positions of the evaluated list, of which it
    gets all that still stand at once, with what the attacks before it handed on (`Case.handed`).

    One that ought to break nothing where gradients tell the truth may say what it is in `if_it_breaks`: where it breaks
    something all the same, and its suite alone attacked, the record has a finding.
    """

    @property
    def cohort(self) -> int:
        """How many consecutive samples of the evaluated list are ranked together."""


@runtime_checkable
class ForeignAttack(Attack, Protocol):
    """An attack that another library does: how it is written on a command line, and whose code decides its numbers."""

    @property
    def spec(self) -> str:
        """The spec that makes it again: `torchattacks/PGD:steps=20`."""

    @property
    def library(self) -> str:
        """The library's import name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An attack on the expectation over k draws of a randomised model (EOT): a wrapper for any gradient attack.

    Source: Athalye, Engstrom, Ilyas, Kwok 2018, arXiv:1707.07397.
    """

    attack: Attack
    k: int

    @property
    def norms(self) -> frozenset[Norm]:
        """The wrapped attack's norms."""
        return self.attack.norms

    @property
    def goal(self) -> Goal:
        """The wrapped attack's goal."""
        return self.attack.goal

    @property
    def access(self) -> Access:
        """The wrapped attack's access."""
        return self.attack.access

    def __call__(self, case: Case) -> Images:
        """The wrapped attack, on an oracle that averages."""
        return self.attack(replace(case, oracle=case.oracle.eot(self.k)))

    def cost(self, classes: int) -> tuple[int, int]:
        """The wrapped attack's passes, k times."""
        forwards, backwards = self.attack.cost(classes)
        return forwards * self.k, backwards * self.k


class ModelFacts(NamedTuple):
    """What a suite may know of the model before it names its attacks: what it declares, and what was seen of it.

    `zero_gradient` and `misleading_gradient` are shares of the first images: the gradient of the cross-entropy or of
    the margin is exactly zero there; a small step against the gradient of the margin does not lower the margin.
    `blind_members` are the numbers of the members that pass no gradient. `no_gradient` says why none flows through the
    model, where that is so. `views` are stand-ins that the harness made itself, for a suite that `looks_inside`: the
    oracle has them among its surrogates, beside those that the model declares. `rejects`: it may refuse to decide.
    """

    classes: int
    randomised: bool
    differentiable: bool
    members: int
    surrogates: tuple[str, ...]
    zero_gradient: float = 0.0
    misleading_gradient: float = 0.0
    blind_members: tuple[int, ...] = ()
    no_gradient: str = ""
    views: tuple[str, ...] = ()
    rejects: bool = False


@runtime_checkable
class Suite(Protocol):
    """Settings that name attacks; the harness runs each on what is left standing.

    One that is too weak to establish a robust accuracy by itself may say why in a property `never_alone`. One whose
    number is not that of a well-known suite may say so in a property `caution`: every record of it does. One that has
    `looks_inside = True` is told of stand-ins that the harness makes of the model (`ModelFacts.views`).
    """

    def attacks(self, threat: ThreatModel, facts: ModelFacts) -> Sequence[Attack]:
        """The attacks, in order."""


@runtime_checkable
class Defense(Protocol):
    """Settings that wrap a model at inference."""

    def protect(self, model: nn.Module) -> nn.Module:
        """The defended model."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model: where it is from and how its input is meant. Empty means unknown.

    `mean` and `std` are what the module itself does to [0,1] images; `threat` is what it was trained against. `caution`
    is what every number measured on it must say of how it was loaded.
    """

    name: str
    source: str = ""
    dataset: str = ""
    classes: int | None = None
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    threat: str = ""
    licence: str = ""
    paper: str = ""
    sha256: str = ""
    notes: str = ""
    caution: str = ""


@runtime_checkable
class ModelSource(Protocol):
    """Loads models by name. The module takes [0,1] images and normalises inside."""

    def names(self) -> Sequence[str]:
        """The names that can be listed; a source of user files lists none."""

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: for an unknown name or option, or a file that is no checkpoint.
        """


@runtime_checkable
class CardSource(ModelSource, Protocol):
    """A source that knows its models without making them: for listings, and for the dataset of an evaluation."""

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a model before it is loaded.

        Raises:
            UsageError: for an unknown name or option.
        """


@runtime_checkable
class Dataset(Protocol):
    """Labelled images in a fixed order.

    It may offer `labels` besides, the class of every image without one being read: then n images of data that lie class
    by class are a class-balanced draw. And `notes`, lines on what was found while reading: a record holds them. And
    `class_names`, what its classes are called, by class: reports say them instead of numbers.
    """

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def classes(self) -> int:
        """Number of classes, 0 where it is not known."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The images (float32 in [0,1]) and labels (int64) at `indices`."""


@runtime_checkable
class AttackSource(Protocol):
    """Makes attacks by name from another library: `torchattacks/PGD:steps=10`."""

    def names(self) -> Sequence[str]:
        """The names that can be listed."""

    def make(self, name: str, options: Mapping[str, str]) -> "Attack | Suite":
        """The attack with these settings.

        Raises:
            UsageError: for an unknown name or option.
        """

    def card(self, name: str) -> str:
        """What a user should know of it, known defects first."""


@runtime_checkable
class DatasetSource(Protocol):
    """Makes datasets by name from elsewhere: `folder/PATH`, `hf/ORG/NAME`, `samples/cifar10`."""

    def names(self) -> Sequence[str]:
        """The names that can be listed; empty where they are the user's."""

    def make(self, name: str, options: Mapping[str, str]) -> "Dataset":
        """The dataset with these settings.

        Raises:
            UsageError: for an unknown name or option, or data that cannot be read.
        """
