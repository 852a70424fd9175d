"""White-box access to one classifier: logits, gradients and counting, in padded tiles of one fixed width.

A network's float results depend on the shape of its batch, but in tiles of one width not on what else is in them;
so every call, the judge's too, goes through tiles, and a record is the same however many samples are in flight.

A call gets images of its own and its answer is copied: a model may write into its input, or answer from a buffer that
its next call fills anew (bound outputs of a runtime, CUDA graphs).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.api import Gradient, Images, Logits, Loss, Oracle, Outputs
from robustkit.errors import NoGradientError
from robustkit.models import capabilities
from robustkit.models.backward import Tile, pulled_back
from robustkit.models.evidence import Climb
from robustkit.models.standins import Refusal
from robustkit.numerics import generators, rows
from robustkit.numerics.streams import key_of

NO_GRADIENT = "no gradient flows through this model (detached, or hard decisions)"


class Noise:
    """Seeds the global generators for each call of a randomised model, from (key, call number), and restores them.

    Keyed to the call, not to the sample: a randomised model's numbers repeat for the same batches only, which is
    why its robust accuracy is judged by a rule of its own.
    """

    def __init__(self, *key: object) -> None:
        self.key = key
        self.calls = 0

    @contextmanager
    def seeded(self, module: nn.Module, device: torch.device) -> Iterator[None]:
        """Seed torch, numpy, random, and the module if it offers `reseed(seed)`, for one call."""
        self.calls += 1
        seed = key_of(*self.key, self.calls)[0]
        with generators.seeded(seed, device):
            capabilities.reseed(module, seed)
            yield


@dataclass(frozen=True, slots=True)
class Network:
    """A module called in tiles. `probabilities`: its outputs are softmaxed, and their logarithm serves as logits.

    `refuses`: it offers `rejects(x)`, and is asked for that too.
    """

    module: nn.Module
    tile: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    probabilities: bool = False
    noise: Noise | None = None
    refuses: bool = False

    def seeded(self, *key: object) -> "Network":
        """The same randomised network with fresh noise of its own."""
        return replace(self, noise=Noise(*key))

    def logits(self, x: Images) -> Logits:
        """Logits without gradients, float32 (float64 for a float64 model)."""
        return self.outputs(x).logits

    def outputs(self, x: Images) -> Outputs:
        """Logits, and the members' where the module offers `forward_with_members`, without gradients."""
        with torch.no_grad():
            return _joined([self.call(tile) for tile in self.tiles(x)], x.shape[0])

    def tracked(self, x: Images) -> list[Tile]:
        """The tiles of `x` with their outputs, recorded for a backward pass."""
        with torch.enable_grad():
            tiles = [tile.detach().requires_grad_(True) for tile in self.tiles(x)]
            return [Tile(tile, self.call(tile)) for tile in tiles]

    def pull(self, tiles: Sequence[Tile], several: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], int]:
        """The gradient of the tiles' images for each of `several` sets of cotangents of their joined outputs.

        Also how many more forward passes that took. What torch.compile made may allow one backward pass only: then
        each further one has a forward pass of its own, with the same noise.

        Raises:
            NoGradientError: if the outputs do not depend on the images, or torch cannot go back through the model.
        """
        grads: list[Tensor] = []
        once, more = False, 0
        for i, cotangents in enumerate(several):
            if once:
                tiles, more = self._repeated(tiles), more + 1
            try:
                keep = i + 1 < len(several) and not once
                grads.append(pulled_back(tiles, cotangents, retain_graph=keep))
            except RuntimeError as error:
                if "donated buffer" not in str(error):
                    raise
                once = True
                grads.append(pulled_back(tiles, cotangents, retain_graph=False))
        return grads, more

    def _repeated(self, tiles: Sequence[Tile]) -> list[Tile]:
        """The same tiles called again, with the same noise."""
        if self.noise is not None:
            self.noise.calls -= len(tiles)
        with torch.enable_grad():
            leaves = [tile.x.detach().requires_grad_(True) for tile in tiles]
            return [Tile(leaf, self.call(leaf)) for leaf in leaves]

    def tiles(self, x: Images) -> Sequence[Tensor]:
        """A copy of some images in tiles, the last one filled up with copies of the first image.

        Copies, not zeros: a network may standardise each image, or refuse what is no image.
        """
        missing = -x.shape[0] % self.tile
        x = x.to(self.device, self.dtype)
        # Copied even when nothing is missing: a model that writes into its input must not write into an attack's.
        x = torch.cat([x, x[:1].detach().expand(missing, *x.shape[1:])])
        return torch.split(x, self.tile)

    def members(self, x: Images) -> Tensor:
        """The outputs of each member of an ensemble, (members, batch, classes), without gradients."""
        with torch.no_grad():
            return torch.cat([capabilities.member_outputs(self.module, tile) for tile in self.tiles(x)], 1)[:, : len(x)]

    def refused(self, x: Images) -> Tensor:
        """Which images the model refuses to decide; none of a model that refuses nothing."""
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not self.refuses or not len(x):
            return none
        with torch.no_grad():
            scores = [capabilities.rejects(self.module, tile.clone()) for tile in self.tiles(x)]
        return torch.cat([score for score in scores if score is not None])[: len(x)] > 0

    def call(self, tile: Tensor) -> Outputs:
        """The outputs for some rows as they are, recorded for a backward pass where that is wanted."""
        if self.noise is not None:
            with self.noise.seeded(self.module, self.device):
                return self._plain_call(tile)
        return self._plain_call(tile)

    def _plain_call(self, tile: Tensor) -> Outputs:
        capabilities.reset(self.module)
        # A tile that gradients are asked for is a leaf or a view, which a model could not write into.
        logits, members = capabilities.forward_with_members(self.module, tile.clone() if tile.requires_grad else tile)
        logits = logits.clone()
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.probabilities:
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return Outputs(logits, None if members is None else members.clone())


def _joined(outputs: Sequence[Outputs], n: int) -> Outputs:
    """The outputs of some tiles, without the padding."""
    logits = torch.cat([o.logits for o in outputs])[:n] if len(outputs) > 1 else outputs[0].logits[:n]
    if outputs[0].members is None:
        return Outputs(logits.detach())
    members = torch.cat([o.members for o in outputs if o.members is not None], 1)[:, :n]
    return Outputs(logits.detach(), members.detach())


class Counts:
    """Forward and backward passes of each sample of a batch, and a hook that is told of progress.

    Attributes:
        forwards, backwards: of each sample, where the images are.
        on_call: the hook.
        spent: passes of all samples together; known without a wait for the device, as the rest is.
        calls: so many passes a sample may have taken at most.
        asked: how many samples the last call was for.
    """

    def __init__(self, n: int, device: torch.device, on_call: Callable[[], None] | None = None) -> None:
        self.forwards = torch.zeros(n, dtype=torch.int64, device=device)
        self.backwards = torch.zeros(n, dtype=torch.int64, device=device)
        self.on_call = on_call
        self.spent = self.calls = self.asked = 0

    def add(self, samples: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        """Count passes of the samples at these positions."""
        if forwards:
            self.forwards.index_add_(0, samples, torch.full_like(samples, forwards))
        if backwards:
            self.backwards.index_add_(0, samples, torch.full_like(samples, backwards))
        self.asked, passes = len(samples), forwards + backwards
        self.spent, self.calls = self.spent + passes * self.asked, self.calls + passes
        if self.on_call is not None:
            self.on_call()


@dataclass(frozen=True, slots=True)
class ModelOracle:
    """The oracle of one network for the samples at `samples` of a batch; see `robustkit.api.Oracle`.

    A call counts as `passes`: as many as the networks it goes through, where passes of members are what is counted.
    `watch` is told of each pass through the model itself: the samples, their images and the logits; `climb` of each
    gradient. `no_gradient` says why one that is not differentiable passes no gradient.
    """

    network: Network
    counts: Counts
    samples: Tensor
    classes: int
    randomised: bool = False
    differentiable: bool = True
    passes: int = 1
    watch: Callable[[Tensor, Images, Logits], None] | None = None
    no_gradient: str = ""
    climb: Climb | None = None

    def select(self, rows: Tensor) -> "ModelOracle":
        """The same model for some of the samples; counters follow their samples."""
        return replace(self, samples=self.samples[rows])

    def outputs(self, x: Images) -> Outputs:
        """One forward pass without gradients."""
        self.counts.add(self.samples, forwards=self.passes)
        found = self.network.outputs(x)
        if self.watch is not None:
            self.watch(self.samples, x, found.logits)
        return _as(x, found)

    def gradient(self, x: Images, loss: Loss) -> Gradient:
        """One forward, and one backward for each loss; the loss itself is evaluated on the joined outputs."""
        if not self.differentiable:
            why = self.no_gradient or "detached, or hard decisions"
            raise NoGradientError(f"no gradient flows through this model ({why})")
        n = x.shape[0]
        tiles = self.network.tracked(x)
        if not tiles[0].outputs.logits.requires_grad:
            raise NoGradientError("the model's outputs are detached from its input")
        joined = _joined([t.outputs for t in tiles], n)
        with torch.enable_grad():
            leaves = [o.requires_grad_(True) for o in joined if o is not None]
            values = loss(Outputs(*leaves))
            losses = [single.sum() for single in (values if values.dim() == 2 else [values])]
        # The losses of the rows are summed, so the cotangent of a row is its own.
        several = [
            torch.autograd.grad(single, leaves, retain_graph=i + 1 < len(losses), materialize_grads=True)
            for i, single in enumerate(losses)
        ]
        found, more = self.network.pull(tiles, several)
        grads = [grad[:n].to(x.dtype) for grad in found]
        self.counts.add(self.samples, forwards=self.passes * (1 + more), backwards=self.passes * len(losses))
        if self.watch is not None:
            self.watch(self.samples, x, joined.logits)
        grad = torch.stack(grads) if values.dim() == 2 else grads[0]
        if self.climb is not None:
            self.climb.saw(self.samples, leaves[0].detach(), grad, values)
        return Gradient(_as(x, Outputs(*(leaf.detach() for leaf in leaves))), values.detach().to(x.dtype), grad)

    def eot(self, k: int) -> Oracle:
        """The expectation over k draws of a randomised model."""
        return self if k <= 1 else ExpectedOracle(self, k)

    @property
    def members(self) -> Sequence[Oracle]:
        """Sub-models that the module offers through `members()`."""
        return [self._of(module) for module in capabilities.members(self.network.module)]

    @property
    def surrogates(self) -> Mapping[str, Oracle]:
        """Stand-ins that the module declares through `surrogates()`."""
        return {name: self._of(module) for name, module in capabilities.surrogates(self.network.module).items()}

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.network.module

    @property
    def tile(self) -> int:
        """Width of the network's batches."""
        return self.network.tile

    @property
    def refusal(self) -> Oracle:
        """What a model that `rejects` refuses, as a classifier of two classes: 1 is refused."""
        return self._of(Refusal(self.network.module))

    def counted_module(self) -> nn.Module:
        """The network for a foreign library; see `CountedModule`."""
        return CountedModule(self)

    def _of(self, module: nn.Module) -> "ModelOracle":
        # A stand-in is differentiable unless calling it shows otherwise: that is what it was declared for.
        network = replace(self.network, module=module, probabilities=False)
        return replace(self, network=network, differentiable=True, passes=1, watch=None, climb=None)


class CountedModule(nn.Module):
    """A network lent to a foreign library: its passes are counted, and the network itself is out of reach.

    Calls go through tiles like everybody's: on its own shape of batch a library would find images that only just cross
    the boundary there, and not before the judge. Passes are shared among the samples evenly: exact for a call with one
    row for each sample; of any other the total is exact. The one parameter only tells the device.
    """

    def __init__(self, oracle: ModelOracle) -> None:
        super().__init__()
        self._oracle = oracle  # no nn.Module, so train(), to() and parameters() do not find the network in it
        self._turn = {"forwards": 0, "backwards": 0}
        self.anchor = nn.Parameter(torch.zeros((), device=oracle.network.device), requires_grad=False)
        self.eval()

    def forward(self, x: Images) -> Logits:
        """Logits in the images' dtype, recorded for a backward pass if the images are."""
        network, n = self._oracle.network, len(x)
        self._count("forwards", n)
        seen = x.to(network.device, network.dtype).clone()
        logits = torch.cat([network.call(tile).logits for tile in network.tiles(seen)])[:n].to(x.dtype)
        if seen.requires_grad and torch.is_grad_enabled():
            if not (logits.requires_grad and self._oracle.differentiable):
                raise NoGradientError(NO_GRADIENT)
            seen.register_hook(lambda grad: self._back(grad, logits.detach()))  # type: ignore[no-untyped-call]
        if self._oracle.watch is not None and n == len(self._oracle.samples):  # who checks whose image each row is
            self._oracle.watch(self._oracle.samples, x.detach().to(network.device), logits.detach())
        return logits

    def _back(self, grad: Tensor, logits: Logits) -> None:
        self._count("backwards", len(grad))
        if self._oracle.climb is not None:
            self._oracle.climb.saw(self._oracle.samples, logits, grad)

    def _count(self, what: str, n: int) -> None:
        samples, turn = self._oracle.samples, self._turn[what]
        each, more = divmod(n * self._oracle.passes, len(samples))
        if each:
            self._oracle.counts.add(samples, **{what: each})
        if more:
            self._oracle.counts.add(samples.roll(-turn)[:more], **{what: 1})
            self._turn[what] = (turn + more) % len(samples)


class _Averaged(nn.Module):
    """The mean of k calls."""

    def __init__(self, module: nn.Module, k: int) -> None:
        super().__init__()
        self.module, self.k = module, k
        self.eval()

    def forward(self, x: Images) -> Logits:
        """Mean logits."""
        return rows.average([self.module(x) for _ in range(self.k)])


@dataclass(frozen=True, slots=True)
class ExpectedOracle:
    """Mean logits, mean loss and mean gradient over k draws of a randomised model."""

    base: Any
    k: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.base.classes)

    @property
    def randomised(self) -> bool:
        """Whether the underlying model is randomised."""
        return bool(self.base.randomised)

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow."""
        return bool(self.base.differentiable)

    @property
    def members(self) -> Sequence[Oracle]:
        """The members, each in expectation."""
        return [ExpectedOracle(member, self.k) for member in self.base.members]

    @property
    def surrogates(self) -> Mapping[str, Oracle]:
        """The stand-ins, each in expectation."""
        return {name: ExpectedOracle(oracle, self.k) for name, oracle in self.base.surrogates.items()}

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        module: nn.Module = self.base.module
        return module

    @property
    def tile(self) -> int:
        """Width of the network's batches."""
        return int(self.base.tile)

    def counted_module(self) -> nn.Module:
        """The network for a foreign library, each call the mean of k."""
        module: nn.Module = self.base.counted_module()
        return _Averaged(module, self.k)

    @property
    def refusal(self) -> Oracle:
        """What the model refuses, in expectation."""
        return ExpectedOracle(self.base.refusal, self.k)

    def select(self, rows: Tensor) -> "ExpectedOracle":
        """The same for some of the samples."""
        return ExpectedOracle(self.base.select(rows), self.k)

    def eot(self, k: int) -> Oracle:
        """The expectation over k draws instead."""
        found: Oracle = self.base.eot(k)
        return found

    def outputs(self, x: Images) -> Outputs:
        """K forward passes, averaged."""
        return _mean([self.base.outputs(x) for _ in range(self.k)])

    def gradient(self, x: Images, loss: Loss) -> Gradient:
        """K forward and backward passes, averaged."""
        found = [self.base.gradient(x, loss) for _ in range(self.k)]
        outputs = _mean([g.outputs for g in found])
        return Gradient(outputs, rows.average([g.loss for g in found]), rows.average([g.grad for g in found]))


def _as(x: Tensor, outputs: Outputs) -> Outputs:
    """Outputs in the images' dtype: what a float64 model says is float64 only inside a loss."""
    members = None if outputs.members is None else outputs.members.to(x.dtype)
    return Outputs(outputs.logits.to(x.dtype), members)


def _mean(outputs: Sequence[Outputs]) -> Outputs:
    members = [o.members for o in outputs if o.members is not None]
    return Outputs(rows.average([o.logits for o in outputs]), rows.average(members) if members else None)
