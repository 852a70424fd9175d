"""Model sources: where networks come from, by name."""

from pathlib import Path

from torch import nn

from robustkit import plugins
from robustkit.api import ModelCard, ModelSource
from robustkit.errors import UsageError
from robustkit.spec import parse, suggest

_PLANNED = ("hf", "robustbench", "timm", "torchvision")


def load_model(spec: str) -> tuple[nn.Module, ModelCard]:
    """The network of a spec, in eval mode, and its card.

    `digits-cnn` is a bundled network, `./net.safetensors:arch=digits-cnn` a file of weights,
    `python/package.module.callable:key=value` a callable of the user's.

    Raises:
        UsageError: for an unknown source, name or option, or a file that is no checkpoint.
    """
    parsed = parse(spec)
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    name = parsed.source or "zoo"
    sources = plugins.table("sources")
    if (name not in sources or not parsed.source) and Path(head).is_file():
        raise UsageError(f"{head!r} is no model's name; to load the file, write ./{head}:arch=…")
    if name in _PLANNED and name not in sources:
        raise UsageError(
            f"the source {name!r} is not part of this version; there are: {', '.join(sorted(sources))}; "
            "a callable of yours that returns the network does the same: python/package.module.callable"
        )
    if name not in sources:
        raise UsageError(suggest(name, sources, "model source"))
    source: ModelSource = plugins.load("sources", name)()
    module, card = source.load(parsed.name, parsed.options)
    return module.eval(), card


def card_dataset(spec: str) -> str:
    """The dataset that the card of a model names; empty if there is none."""
    parsed = parse(spec)
    return load_model(spec)[1].dataset if parsed.source in ("", "zoo") else ""


def listing() -> list[tuple[str, str]]:
    """The spec of each model that can be listed, with a line on it; and how the others are named."""
    rows = []
    for name, found in plugins.table("sources").items():
        source: ModelSource = plugins.load("sources", name)()
        for model in source.names():
            spec = model if name == "zoo" else f"{name}/{model}"
            rows.append((spec, source.load(model, {})[1].notes))
        if not source.names():
            rows.append((f"{name}/…", found.entry.summary))
    return rows
