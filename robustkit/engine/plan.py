"""From what the caller named to what will run: attacks, samples, targets, and the job's identity."""

import hashlib
import importlib.metadata
import operator
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import robustkit
from robustkit import plugins, spec
from robustkit.api import Attack, Dataset, Expected, ForeignAttack, Images, Labels, ModelFacts, Suite, ThreatModel
from robustkit.datasets.pair import check_images
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.numerics.streams import SampleDraws, key_of

CHUNK = 64  # images looked at together: few, since they may be large
DECIDING = (
    "api.py",
    "numerics/*.py",
    "models/oracle.py",
    "models/examination.py",
    "models/gradients.py",
    "models/wrapping.py",
    "records/votes.py",
    "engine/*.py",
)  # the harness's part in a number


class Named(NamedTuple):
    """An attack and its name: the spec that makes it again."""

    name: str
    attack: Attack


def resolve_attacks(attack: Any, threat: ThreatModel, facts: ModelFacts) -> list[Named]:
    """The attacks of a spec, an Attack, a Suite, or a list of these, in order.

    Raises:
        UsageError: for an unknown name or option, a norm an attack does not work in, or one attack named twice.
    """
    named: list[Named] = []
    for item in _settings(attack):
        members = item.attacks(threat, facts) if isinstance(item, Suite) else [item]
        for member in members:
            name = name_of(member)
            if threat.norm not in member.norms:
                raise UsageError(
                    f"{name} does not work in {threat.norm}; it works in {', '.join(sorted(member.norms))}"
                )
            if any(name == other.name for other in named):
                raise UsageError(f"the attack {name} is named twice")
            named.append(Named(name, member))
    if not named:
        raise UsageError("no attack was named; try autoattack")
    return named


def check_attack(attack: Any) -> None:
    """Refuse what names no attack, before a model is loaded for it.

    Raises:
        UsageError: for an unknown name or option, or something that is no attack.
    """
    if not list(_settings(attack)):
        raise UsageError("no attack was named; try autoattack")


def never_alone(attack: Any) -> str:
    """Why the attacks that were named establish no robust accuracy among them; empty if any of them can."""
    reasons = [getattr(item, "never_alone", "") for item in _settings(attack)]
    return str(reasons[0]) if all(reasons) else ""


def attack_text(attack: Any) -> str:
    """What the caller named, as text."""
    return attack if isinstance(attack, str) else "+".join(f"({name_of(item)})" for item in _settings(attack))


def _settings(attack: Any) -> Iterator[Any]:
    """The settings objects behind whatever the caller named."""
    if isinstance(attack, str):
        for text in plugins.specs("attacks", attack):
            yield make_attack(text)
    elif isinstance(attack, type):
        raise UsageError(f"{attack.__name__} is a class; make one: {attack.__name__}()")
    elif isinstance(attack, Sequence):
        for item in attack:
            yield from _settings(item)
    elif isinstance(attack, Attack | Suite):
        yield attack
    else:
        raise UsageError(f"an attack is a spec, an Attack, a Suite or a list, not {type(attack).__name__}")


def make_attack(text: str) -> Any:
    """The Attack or Suite of one spec; `eot=K` works on any gradient attack."""
    parsed = spec.parse(text)
    options = dict(parsed.options)
    if parsed.source == "python":
        from robustkit.models.sources.python import call

        return call(parsed.name, options, "attack")
    eot = spec.typed(options.pop("eot"), int, f"{parsed.name}: eot") if "eot" in options else 1
    if parsed.source:
        made = plugins.load("attack_sources", parsed.source)().make(parsed.name, options)
    else:
        made = spec.build(plugins.load("attacks", parsed.name), options, parsed.name)
    if eot == 1:
        return made
    if not isinstance(made, Attack) or made.access != "white-box" or eot < 1:
        raise UsageError(f"{parsed.name}: eot must be at least 1, and on a gradient attack")
    return Expected(made, eot)


def name_of(item: Any) -> str:
    """The spec that makes an attack again: its table name and the settings that are not default."""
    if isinstance(item, Expected):
        inner = spec.parse(name_of(item.attack))
        return str(spec.Spec(inner.source, inner.name, {**inner.options, "eot": str(item.k)}))
    if isinstance(item, ForeignAttack):
        return item.spec
    options = spec.settings(item) if hasattr(item, "__dataclass_fields__") else {}
    return str(spec.Spec("", plugins.name_of("attacks", type(item)), options))


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a run in their order, known by their hashes; images are fetched a shard at a time."""

    dataset: Dataset
    indices: tuple[int, ...]
    labels: Labels
    hashes: tuple[str, ...]
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """Hash of all images and labels."""
        return spec.digest([list(self.hashes), self.labels.tolist()])

    def batch(self, start: int, stop: int) -> tuple[Images, Labels]:
        """The images and labels from position `start` to `stop`.

        Raises:
            UsageError: if the dataset gives other images than when their hashes were taken.
        """
        x, y = self.dataset.batch(self.indices[start:stop])
        for index, image, known in zip(self.indices[start:stop], x, self.hashes[start:stop], strict=True):
            if image_sha256(image) != known:
                raise UsageError(
                    f"{self.dataset.name} gave another image for sample {index} the second time; an evaluation needs "
                    "fixed images, without random augmentation"
                )
        return x, y


def _as_indices(indices: Any) -> tuple[int, ...]:
    if isinstance(indices, str):
        return spec.parse_indices(indices)
    try:
        return tuple(operator.index(i) for i in indices)
    except TypeError:
        raise UsageError(f"indices must be whole numbers or text such as '0-199,400', not {indices!r:.60}") from None


def image_sha256(image: Tensor) -> str:
    """sha256 of an image's float32 bytes."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def choose_indices(dataset: Dataset, n: int | None, indices: Any) -> tuple[int, ...]:
    """Which samples: all, the first n, or those at `indices`.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    size = len(dataset)
    if n is not None and indices is not None:
        raise UsageError("give n or indices, not both")
    chosen = None if indices is None else _as_indices(indices)
    if n is not None:
        if not 1 <= n <= size:
            raise UsageError(f"n = {n}, but {dataset.name} has {size} samples; choose 1 to {size}")
        chosen = tuple(range(n))
    if chosen is None:
        chosen = tuple(range(size))
    if not chosen or min(chosen) < 0 or max(chosen) >= size or len(set(chosen)) != len(chosen):
        raise UsageError(f"indices must be different numbers from 0 to {size - 1}; {dataset.name} has {size} samples")
    return chosen


def choose_samples(dataset: Dataset, n: int | None, indices: Any, skip_label: int | None) -> Samples:
    """The samples of a run, see `choose_indices`; without those that already have the target.

    Raises:
        UsageError: for a choice that the dataset cannot meet.
    """
    chosen = choose_indices(dataset, n, indices)
    labels, hashes = [], []
    for start in range(0, len(chosen), CHUNK):
        x, y = check_images(*dataset.batch(chosen[start : start + CHUNK]), dataset.name, dataset.classes or None)
        labels.append(y)
        hashes += [image_sha256(image) for image in x]
    y = torch.cat(labels)
    keep = list(range(len(chosen))) if skip_label is None else (y != skip_label).nonzero()[:, 0].tolist()
    if not keep:
        raise UsageError(f"every sample already has the target class {skip_label}")
    return Samples(
        dataset, tuple(chosen[i] for i in keep), y[keep], tuple(hashes[i] for i in keep), len(chosen) - len(keep)
    )


def parse_target(target: Any, classes: int | None) -> str:
    """The target as text: empty, "random", "least-likely" or a class.

    Raises:
        UsageError: for anything else.
    """
    if target is None or target == "":
        return ""
    text = str(target)
    if text in ("random", "least-likely"):
        return text
    if not text.isdigit() or (classes is not None and int(text) >= classes):
        most = f" from 0 to {classes - 1}" if classes else ""
        raise UsageError(f"target {text!r} must be a class{most}, least-likely or random")
    return text


def targets_for(target: str, y: Labels, logits: Tensor, indices: Tensor, seed: int) -> Labels | None:
    """The wanted class of each sample, or None in an untargeted run."""
    if not target:
        return None
    classes = logits.shape[1]
    if target == "least-likely":
        return logits.scatter(1, y[:, None], torch.inf).argmin(1)
    if target == "random":
        draw = SampleDraws(key_of(seed, "random target"), indices).uniform((1,))[:, 0]
        other = (draw * (classes - 1)).long().clamp_max(classes - 2)
        return other + (other >= y).long()
    return torch.full_like(y, int(target))


def source_hashes(attacks: Sequence[Named], defenses: Sequence[defended.Named] = ()) -> dict[str, str]:
    """sha256 of the code behind each attack and defense (all of its package) and of what judges; empty if no file."""
    found = {"robustkit": package_sha256("robustkit", DECIDING)}
    for name, attack in attacks:
        inner = attack.attack if isinstance(attack, Expected) else attack
        found[name] = package_sha256(type(inner).__module__.partition(".")[0])
        if isinstance(inner, ForeignAttack):
            found[inner.library] = package_sha256(inner.library)
    for name, defense in defenses:
        found[f"defense {name}"] = package_sha256(type(defense).__module__.partition(".")[0])
    return found


@cache
def package_sha256(package: str, only: tuple[str, ...] = ()) -> str:
    """sha256 of a package's Python files (or of `only` some) by name and content; of one file, if it is a module."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if not file or not Path(file).is_file():
        return ""
    root = Path(file).parent
    files = (
        sorted(p for pattern in only or ("**/*.py",) for p in root.glob(pattern))
        if Path(file).name == "__init__.py"
        else [Path(file)]
    )
    parts = [f"{path.relative_to(root)}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions that decide a number."""
    return {
        "robustkit": robustkit.__version__,
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }


def environment(device: torch.device) -> Mapping[str, Any]:
    """Where the run was made; decides nothing by itself."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
        "threads": torch.get_num_threads(),
    }
