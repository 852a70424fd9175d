"""The model under test: made ready, checked before anything is attacked, and put back as it was."""

import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.api import Images, Labels, Logits, ModelFacts
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.models.acceptance import first_call, resize_hint, sizes
from robustkit.models.gradients import gradient_faults, probed_gradient
from robustkit.models.oracle import Network, Noise
from robustkit.models.outputs import Outputs, check_outputs
from robustkit.models.state import State, changed, modes, put_in_eval_mode, quantised, restore, sha256, snapshot
from robustkit.models.turns import one_at_a_time
from robustkit.numerics import devices
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.run import INSUFFICIENT

PROBES = 8
_SIGNS = 16  # of each probe image's gradient
TINY_IMAGE, SMALL_IMAGE = 1 * 16 * 16, 3 * 64 * 64


class CallableModule(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function's outputs."""
        return self.function(x)


@dataclass(frozen=True)
class Subject:
    """A model ready to be attacked, and what was found out about it.

    `volatile` names what a plain call of the model changes in its state, which no logit depends on: it is no part of
    what the model is. Of a `stateful` one the logits move with it. `training` are the parts that stay in training mode,
    or put themselves into it when called: dropout that is meant to be on, say.
    """

    reference: Network
    facts: ModelFacts
    weights_sha256: str
    probes: Images
    probe_logits: Logits
    flags: tuple[Mapping[str, Any], ...]
    volatile: frozenset[str] = frozenset()
    stateful: bool = False
    training: frozenset[nn.Module] = frozenset()

    @property
    def probe_sha256(self) -> str:
        """Hash of the logits on the fixed probe images; empty for a randomised model, which has no fixed ones."""
        return "" if self.facts.randomised else _sha256(self.probe_logits)

    @cached_property
    def noisy_sha256(self) -> str:
        """Of a randomised model, the hash of the logits on the probe images under fixed noise; else empty.

        Settings of its noise are in no weight: they show here. Empty too where seeding does not fix the noise.
        """
        return "" if self.noisy_logits is None else _sha256(self.noisy_logits)

    @cached_property
    def noisy_logits(self) -> Logits | None:
        """Of a randomised model, the logits on the probe images under fixed noise, if seeding fixes it."""
        if not self.facts.randomised:
            return None
        one, two = (self.reference.seeded("probe").logits(self.probes) for _ in range(2))
        return one if torch.equal(one, two) else None

    @cached_property
    def gradient_signs(self) -> str:
        """Where the gradients on the probe images point: 16 signs of each, in hex; empty if they cannot be had again.

        An attack follows them, and neither the weights nor the logits show a backward pass that was changed. Signs, for
        the last bits of a gradient need not come out the same.
        """
        repeatable = not self.facts.randomised or self.noisy_sha256
        if not repeatable or not self.facts.differentiable:
            return ""
        network = self.reference.seeded("probe") if self.facts.randomised else self.reference
        probes = self.probes[: network.tile]
        grad = probed_gradient(network, probes).grad
        if grad is None:
            return ""
        draws = SampleDraws(key_of("robustkit gradient signs"), torch.arange(_SIGNS, device=grad.device))
        towards = devices.wide(draws.normal(probes.shape[1:]).flatten(1))
        seen = devices.wide(grad.flatten(1)) @ towards.T
        return np.packbits((seen > 0).cpu().numpy()).tobytes().hex()

    def untouched(self, weights: State) -> bool:
        """Whether the model is still in its own mode, has these weights, and answers as it did at the start.

        What its own calls change is put back first. A randomised model is asked under fixed noise; where seeding does
        not fix that, its answers tell nothing.
        """
        module = self.reference.module
        if any(training and part not in self.training for part, training in modes(module)):
            return False
        if self.volatile:
            restore(module, {name: value for name, value in weights.items() if name in self.volatile})
        if changed(weights, module.state_dict()):
            return False
        if not self.facts.randomised:
            return _alike(self.reference.logits(self.probes), self.probe_logits)
        known = self.noisy_logits
        return known is None or _alike(self.reference.seeded("probe").logits(self.probes), known)


def as_module(model: Any) -> nn.Module:
    """The module of an nn.Module or a callable.

    Raises:
        UsageError: if it is neither.
    """
    if isinstance(model, nn.Module):
        return model
    if callable(model):
        return CallableModule(model)
    raise UsageError(f"a model is a spec, an nn.Module or a callable, not {type(model).__name__}")


@contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Evaluation settings for the time of a run, everything of the caller's restored after it, whatever happens.

    Every sub-module in eval mode, no parameter asking for gradients, TF32, autocast and autotuning off, and the global
    generators of torch, numpy and random as they were. One thread at a time: another waits for its turn.
    """
    with ExitStack() as stack:  # each step back is taken even if another fails
        stack.enter_context(one_at_a_time())
        for parameter in module.parameters():
            stack.callback(_hold, parameter, parameter.requires_grad, parameter.grad)
        for part, training in modes(module):
            stack.callback(setattr, part, "training", training)
        stack.callback(restore, module, snapshot(module))
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(random.setstate, random.getstate())
        cudnn = torch.backends.cudnn
        for switch, wanted in (("allow_tf32", False), ("benchmark", False), ("deterministic", True)):
            stack.callback(setattr, cudnn, switch, getattr(cudnn, switch))
            setattr(cudnn, switch, wanted)
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        if (tf32 := torch.backends.mkldnn.allow_tf32) is not None:  # of an XPU; None where torch is built without
            stack.callback(setattr, torch.backends.mkldnn, "allow_tf32", tf32)
            setattr(torch.backends.mkldnn, "allow_tf32", False)  # noqa: B010 - whose type torch does not declare
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        for device in {parameter.device for parameter in module.parameters()}:
            stack.callback(devices.generator(device))
        stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", *devices.ACCELERATORS):
            stack.enter_context(torch.autocast(kind, enabled=False))
        put_in_eval_mode(module)
        for parameter in module.parameters():
            _hold(parameter, False, None)
        yield


def _hold(parameter: nn.Parameter, requires_grad: bool, grad: Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = grad


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: some kernels are not deterministic, and what cancels errs by what it was made of."""
    if not devices.is_host(b.device):
        room = 1e-6 + 1e-5 * b.nan_to_num().abs().amax(-1, keepdim=True)
        return bool((((a - b).abs() <= room) | (a == b) | (a.isnan() & b.isnan())).all())
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def examine(
    module: nn.Module,
    x: Images,
    y: Labels,
    *,
    classes: int | None,
    outputs: Outputs,
    tile: int | None,
    seed: int,
    device: torch.device,
    input_shape: Sequence[int] = (),
) -> Subject:
    """Check a model on the first images of the data, and find out what an attack must know.

    Args:
        module: on its device, in eval mode.
        x: the first images.
        y: their labels.
        classes: what the dataset says, or None.
        outputs: "logits" or "probs".
        tile: width of a tile, or None for `tile_width`'s; 1 where a model must see each image alone.
        seed: the run's seed, which also seeds a randomised model.
        device: where the images go.
        input_shape: (channels, height, width) that the model's card names, or empty.

    Raises:
        UsageError: if it does not take the images, or its outputs are no N×K finite logits that fit the labels.
    """
    before = snapshot(module)
    # Dynamic quantisation scales by the range of the whole batch: an image has an answer of its own alone.
    width = tile or (1 if quantised(module, "dynamic") else tile_width(x[0].numel(), device))
    x, y = x[:width].to(device), y[:width].to(device)
    network, raw = first_call(Network(module, width, device, probabilities=outputs == "probs"), x, input_shape)
    draws = SampleDraws(key_of("robustkit probe images"), torch.arange(PROBES, device=device))
    probes = draws.uniform(x.shape[1:])

    k = check_outputs(raw, y, classes, outputs)
    randomised = capabilities.randomised(module) or differs(network, [x, probes])
    if randomised:
        network = replace(network, noise=Noise(seed, "examine"))
    else:
        _check_rows_are_independent(network, x, probes)
    refuses = capabilities.rejects(module, network.tiles(x)[0]) is not None
    network = replace(network, refuses=refuses)
    gradient = probed_gradient(network, x[:PROBES])
    zero, misleading = (0.0, 0.0) if gradient.flow == "none" else gradient_faults(network, x)
    members = capabilities.members(module)
    flows = [probed_gradient(replace(network, module=member), x[:PROBES]).flow for member in members]
    facts = ModelFacts(
        classes=k,
        randomised=randomised,
        differentiable=gradient.flow != "none",
        members=len(members),
        surrogates=tuple(capabilities.surrogates(module)),
        zero_gradient=zero,
        misleading_gradient=misleading,
        blind_members=tuple(number for number, flow in enumerate(flows) if flow == "none"),
        no_gradient=gradient.why,
        rejects=refuses,
    )
    logits = network.logits(probes)
    kept_training = frozenset(part for part, training in modes(module) if training)
    volatile = changed(before, module.state_dict())
    stateful = bool(volatile) and _moves_with_its_state(network, before, x)
    return Subject(
        network, facts, sha256(module, volatile), probes, logits,
        (
            *_flags(facts, gradient.flow), *_mode_flags(module, kept_training), *_state_flags(volatile, stateful),
            *_size_flags(x.shape[1:], input_shape),
        ),
        volatile, stateful, kept_training,
    )  # fmt: skip


def _moves_with_its_state(network: Network, before: State, x: Images) -> bool:
    """Whether the logits are others now than they were when the state was as `before`, under the same noise."""
    module = network.module
    now = snapshot(module)

    def logits(state: State) -> Logits:
        restore(module, state)
        return network.seeded("state").logits(x)

    then, again, later = (logits(state) for state in (before, before, now))
    restore(module, now)
    return _alike(then, again) and not _alike(then, later)


def tile_width(values: int, device: torch.device) -> int:
    """The width of a tile for images of so many values: wide where a call costs more than what is computed in it."""
    if values <= TINY_IMAGE:
        return 128
    if values > SMALL_IMAGE:
        return 16
    return 32 if device.type == "cpu" else 64


def _size_flags(shape: Sequence[int], input_shape: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    if input_shape and tuple(shape[1:]) != tuple(input_shape[1:]):
        yield {
            "kind": "image-size",
            "message": f"the model takes these images of {sizes(shape)}, but {resize_hint(shape, input_shape)}",
        }


def differs(network: Network, batches: Sequence[Tensor]) -> bool:
    """Whether some calls of the network on the same images differ."""
    for images in batches:
        first = network.logits(images)
        for _ in range(4):
            if not _alike(network.logits(images), first):
                return True
    return False


def _check_rows_are_independent(network: Network, x: Images, probes: Tensor) -> None:
    """Refuse a model whose answer for an image depends on the other images of its batch.

    Raises:
        UsageError: if it does.
    """
    alone, among = network.logits(x[:1]), network.logits(x)[:1]
    beside = network.logits(torch.cat([x[:1], probes[: network.tile - 1]]))[:1]
    scale = 1e-3 * float(among.abs().amax()) + 1e-6
    if max(float((alone - among).abs().amax()), float((alone - beside).abs().amax())) > scale:
        raise UsageError(
            "the model's outputs for an image depend on the other images of its batch; is it in eval mode, and does "
            "its BatchNorm track running statistics? tile=1 shows it one image at a time"
        )


def _flags(facts: ModelFacts, gradient: str) -> Iterator[Mapping[str, Any]]:
    if facts.randomised:
        yield {
            "kind": "randomised",
            "message": "the model gives different outputs for the same image: fresh draws vote on each sample, and an "
            "attack that does not average over draws (adaptive, or eot=20) may look weak",
        }
    if gradient == "none":
        yield {
            "kind": "no-gradient",
            "message": f"no gradient flows through the model ({facts.no_gradient}): gradient attacks cannot run on it; "
            "query attacks can",
        }
    if gradient == "some":
        yield {
            "kind": "zero-gradient",
            "message": "the gradient is exactly zero for some of the first images: gradient attacks may look weak",
        }


def _mode_flags(module: nn.Module, training: Collection[nn.Module]) -> Iterator[Mapping[str, Any]]:
    if training:
        found = [
            f"{name or 'itself'}: {type(part).__name__}" for name, part in module.named_modules() if part in training
        ]
        yield {
            "kind": "training-mode",
            "message": f"parts of the model stay in training mode after eval() ({', '.join(found[:3])}"
            f"{' …' * (len(found) > 3)}): the figures are of the model in that mode",
        }


def _state_flags(volatile: Collection[str], stateful: bool) -> Iterator[Mapping[str, Any]]:
    names = ", ".join(sorted(volatile)[:3]) + " …" * (len(volatile) > 3)
    if stateful:
        yield {
            "kind": INSUFFICIENT,
            "message": f"calling the model changes its own state ({names}), and its answers with it: no two calls "
            "agree, so no robust accuracy is established; keep that state fixed in eval mode",
        }
    elif volatile:
        yield {
            "kind": "changing-buffers",
            "message": f"calling the model changes its own state ({names}), on which no answer depends: that is left "
            "out where the model is compared before and after an attack",
        }


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
