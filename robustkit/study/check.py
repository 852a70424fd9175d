"""Every name and option of a study, looked at before anything is computed; no weights are read and none are fetched."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustkit import datasets, plugins
from robustkit.api import ThreatModel
from robustkit.datasets.choice import choose_indices
from robustkit.engine import plan
from robustkit.errors import UsageError
from robustkit.models import defended, sources
from robustkit.models.sources.evaluating import evaluating
from robustkit.models.sources.python import typed_arguments
from robustkit.spec import number, parse, suggest
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
        data = parse(plugins.spelled("datasets", study.data))
    with evaluating("" if data.source else data.name, study.threats[0].norm):
        for label, text in study.models.items():
            with _about(f"models.{label}"):
                sources.check(text, files=files)
        _check_transfer(study, files=files)
    with _about("dataset"):  # last, for it may have to be fetched
        _check_data(study, files=files)


def _check_transfer(study: Study, *, files: bool) -> None:
    if study.transfer is None:
        return
    for role, models in (("surrogate", study.transfer.surrogates), ("victim", study.transfer.victims)):
        for label, text in models.items():
            with _about(f"transfer.{role}.{label}"):
                sources.check(text, files=files)
    with _about("transfer"):
        transfer_plan.check_same(study.transfer.surrogates, study.transfer.victims)
        transfer_plan.parse_sets(study.transfer.sets, study.transfer.surrogates)
        for threat in study.threats:
            model = ThreatModel(threat.norm, number(threat.eps))  # type: ignore[arg-type]
            transfer_plan.parse_attacks(study.transfer.attacks, model)


def _check_data(study: Study, *, files: bool) -> None:
    """Check the dataset and the choice of samples."""
    if files:
        data = datasets.resolve(study.data)
        choose_indices(data, study.options.get("n"), study.options.get("indices"))
        plan.parse_target(study.options.get("target"), data.classes or None)
        return
    parsed = parse(plugins.spelled("datasets", study.data))
    if parsed.source:
        if parsed.source not in plugins.table("dataset_sources"):
            raise UsageError(suggest(parsed.source, plugins.table("dataset_sources"), "dataset source"))
    else:
        typed_arguments(plugins.load("datasets", parsed.name), parsed.options, parsed.name)


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say of which part of the study a usage error speaks."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
