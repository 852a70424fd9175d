"""From what the caller named to what will run: attacks, targets, and the job's identity."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import robustkit
from robustkit import plugins, spec
from robustkit.api import Attack, Expected, ForeignAttack, Labels, ModelFacts, Suite, ThreatModel
from robustkit.engine import contract
from robustkit.engine.identity import source_hashes
from robustkit.engine.request import Request
from robustkit.errors import UsageError
from robustkit.models.opening import Opened
from robustkit.numerics import devices
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.run import CAUTION, INSUFFICIENT

# Options that say how much is spent, by the names that attacks of ours and of other libraries give them.
BUDGETS = frozenset({
    "budget", "eot", "iterations", "max_iterations", "n_iter", "n_queries", "n_restarts", "pairs", "queries",
    "restarts", "searches", "steps", "targets",
})  # fmt: skip


class Named(NamedTuple):
    """An attack, its name, and its place, which its random numbers are keyed by.

    The name is the spec that makes it again. The place is the name without what only says how much is spent, so that a
    larger budget begins with a smaller one's numbers; where a list has it more than once, also which of them it is.
    """

    name: str
    attack: Attack
    place: str = ""


class Plan(NamedTuple):
    """What a measurement will run, what identifies it, and what its record says of the choice of attacks."""

    attacks: Sequence[Named]
    job: spec.Job
    flags: Sequence[Mapping[str, Any]]


def plan(opened: Opened, request: Request) -> Plan:
    """Name the attacks for this model, and all that decides the numbers.

    Raises:
        UsageError: for an attack or a target that this model cannot have, or a run that cannot be carried over.
    """
    subject, samples = opened.subject, opened.samples
    attacks = resolve_attacks(request.attack, request.threat, subject.facts)
    parse_target(request.target, subject.facts.classes)
    job = spec.Job(
        model=opened.name,
        model_sha256=subject.weights_sha256,
        probe_sha256=subject.probe_sha256,
        data=request.data,
        data_sha256=samples.sha256,
        indices=samples.indices,
        attack=attack_text(request.attack),
        attacks=tuple(named.name for named in attacks),
        attack_sources=source_hashes(attacks, opened.defenses),
        norm=request.threat.norm,
        eps=request.threat.eps,
        target=request.target,
        seed=request.seed,
        outputs=opened.outputs,
        quantize=request.quantize,
        carried=str(request.carry.job["id"]) if request.carry else "",
        device=opened.device.type,
        threads=torch.get_num_threads(),
        tile=subject.reference.tile,
        precision=str(subject.reference.dtype).removeprefix("torch."),
        versions=versions(),
        draws=request.draws if subject.facts.randomised else 0,
        defense=opened.defense,
        noisy_sha256=subject.noisy_sha256,
        gradient_signs=subject.gradient_signs,
        certify=request.certify,
    )
    _check_carry(request, job)
    flags = [{"kind": INSUFFICIENT, "message": why}] if (why := never_alone(request.attack)) else []
    flags += [{"kind": CAUTION, "message": text} for text in cautions(request.attack)]
    return Plan(attacks, job, flags)


_CARRIED_AS_IS = (
    "norm", "defense", "model_sha256", "probe_sha256", "data_sha256", "indices", "attacks", "target", "seed", "outputs",
    "draws", "noisy_sha256",
)  # fmt: skip


def _check_carry(request: Request, job: spec.Job) -> None:
    """Refuse to carry over what another measurement broke.

    Raises:
        UsageError: unless it is this one at a smaller eps.
    """
    if request.carry is None:
        return
    known, wanted = request.carry.job, job.to_json()
    if other := [key for key in _CARRIED_AS_IS if (known.get(key) or "") != (wanted[key] or "")]:
        raise UsageError(f"only this evaluation at a smaller eps can be carried over; {other[0]} differs")
    if known["eps"] >= job.eps:
        raise UsageError(f"only a run at an eps below {job.eps:g} can be carried over, not {known['eps']:g}")
    if job.quantize:
        raise UsageError("a sweep over eps does not combine with quantize; run the eps one by one")


def resolve_attacks(attack: Any, threat: ThreatModel, facts: ModelFacts) -> list[Named]:
    """The attacks of a spec, an Attack, a Suite, or a list of these, in order.

    Raises:
        UsageError: for an unknown name or option, a norm an attack does not work in, or one attack named twice.
    """
    named: list[Named] = []
    places: Counter[str] = Counter()
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
            place = without_budget(name)
            places[place] += 1
            named.append(Named(name, member, f"{place} #{places[place]}"))
    if not named:
        raise UsageError("no attack was named; try autoattack")
    return named


def without_budget(name: str) -> str:
    """An attack's name without the options that only say how much is spent: `apgd:loss=margin` of so many steps."""
    parsed = spec.parse(name)
    return str(replace(parsed, options={key: text for key, text in parsed.options.items() if key not in BUDGETS}))


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


def cautions(attack: Any) -> list[str]:
    """What must be said of a number that only suites have made which are not what a reader may take them for."""
    found = [str(getattr(item, "caution", "")) for item in _settings(attack)]
    return list(dict.fromkeys(found)) if all(found) else []


def looks_inside(attack: Any) -> bool:
    """Whether a suite among these attacks wants to be told of stand-ins that the harness makes."""
    return any(getattr(item, "looks_inside", False) is True for item in _settings(attack))


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
    elif isinstance(attack, Attack | Suite) or is_dataclass(attack):
        contract.check(attack, type(attack).__name__)
        if is_dataclass(attack):
            spec.check_types(attack, type(attack).__name__)
        yield attack
    else:
        raise UsageError(f"an attack is a spec, an Attack, a Suite or a list, not {type(attack).__name__}")


def make_attack(text: str) -> Any:
    """The Attack or Suite of one spec; `eot=K` works on any gradient attack."""
    parsed = spec.parse(plugins.spelled("attacks", text))
    options = dict(parsed.options)
    if parsed.source == "python":
        from robustkit.models.sources.python import held_or_made

        return contract.check(held_or_made(parsed.name, options, "attack", (Attack, Suite), "case"), text)
    eot = spec.typed(options.pop("eot"), int, f"{parsed.name}: eot") if "eot" in options else 1
    if parsed.source:
        made = plugins.source("attack_sources", parsed.source).make(parsed.name, options)
    else:
        factory = plugins.load("attacks", parsed.name)
        if isinstance(factory, type) and not is_dataclass(factory):
            contract.check(factory, f"{parsed.name} ({factory.__name__})")
        made = spec.build(factory, options, parsed.name)
    contract.check(made, parsed.name)
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
    if not text.isdecimal() or (classes is not None and int(text) >= classes):
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
    return {
        "device": devices.name(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
        "threads": torch.get_num_threads(),
    }
