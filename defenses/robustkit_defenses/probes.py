"""Layer probes: a linear classifier on each of some inner layers, which make an ensemble of one backbone.

Fort & Lakshminarayanan 2024, arXiv:2408.05446. There the probes stand at seven depths of a ResNet-152, and `crossmax`
joins them with the backbone's own logits. What that is worth stands in the card of `crossmax`: the probes of early
layers are the weakest members, and attacks on them carry over to all.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.numerics import rows
from robustkit_defenses.layers import flattened, layers_named, outputs_of

FORMAT = "robustkit/probes/1"


@dataclass(frozen=True, slots=True)
class Probes:
    """The members of a backbone: a probe on each of its `layers`, and its own logits. Alone, their mean decides.

    `weights` is a file of probes that were fitted on this backbone (`robustkit_defenses.fit_probes`); `layers` picks
    some of those in it, by default all. A name may leave out what stands in front: `layer1.2` for `network.layer1.2`.
    All members come from one pass. With `share_draw` false a randomised backbone makes a second one, with other noise,
    for its own logits, as the paper's notebook does. In front of `crossmax`:

        --defense probes:weights=./probes.safetensors --defense crossmax:by=kth
    """

    weights: str = ""
    layers: tuple[str, ...] = ()
    share_draw: bool = True

    def protect(self, model: nn.Module) -> nn.Module:
        """The backbone with its probes.

        Raises:
            UsageError: for no file of probes or one of another network, and for a layer that is not there.
        """
        layers_named(model, self.layers)
        if not self.weights:
            raise UsageError(
                "probes: weights is needed, a file of probes fitted on this model; robustkit_defenses.fit_probes fits "
                "them and robustkit_defenses.probes.save_probes writes one"
            )
        return load_probes(model, self.weights, self.layers, share_draw=self.share_draw).eval()


class Probe(nn.Module):
    """A layer's output, averaged over the cells of a `pool`×`pool` grid (0: as it is), flat, normed, and linear."""

    def __init__(self, features: int, classes: int, pool: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm1d(features)
        self.linear = nn.Linear(features, classes)

    def forward(self, output: Tensor) -> Logits:
        """Logits of the output (batch, …) of its layer.

        Raises:
            UsageError: for another size than it was fitted on.
        """
        values = flattened(output, self.pool)
        if values.shape[1] != self.norm.num_features:
            raise UsageError(
                f"probes: a probe takes {self.norm.num_features} values, and on these images its layer gives "
                f"{values.shape[1]}; use images of the size that it was fitted on, or fit it with pool="
            )
        logits: Tensor = self.linear(self.norm(values))
        return logits


class Probed(nn.Module):
    """A backbone, which stays as it is and in eval mode, and probes on its layers in the order of its pass."""

    def __init__(
        self, backbone: nn.Module, layers: Sequence[str], probes: Sequence[Probe], *, share_draw: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self.probes = nn.ModuleList(probes)
        self.share_draw = share_draw
        self.randomised = capabilities.randomised(backbone)

    def train(self, mode: bool = True) -> "Probed":
        """The probes alone are ever trained: a backbone in training mode would answer by the batch's statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Images) -> Logits:
        """The mean of the members' logits."""
        return self.forward_with_members(x)[0]

    def forward_with_members(self, x: Images) -> tuple[Logits, Tensor]:
        """That mean, and each member's logits (members, batch, classes), the backbone's last; of one pass."""
        again = None if self.share_draw else x.clone()  # the backbone may write into its input
        outputs, logits = outputs_of(self.backbone, self.layers, x)
        if again is not None:
            logits = self.backbone(again)
        z = torch.stack([*self._probed(outputs), logits])
        return rows.average(z.unbind()), z

    def first_members(self, x: Images, n: int) -> Tensor:
        """The logits of the first n members (members, batch, classes), by as much of a pass as these take."""
        if n > len(self.layers):
            return self.forward_with_members(x)[1][:n]
        return torch.stack(self._probed(outputs_of(self.backbone, self.layers[:n], x, whole=False)[0]))

    def _probed(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            probe(outputs[layer]) for layer, probe in zip(self.layers, self.probes, strict=True) if layer in outputs
        ]

    def members(self) -> Sequence[nn.Module]:
        """Each probe as a classifier of its own, and the backbone."""
        return [*(_Member(self, i).eval() for i in range(len(self.layers))), self.backbone]

    def reseed(self, seed: int) -> None:
        """Reseed the backbone, if it offers that."""
        capabilities.reseed(self.backbone, seed)


class _Member(nn.Module):
    """One probe behind the part of the backbone that leads to its layer."""

    def __init__(self, probed: Probed, number: int) -> None:
        super().__init__()
        self.backbone = probed.backbone
        self.layer = probed.layers[number]
        self.probe = probed.probes[number]
        self.randomised = probed.randomised

    def forward(self, x: Images) -> Logits:
        """The probe's logits."""
        outputs, _ = outputs_of(self.backbone, [self.layer], x, whole=False)
        logits: Tensor = self.probe(outputs[self.layer])
        return logits

    def reseed(self, seed: int) -> None:
        """Reseed the backbone, if it offers that."""
        capabilities.reseed(self.backbone, seed)


def save_probes(probed: Probed, file: str | os.PathLike[str]) -> None:
    """Write the probes, not the backbone, as safetensors; atomically."""
    path = Path(file)
    part = path.with_name(f".{path.name}.part")
    pools = [probe.pool for probe in probed.probes]
    known = {"format": FORMAT, "layers": probed.layers, "pools": pools, "backbone": _fingerprint(probed.backbone)}
    weights = {name: value.contiguous() for name, value in probed.probes.state_dict().items()}
    try:
        save_file(weights, part, metadata={"robustkit": json.dumps(known)})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_probes(
    backbone: nn.Module, file: str | os.PathLike[str], layers: Sequence[str] = (), *, share_draw: bool = True
) -> Probed:
    """The backbone with the probes of a file, or with those on some layers.

    Raises:
        UsageError: if it is no file of probes, of another backbone, or has none on a layer.
    """
    known, weights = _read(Path(file))
    if known["backbone"] != _fingerprint(backbone):
        raise UsageError(f"probes: those in {file} were fitted on a network of other weights; fit them on this one")
    held = list(layers_named(backbone, known["layers"]).values())
    wanted = layers_named(backbone, layers)
    if missing := [name for name, module in wanted.items() if module not in held]:
        raise UsageError(f"probes: {file} has none on {missing[0]}; it has them on {', '.join(known['layers'])}")
    chosen = [number for number, module in enumerate(held) if not wanted or module in wanted.values()]
    probes = []
    for number in chosen:
        own = {name.partition(".")[2]: value for name, value in weights.items() if name.startswith(f"{number}.")}
        probe = Probe(own["linear.weight"].shape[1], own["linear.weight"].shape[0], known["pools"][number])
        probe.load_state_dict(own)
        probe.requires_grad_(False)
        probes.append(probe.to(next((p for p in backbone.parameters()), torch.empty(0)).device))
    return Probed(backbone, [known["layers"][number] for number in chosen], probes, share_draw=share_draw).eval()


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its probes, and their weights."""
    if not file.is_file():
        raise UsageError(f"probes: there is no file {file}")
    try:
        with safe_open(file, "pt") as opened:
            known = json.loads((opened.metadata() or {}).get("robustkit", "{}"))
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, ValueError) as error:
        raise UsageError(f"probes: {file} is no file of probes: {error}") from error
    if known.get("format") != FORMAT:
        raise UsageError(f"probes: {file} is no file of probes, as save_probes writes it")
    return known, weights


def _fingerprint(backbone: nn.Module) -> str:
    """sha256 of the backbone's weights in their order, whatever stands in front of it."""
    found = hashlib.sha256()
    for value in backbone.state_dict().values():
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
