"""From what the caller named to what a transfer run needs: models by name, surrogate sets, attacks, identities."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit import plugins, spec
from robustkit.api import Attack, Dataset, Images, Labels, ModelFacts, Suite, ThreatModel
from robustkit.datasets.choice import Samples
from robustkit.engine.identity import harness_sha256, source_hashes
from robustkit.engine.plan import Named, make_attack, resolve_attacks, versions
from robustkit.errors import UsageError
from robustkit.models import sources
from robustkit.models.ensembles import Ensemble
from robustkit.models.examination import Subject, as_module, examine
from robustkit.models.opening import choose_device, model_name
from robustkit.models.sources.evaluating import evaluating

Model = str | nn.Module | Callable[[Tensor], Tensor]
Models = Model | Sequence[Model] | Mapping[str, Model]
_CODE = ("robustkit.transfers.*", "robustkit.models.ensembles", "robustkit.models.sources.ensemble")


@dataclass(frozen=True, slots=True)
class Known:
    """A model, made ready and examined."""

    name: str
    spec: str
    module: nn.Module
    subject: Subject

    def to_json(self) -> dict[str, Any]:
        """What identifies it; kept under `models` of a record's job."""
        return {
            "spec": self.spec,
            "weights_sha256": self.subject.weights_sha256,
            "probe_sha256": self.subject.probe_sha256,
            "noisy_sha256": self.subject.noisy_sha256,
            "gradient_signs": self.subject.gradient_signs,
            "precision": str(self.subject.reference.dtype).removeprefix("torch."),
            "classes": self.subject.facts.classes,
            "randomised": self.subject.facts.randomised,
        }

    @property
    def repeats(self) -> bool:
        """Whether its answers can be had again: not of noise that seeding does not fix; nothing shows its settings."""
        return bool(self.subject.probe_sha256 or self.subject.noisy_sha256)


@dataclass(frozen=True, slots=True)
class SurrogateSet:
    """Some surrogates as the one model that an attack is given."""

    name: str
    members: tuple[str, ...]
    subject: Subject
    identity: Sequence[Mapping[str, Any]]
    repeats: bool


class Labelled(NamedTuple):
    """An attack, the spec that makes it again, and what the caller calls it."""

    label: str
    name: str
    attack: Attack


def name_models(models: Models, role: str) -> dict[str, Model]:
    """The models by name: a mapping's keys, a spec's text, or what a module or callable is called.

    Raises:
        UsageError: if there is none, or two have one name.
    """
    if isinstance(models, Mapping):
        named = list(models.items())
    elif isinstance(models, str | nn.Module) or callable(models):
        named = [(_called(models), models)]
    else:
        named = [(_called(model), model) for model in models]
    if not named:
        raise UsageError(f"no {role} was named; give at least one, such as digits-cnn")
    found: dict[str, Model] = {}
    for name, model in named:
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"a {role}'s name must be text that is not empty, not {name!r}")
        if name in found:
            raise UsageError(f"the {role} {name!r} is named twice; name each once, or give names: {{'a': …, 'b': …}}")
        found[name] = model
    return found


def _called(model: Any) -> str:
    return model if isinstance(model, str) else model_name(as_module(model))


def check_same(surrogates: Mapping[str, Model], victims: Mapping[str, Model]) -> dict[str, Model]:
    """All models by name, the victims first; one that is both is one.

    Raises:
        UsageError: if a surrogate and a victim share a name and are not the same.
    """
    for name in surrogates.keys() & victims.keys():
        if surrogates[name] is not victims[name] and surrogates[name] != victims[name]:
            raise UsageError(f"a surrogate and another model among the victims are both called {name!r}; rename one")
    return {**victims, **surrogates}


def parse_sets(sets: Mapping[str, Sequence[str]] | None, surrogates: Mapping[str, Model]) -> dict[str, tuple[str, ...]]:
    """The surrogate sets by name; without `sets`, all surrogates are one.

    Raises:
        UsageError: for an empty set, a name that no surrogate has, a surrogate twice in a set, or in no set.
    """
    if sets is None:
        return {"+".join(surrogates): tuple(surrogates)}
    found = {}
    for name, members in sets.items():
        for member in members:
            if member not in surrogates:
                raise UsageError(f"surrogate set {name!r}: " + spec.suggest(member, surrogates, "surrogate"))
        if not members or len(set(members)) != len(members):
            raise UsageError(f"surrogate set {name!r} must name at least one surrogate, and none twice")
        found[name] = tuple(members)
    unused = sorted(set(surrogates) - {member for members in found.values() for member in members})
    if unused or not found:
        raise UsageError(f"the surrogate {unused[0]!r} is in no set" if unused else "no surrogate set was named")
    return found


def parse_attacks(attacks: Any, threat: ThreatModel) -> list[Labelled]:
    """The attacks of a spec, an Attack, a list of these, or a mapping from labels; a spec is labelled with its text.

    Raises:
        UsageError: for an unknown name or option, a norm that an attack does not work in, an attack or a label named
            twice, a suite, or an attack that seeks the nearest adversarial.
    """
    listed = [attacks] if isinstance(attacks, str) or not isinstance(attacks, Sequence | Mapping) else attacks
    given = list(listed.items()) if isinstance(listed, Mapping) else [pair for item in listed for pair in _texts(item)]
    if not given:
        raise UsageError("no attack was named; try pgd or mi-cwa")
    settings = [make_attack(item) if isinstance(item, str) else item for _, item in given]
    for item in settings:
        if isinstance(item, Suite) and not isinstance(item, Attack):
            raise UsageError(f"{type(item).__name__} is a suite, which goes on where an attack failed; name one attack")
    named = resolve_attacks(settings, threat, ModelFacts(2, False, True, 0, ()))
    found = [Labelled(label or one.name, one.name, one.attack) for (label, _), one in zip(given, named, strict=True)]
    for place, (label, name, attack) in enumerate(found):
        if label in [other.label for other in found[:place]]:
            raise UsageError(f"two attacks are labelled {label!r}")
        if attack.goal == "minimal":
            raise UsageError(
                f"{name} seeks the nearest adversarial of the surrogates, which hardly transfers and may leave the "
                "ball; use an attack that spends the whole eps, such as pgd"
            )
    return found


def _texts(item: Any) -> list[tuple[str, Any]]:
    """The attacks of one item of a list with their labels."""
    return [(text, text) for text in plugins.specs("attacks", item)] if isinstance(item, str) else [("", item)]


def load(
    models: Mapping[str, Model], data: Dataset, norm: str, device: str, *, trust: bool
) -> tuple[dict[str, nn.Module], dict[str, tuple[int, ...]], torch.device]:
    """The modules by name, all on one device, and the image shapes that their cards name.

    Raises:
        UsageError: for a model that cannot be loaded, or models on different devices.
    """
    modules, shapes = {}, {}
    for name, model in models.items():
        with _about(name), evaluating(data.name, norm):
            module, card = (
                sources.load_model(model, trust=trust) if isinstance(model, str) else (as_module(model), None)
            )
        modules[name], shapes[name] = module, card.input_shape if card else ()
    given = [name for name, model in models.items() if not isinstance(model, str)]
    placed = [name for name in given if [*modules[name].parameters(), *modules[name].buffers()]]
    homes = {name: choose_device(device, modules[name], named=False) for name in placed}
    where = homes[placed[0]] if placed else choose_device(device, nn.Module(), named=True)
    for name, home in homes.items():
        if home != where:
            raise UsageError(f"{name} is on {home} but another model on {where}; move them to one device")
    for name, model in models.items():
        if isinstance(model, str):
            modules[name].to(where)
    return modules, shapes, where


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say of which model a usage error speaks."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def examine_all(
    models: Mapping[str, Model],
    modules: Mapping[str, nn.Module],
    shapes: Mapping[str, Sequence[int]],
    first: tuple[Images, Labels],
    **settings: Any,
) -> dict[str, Known]:
    """Each model examined on the first images.

    Raises:
        UsageError: if one does not accept the images or returns no logits, or if their classes differ in number.
    """
    known: dict[str, Known] = {}
    for name, module in modules.items():
        with _about(name):
            subject = examine(module, *first, input_shape=shapes[name], **settings)
        known[name] = Known(name, _called(models[name]), module, subject)
    classes = {name: each.subject.facts.classes for name, each in known.items()}
    one = next(iter(classes))
    for name, count in classes.items():
        if count != classes[one]:
            raise UsageError(f"{one} has {classes[one]} classes but {name} has {count}; all models must have the same")
    return known


def surrogate_sets(
    sets: Mapping[str, Sequence[str]],
    known: Mapping[str, Known],
    attacks: Sequence[Labelled],
    first: tuple[Images, Labels],
    **settings: Any,
) -> list[SurrogateSet]:
    """The sets with the module that an attack is given, examined.

    Raises:
        UsageError: for a surrogate without gradients where an attack needs them, or of another precision.
    """
    needing = [label for label, _, attack in attacks if attack.access in ("white-box", "transfer")]
    found = []
    for name, members in sets.items():
        for member in members:
            subject = known[member].subject
            if needing and not subject.facts.differentiable:
                raise UsageError(f"no gradient flows through the surrogate {member}, which {needing[0]} needs")
            if subject.reference.dtype != known[members[0]].subject.reference.dtype:
                raise UsageError(f"the surrogates {members[0]} and {member} are of different precision")
        whole = known[members[0]].subject
        if len(members) > 1:
            whole = examine(Ensemble([known[member].module for member in members]).eval(), *first, **settings)
        repeats = all(known[member].repeats for member in members)
        found.append(SurrogateSet(name, tuple(members), whole, [known[m].to_json() for m in members], repeats))
    return found


def base(samples: Samples, threat: ThreatModel, target: str, seed: int, tile: int, device: str) -> dict[str, Any]:
    """What everything in a run's folder shares, and its hash under `id`."""
    data = {
        "data_sha256": samples.sha256,
        "indices": list(samples.indices),
        "norm": threat.norm,
        "eps": threat.eps,
        "target": target,
        "seed": seed,
        "tile": tile,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    return {**data, "id": spec.digest(data)}


def code() -> dict[str, Any]:
    """sha256 of the harness's part in a number, and the versions that decide one."""
    return {**source_hashes(()), "transfer": harness_sha256(*_CODE), "versions": versions()}


def job(
    common: Mapping[str, Any], data: str, sets: Sequence[SurrogateSet], victims: Sequence[str],
    attacks: Sequence[Labelled], known: Mapping[str, Known],
) -> dict[str, Any]:  # fmt: skip
    """All that decides a run's numbers, as JSON data, with its own hash under `id`."""
    found = {
        **{name: value for name, value in common.items() if name != "id"},
        "data": data,
        "surrogates": {each.name: list(each.members) for each in sets},
        "victims": list(victims),
        "attacks": {attack.label: attack.name for attack in attacks},
        "attack_sources": source_hashes([Named(attack.name, attack.attack) for attack in attacks]),
        "models": {name: model.to_json() for name, model in known.items()},
        "code": code(),
    }
    return {**found, "id": spec.digest(found)}
