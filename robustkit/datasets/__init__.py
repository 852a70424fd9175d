"""Datasets: labelled images in a fixed order, found by name, in a file or behind a callable of the user's."""

from pathlib import Path

from robustkit import plugins
from robustkit.api import Dataset, DatasetSource
from robustkit.datasets.objects import as_dataset
from robustkit.datasets.pair import Pair, check_images
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments
from robustkit.numerics import generators
from robustkit.spec import parse, suggest

__all__ = ["Pair", "check_images", "listing", "load_dataset", "resolve"]


def load_dataset(spec: str) -> Dataset:
    """The dataset of a spec: `digits`, `cifar10:path=…`, `./images.npz`, `folder/PATH`, `python/package.callable`.

    Raises:
        UsageError: for an unknown name or option, or data that cannot be read as images with labels.
    """
    parsed = parse(spec)
    sources = plugins.table("dataset_sources")
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    if parsed.source not in sources and Path(head).is_file():
        raise UsageError(f"{head!r} is no dataset's name; to read the file, write ./{head}")
    if parsed.source not in sources and Path(head).is_dir():
        raise UsageError(f"{head!r} is no dataset's name; to read a folder of class folders, write folder/{head}")
    if parsed.source:
        if parsed.source not in sources:
            raise UsageError(suggest(parsed.source, sources, "dataset source"))
        source: DatasetSource = plugins.load("dataset_sources", parsed.source)()
        with generators.untouched():
            return source.make(parsed.name, parsed.options)
    if parsed.name in sources:
        raise UsageError(f"{parsed.name!r} alone names no data; write {_form(parsed.name)}")
    factory = plugins.load("datasets", parsed.name)
    with generators.untouched():
        dataset: Dataset = factory(**typed_arguments(factory, parsed.options, parsed.name))
    return dataset


def resolve(data: object) -> Dataset:
    """A dataset from whatever a caller gives: a spec, or an object, see `objects.as_dataset`.

    Raises:
        UsageError: if it is none of these, or cannot be read as images with labels.
    """
    return load_dataset(data) if isinstance(data, str) else as_dataset(data)


def listing() -> list[tuple[str, str]]:
    """How each dataset is named, with a line on it; of a source the names it has, or its form."""
    rows = [(name, found.entry.summary) for name, found in plugins.table("datasets").items()]
    for name, found in plugins.table("dataset_sources").items():
        source: DatasetSource = plugins.load("dataset_sources", name)()
        rows += [(f"{name}/{each}", found.entry.summary) for each in source.names()] or [
            (_form(name), found.entry.summary)
        ]
    return rows


def _form(source: str) -> str:
    forms = {"file": "./images.npz", "python": "python/package.module.callable", "corrupted": "corrupted/(cifar10)"}
    return forms.get(source, f"{source}/…")
