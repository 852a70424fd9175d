"""What can be known of a model by its name alone, before anything is loaded or fetched for it."""

from collections.abc import Mapping
from pathlib import Path

from robustkit import plugins
from robustkit.api import CardSource, ModelSource
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.models.sources import normalized
from robustkit.models.sources.evaluating import UndecidedNameError, evaluation
from robustkit.spec import Spec, listed, looks_like_file, parse, suggest, unwrap


def named(text: str) -> tuple[Spec, ModelSource]:
    """The parsed spec of a model, code of the user's as `python/module.name`, and the source that it is of.

    Raises:
        UsageError: for a text that is no spec, or an unknown source.
    """
    parsed = parse(plugins.spelled("sources", text))
    sources = plugins.table("sources")
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    name = parsed.source or "zoo"
    if name not in sources or not parsed.source:
        if Path(head).is_file():
            raise UsageError(f"{head!r} is no model's name; to load the file, write ./{head}:arch=…")
        if Path(head).is_dir():
            raise UsageError(f"{head!r} is no model's name; to load what is in the folder, write ./{head}")
        if looks_like_file(head):
            raise UsageError(f"there is no file {head}; a file of weights is written ./{head}:arch=…")
        if not parsed.source and parsed.name in sources:
            raise UsageError(f"{head!r} is a source of models; write {head}/NAME, see: robustkit list models")
    if name not in sources:
        raise UsageError(suggest(name, sources, "model source"))
    return parsed, plugins.source("sources", name)


def check(text: str, *, files: bool = True) -> None:
    """Check the spec of a model as far as that goes without its weights; a name that the data decide passes.

    Raises:
        UsageError: for an unknown source, name or option, and, with `files`, a file or callable that is not there.
    """
    parsed, source = named(text)
    own = own_options(parsed.options)
    if parsed.source == "ensemble":
        for member in members_of(parsed.name):
            check(member, files=files)
    elif parsed.source == "defended":
        check(unwrap(parsed.name), files=files)
        defenses_of(parsed.name, own.get("by", ""))
    elif isinstance(source, CardSource) and (files or parsed.source not in ("file", "python")):
        try:
            source.card(parsed.name, own)
        except UndecidedNameError:
            if evaluation().dataset:
                raise


def own_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options without those that every source takes."""
    return {key: text for key, text in options.items() if key not in normalized.OPTIONS}


def members_of(name: str) -> list[str]:
    """The specs of an ensemble's members, at least two.

    Raises:
        UsageError: for fewer.
    """
    specs = listed(name)
    if len(specs) < 2 or not all(specs):
        raise UsageError(f"ensemble/{name} needs two models or more: ensemble/(A)+(B):mean=logits|probs|vote")
    return specs


def defenses_of(name: str, by: str) -> list[defended.Named]:
    """The defenses that a `defended/` spec names.

    Raises:
        UsageError: for none, or an unknown one.
    """
    if not by:
        raise UsageError(f"defended/{name} names no defense: defended/(MODEL):by=jpeg; see list defenses")
    return defended.resolve(by)
