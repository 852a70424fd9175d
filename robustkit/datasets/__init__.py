"""Datasets: labelled images in a fixed order, found by name, in a file or behind a callable of the user's."""

from pathlib import Path

from robustkit import plugins
from robustkit.api import Dataset, DatasetSource
from robustkit.datasets.objects import as_dataset
from robustkit.datasets.pair import Pair, check_images
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments
from robustkit.numerics import generators
from robustkit.spec import looks_like_file, parse, suggest

__all__ = ["Pair", "check_images", "listing", "load_dataset", "resolve"]


def load_dataset(spec: str) -> Dataset:
    """The dataset of a spec: `digits`, `cifar10:path=…`, `./images.npz`, `folder/PATH`, `python/package.callable`.

    Raises:
        UsageError: for an unknown name or option, or data that cannot be read as images with labels.
    """
    parsed = parse(plugins.spelled("datasets", spec))
    sources = plugins.table("dataset_sources")
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    if parsed.source not in sources and Path(head).is_file():
        raise UsageError(f"{head!r} is no dataset's name; to read the file, write ./{head}")
    if parsed.source not in sources and Path(head).is_dir():
        raise UsageError(f"{head!r} is no dataset's name; to read a folder of class folders, write folder/{head}")
    if parsed.source not in sources and looks_like_file(head):
        raise UsageError(f"there is no file {head}; a file of images is written ./{head}")
    if parsed.source:
        if parsed.source not in sources:
            raise UsageError(suggest(parsed.source, sources, "dataset source"))
        kind = "folder" if parsed.source == "file" and Path(parsed.name).expanduser().is_dir() else parsed.source
        source: DatasetSource = plugins.source("dataset_sources", kind)
        with generators.untouched():
            return _checked(source.make(parsed.name, parsed.options), parsed.source)
    if parsed.name in sources:
        raise UsageError(f"{parsed.name!r} alone names no data; write {_form(parsed.name)}")
    factory = plugins.load("datasets", parsed.name)
    with generators.untouched():
        return _checked(factory(**typed_arguments(factory, parsed.options, parsed.name)), parsed.name)


def _checked(made: object, what: str) -> Dataset:
    """What a plugin made, if it is a dataset.

    Raises:
        UsageError: with all that it lacks, if it is none.
    """
    if not isinstance(made, Dataset):
        lacking = [name for name in ("name", "classes", "__len__", "batch") if not hasattr(made, name)]
        raise UsageError(f"{what} gives a {type(made).__name__}, no dataset: it has no {', no '.join(lacking)}")
    return made


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
        try:
            source: DatasetSource = plugins.source("dataset_sources", name)
            names = source.names()
        except UsageError as error:  # of that source alone
            rows.append((_form(name), str(error)))
            continue
        rows += [(f"{name}/{each}", found.entry.summary) for each in names] or [(_form(name), found.entry.summary)]
    return rows


def _form(source: str) -> str:
    forms = {"file": "./images.npz", "python": "python/package.module.callable", "corrupted": "corrupted/(cifar10)"}
    return forms.get(source, f"{source}/…")
