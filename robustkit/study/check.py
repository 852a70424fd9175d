"""Every name and option of a study, looked at before anything is computed; no weights are read and none are fetched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from robustkit import datasets, plugins
from robustkit.api import CardSource, ThreatModel
from robustkit.datasets.choice import choose_indices
from robustkit.engine import plan
from robustkit.errors import UsageError
from robustkit.models import defended, sources
from robustkit.models.sources import normalized
from robustkit.models.sources.evaluating import evaluating
from robustkit.models.sources.python import import_callable, typed_arguments
from robustkit.spec import listed, number, parse, suggest, unwrap
from robustkit.study.plan import Study
from robustkit.transfers import plan as transfer_plan


def check(study: Study, *, files: bool = True) -> None:
    """Check the specs, radii and targets of a study.

    What only the model can tell (whether a defense fits it, whether an attack finds gradients) is not known here: such
    a cell fails by itself. Without `files` the data and the user's own files and code need not be there.

    Raises:
        UsageError: for the first that cannot be.
    """
    for threat in study.threats:
        with _about("eps"):
            ThreatModel(threat.norm, number(threat.eps))  # type: ignore[arg-type]
    for label, text in study.attacks.items():
        with _about(f"attacks.{label}"):
            plan.check_attack(text)
    for label, texts in study.defenses.items():
        with _about(f"defenses.{label}"):
            defended.resolve(texts)
    with _about("target"):
        plan.parse_target(study.options.get("target"), None)
    with _about("dataset"):
        name = _check_data(study, files=files)
    with evaluating(name, study.threats[0].norm):
        for label, text in study.models.items():
            with _about(f"models.{label}"):
                check_model(text, files=files)
        _check_transfer(study, files=files)


def _check_transfer(study: Study, *, files: bool) -> None:
    if study.transfer is None:
        return
    for role, models in (("surrogate", study.transfer.surrogates), ("victim", study.transfer.victims)):
        for label, text in models.items():
            with _about(f"transfer.{role}.{label}"):
                check_model(text, files=files)
    with _about("transfer"):
        transfer_plan.check_same(study.transfer.surrogates, study.transfer.victims)
        transfer_plan.parse_sets(study.transfer.sets, study.transfer.surrogates)
        for threat in study.threats:
            model = ThreatModel(threat.norm, number(threat.eps))  # type: ignore[arg-type]
            transfer_plan.parse_attacks(study.transfer.attacks, model)


def _check_data(study: Study, *, files: bool) -> str:
    """Check the dataset and the choice of samples; returns the dataset's name."""
    if files:
        data = datasets.resolve(study.data)
        choose_indices(data, study.options.get("n"), study.options.get("indices"))
        plan.parse_target(study.options.get("target"), data.classes or None)
        return data.name
    parsed = parse(study.data)
    if parsed.source:
        if parsed.source not in plugins.table("dataset_sources"):
            raise UsageError(suggest(parsed.source, plugins.table("dataset_sources"), "dataset source"))
    else:
        typed_arguments(plugins.load("datasets", parsed.name), parsed.options, parsed.name)
    return parsed.name


def check_model(text: str, *, files: bool) -> None:
    """Check the spec of a model as far as that goes without its weights.

    Raises:
        UsageError: for an unknown source, name or option, and, with `files`, a file or callable that is not there.
    """
    parsed = parse(text)
    name = parsed.source or "zoo"
    if name not in plugins.table("sources"):
        raise UsageError(suggest(name, plugins.table("sources"), "model source"))
    source = plugins.load("sources", name)()
    own = {key: value for key, value in parsed.options.items() if key not in normalized.OPTIONS}
    if name == "zoo":
        sources.load_model(text)
    elif name == "ensemble":
        for member in listed(parsed.name):
            check_model(member, files=files)
    elif name == "defended":
        check_model(unwrap(parsed.name), files=files)
        defended.resolve(parsed.options.get("by", ""))
    elif name in ("file", "python"):
        if files:
            _check_own(name, parsed.name, own)
    elif isinstance(source, CardSource):
        source.card(parsed.name, own)


def _check_own(source: str, name: str, options: Mapping[str, str]) -> None:
    """Check that a callable or a file of the user's is there."""
    if source == "python":
        typed_arguments(import_callable(name), options, f"model {name}")
    elif not Path(name).expanduser().exists():
        raise UsageError(f"there is no {name}; paths are looked up from the folder in which the command runs")


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say of which part of the study a usage error speaks."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
