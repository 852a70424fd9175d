"""From what the caller named to what a transfer run needs: models by name, surrogate sets, attacks, identities."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit import plugins, spec
from robustkit.api import Attack, ModelFacts, Suite, ThreatModel
from robustkit.datasets.choice import Samples
from robustkit.engine.identity import harness_sha256, source_hashes
from robustkit.engine.plan import Named, make_attack, resolve_attacks, versions
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.models.ensembles import Ensemble
from robustkit.models.examination import as_module
from robustkit.models.opening import Loaded, Model, Opened, check_model, choose_device, load, model_name, open_model
from robustkit.models.wrapping import Prepared

Models = Model | Sequence[Model] | Mapping[str, Model]
_CODE = ("robustkit.transfers.*", "robustkit.models.ensembles", "robustkit.models.sources.ensemble")


class Labelled(NamedTuple):
    """An attack, the spec that makes it again, and what the caller calls it."""

    label: str
    name: str
    attack: Attack


@dataclass(frozen=True, slots=True)
class Request:
    """All that decides a transfer run's numbers, besides the models and samples.

    `sets` has the names of each set's surrogates, `defenses` stand before the victims alone, `draws` vote on an image
    of a randomised model; `target` is empty, "random", "least-likely" or a class; `data` and `eps` are as written.
    """

    victims: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    attacks: Sequence[Labelled]
    threat: ThreatModel
    data: str
    eps: str
    target: str
    seed: int
    defenses: Sequence[defended.Named]
    draws: int


@dataclass(frozen=True, slots=True)
class SurrogateSet:
    """Some surrogates as the one model that an attack is given."""

    name: str
    members: tuple[str, ...]
    opened: Opened
    identity: Sequence[Mapping[str, Any]]
    repeats: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the matrix: an attack on a surrogate set.

    `identity` is empty where the adversarials cannot be had again; `cost` is the most that a sample takes, in passes of
    single surrogates.
    """

    surrogates: SurrogateSet
    named: Labelled
    in_flight: int
    identity: str
    cost: int

    @property
    def key(self) -> tuple[str, str]:
        """The names of the set and of the attack."""
        return self.surrogates.name, self.named.label


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


def check_same(
    surrogates: Mapping[str, Model], victims: Mapping[str, Model], defenses: Sequence[defended.Named] = ()
) -> dict[str, Model]:
    """All models by name, the victims first; one that is both is one.

    Raises:
        UsageError: if a surrogate and a victim share a name and are not the same, as where defenses protect victims.
    """
    for name in sorted(surrogates.keys() & victims.keys()):
        if defenses:
            text = f"{name!r} is a surrogate, which stays bare, and a victim behind {defended.text(defenses)}"
            raise UsageError(f"{text}; give the victim a name of its own")
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


def parse_outputs(outputs: Any, models: Mapping[str, Model]) -> dict[str, str]:
    """What each model returns, of one word for all, or a mapping from names; logits where it says nothing.

    Raises:
        UsageError: for a name that no model has.
    """
    given = outputs if isinstance(outputs, Mapping) else dict.fromkeys(models, outputs)
    for name in given:
        if name not in models:
            raise UsageError("outputs: " + spec.suggest(str(name), models, "model"))
    return {name: given.get(name, "logits") for name in models}


def check_models(models: Mapping[str, Model], data: object, norm: str) -> None:
    """Refuse what is no model by its kind or its name; see `models.opening.check`.

    Raises:
        UsageError: for the first that is none.
    """
    for name, model in models.items():
        with _about(name):
            check_model(model, data, norm)


def load_all(
    models: Mapping[str, Model], data: str, norm: str, *, outputs: Mapping[str, str], trust: bool, device: str
) -> dict[str, Loaded]:
    """The models by name, all on one device; see `models.opening.load`.

    Raises:
        UsageError: for a model that cannot be loaded, or models on different devices.
    """
    given = {name: as_module(model) for name, model in models.items() if not isinstance(model, str)}
    homes = {
        name: choose_device(device, module, named=False)
        for name, module in given.items()
        if [*module.parameters(), *module.buffers()]
    }
    where = next(iter(homes.values()), None) or choose_device(device, nn.Module(), named=True)
    for name, home in homes.items():
        if home != where:
            raise UsageError(f"{name} is on {home} but another model on {where}; move them to one device")
    found = {}
    for name, model in models.items():
        with _about(name):
            found[name] = load(model, data, norm, outputs=outputs[name], trust=trust, device=str(where))
    return found


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say of which model a usage error speaks."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


@contextmanager
def open_all(
    loaded: Mapping[str, Loaded], samples: Samples, request: Request, *, tile: int | None
) -> Iterator[tuple[dict[str, Opened], list[SurrogateSet]]]:
    """All models by name, the victims behind the defenses, and the surrogate sets, ready for these samples.

    Raises:
        UsageError: for a model that cannot be measured on them, models with different numbers of classes, or surrogates
            without gradients where an attack needs them, or of different precision.
    """
    with ExitStack() as stack:
        models: dict[str, Opened] = {}
        for name, each in loaded.items():
            defenses = request.defenses if name in request.victims else ()
            with _about(name):
                opening = open_model(each, samples, defenses=defenses, tile=tile, seed=request.seed)
                models[name] = stack.enter_context(opening)
        _check_classes(models)
        sets = []
        for name, members in request.sets.items():
            some = {member: models[member] for member in members}
            _check_surrogates(some, request.attacks)
            whole = some[members[0]]
            if len(members) > 1:
                module = Ensemble([_in_logits(each) for each in some.values()]).eval()
                ensemble = Loaded(name, module, None, whole.device, "logits")
                whole = stack.enter_context(open_model(ensemble, samples, tile=tile, seed=request.seed))
            identity, repeats = [describe(each) for each in some.values()], all(map(repeatable, some.values()))
            sets.append(SurrogateSet(name, members, whole, identity, repeats))
        yield models, sets


def _check_classes(models: Mapping[str, Opened]) -> None:
    classes = {name: each.subject.facts.classes for name, each in models.items()}
    one = next(iter(classes))
    for name, count in classes.items():
        if count != classes[one]:
            raise UsageError(f"{one} has {classes[one]} classes but {name} has {count}; all models must have the same")


def _check_surrogates(members: Mapping[str, Opened], attacks: Sequence[Labelled]) -> None:
    needing = [label for label, _, attack in attacks if attack.access in ("white-box", "transfer")]
    first = next(iter(members))
    for name, each in members.items():
        if needing and not each.subject.facts.differentiable:
            raise UsageError(f"no gradient flows through the surrogate {name}, which {needing[0]} needs")
        if each.subject.reference.dtype != members[first].subject.reference.dtype:
            raise UsageError(f"the surrogates {first} and {name} are of different precision")


class _Logarithm(nn.Module):
    """Logits of probabilities, as a `Network` takes them."""

    def forward(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _in_logits(opened: Opened) -> nn.Module:
    """The module as a member of an ensemble, which averages logits."""
    return opened.module if opened.outputs == "logits" else Prepared(opened.module, _Logarithm()).eval()


def describe(opened: Opened) -> dict[str, Any]:
    """What identifies a model; kept under `models` of a record's job."""
    subject = opened.subject
    return {
        "spec": opened.name,
        "weights_sha256": subject.weights_sha256,
        "probe_sha256": subject.probe_sha256,
        "noisy_sha256": subject.noisy_sha256,
        "gradient_signs": subject.gradient_signs,
        "precision": str(subject.reference.dtype).removeprefix("torch."),
        "classes": subject.facts.classes,
        "randomised": subject.facts.randomised,
        "outputs": opened.outputs,
        "defense": opened.defense,
    }


def repeatable(opened: Opened) -> bool:
    """Whether its answers can be had again: not of noise that seeding does not fix; nothing shows its settings."""
    return bool(opened.subject.probe_sha256 or opened.subject.noisy_sha256)


def answering(opened: Opened, draws: int) -> list[Any]:
    """What decides a model's answers to given images."""
    voting = draws if opened.subject.facts.randomised else 0
    return [describe(opened), voting, source_hashes((), opened.defenses)]


def base(models: Mapping[str, Opened], samples: Samples, request: Request) -> dict[str, Any]:
    """What everything in a run's folder shares, and its hash under `id`."""
    reference = next(iter(models.values())).subject.reference
    data = {
        "data_sha256": samples.sha256,
        "indices": list(samples.indices),
        "norm": request.threat.norm,
        "eps": request.threat.eps,
        "target": request.target,
        "seed": request.seed,
        "tile": reference.tile,
        "device": reference.device.type,
        "threads": torch.get_num_threads(),
    }
    return {**data, "id": spec.digest(data)}


def job(common: Mapping[str, Any], models: Mapping[str, Opened], request: Request) -> dict[str, Any]:
    """All that decides a run's numbers, as JSON data, with its own hash under `id`."""
    named = [Named(attack.name, attack.attack) for attack in request.attacks]
    found = {
        **{name: value for name, value in common.items() if name != "id"},
        "data": request.data,
        "surrogates": {name: list(members) for name, members in request.sets.items()},
        "victims": list(request.victims),
        "defense": defended.text(request.defenses),
        "draws": request.draws if any(each.subject.facts.randomised for each in models.values()) else 0,
        "attacks": {attack.label: attack.name for attack in request.attacks},
        "attack_sources": source_hashes(named, request.defenses),
        "models": {name: describe(model) for name, model in models.items()},
        # sha256 of the harness's part in a number, and the versions that decide one.
        "code": {**source_hashes(()), "transfer": harness_sha256(*_CODE), "versions": versions()},
    }
    return {**found, "id": spec.digest(found)}
