"""Model sources: where networks come from, by name."""

from pathlib import Path

from torch import nn

from robustkit import plugins
from robustkit.api import CardSource, ModelCard, ModelSource
from robustkit.errors import UsageError
from robustkit.models.sources import normalized
from robustkit.models.sources.trust import trusted, trusting
from robustkit.models.state import put_in_eval_mode
from robustkit.models.turns import one_at_a_time
from robustkit.spec import parse, suggest


@one_at_a_time()
def load_model(spec: str, *, trust: bool = False) -> tuple[nn.Module, ModelCard]:
    """The network of a spec, in eval mode, and its card.

    `digits-cnn` is a bundled network, `./net.safetensors:arch=digits-cnn` a file of weights,
    `python/package.module.callable:key=value` a callable of the user's. With `trust`, checkpoints that are more than
    weights are unpickled, which runs whatever code their author put in them.

    Every source also takes `resize=224`, and `mean=` with `std=` for a network that expects normalised images; a source
    with an option of its own that is called the same names it in `own_options`, and keeps it.

    Raises:
        UsageError: for an unknown source, name or option, or a file that is no checkpoint.
    """
    parsed = parse(spec)
    head = f"{parsed.source}/{parsed.name}" if parsed.source else parsed.name
    name = parsed.source or "zoo"
    sources = plugins.table("sources")
    if (name not in sources or not parsed.source) and Path(head).is_file():
        raise UsageError(f"{head!r} is no model's name; to load the file, write ./{head}:arch=…")
    if name not in sources:
        raise UsageError(suggest(name, sources, "model source"))
    source: ModelSource = plugins.load("sources", name)()
    shared = {key for key in normalized.OPTIONS if key not in getattr(source, "own_options", ())}
    own = {key: text for key, text in parsed.options.items() if key not in shared}
    with trusting(trust or trusted()):
        module, card = source.load(parsed.name, own)
    return normalized.prepare(
        put_in_eval_mode(module), card, {k: text for k, text in parsed.options.items() if k in shared}
    )


def card_dataset(spec: str) -> str:
    """The dataset that the card of a model names; empty if there is none."""
    parsed = parse(spec)
    if parsed.source in ("", "zoo"):
        return load_model(spec)[1].dataset
    if parsed.source not in plugins.table("sources"):
        return ""
    card = _card(plugins.load("sources", parsed.source)(), spec)
    return card.dataset if card else ""


def _card(source: ModelSource, spec: str) -> ModelCard | None:
    """What a source knows of a model without making it, if it knows anything."""
    if not isinstance(source, CardSource):
        return None
    parsed = parse(spec)
    return source.card(parsed.name, {k: text for k, text in parsed.options.items() if k not in normalized.OPTIONS})


def listing(only: str = "", *, counted: bool = False) -> list[tuple[str, str]]:
    """The spec of each model of the source `only`, with a line on it, without making any.

    Without `only`: the bundled networks, then a line for each other source, which is imported only to be `counted`.

    Raises:
        UsageError: for an unknown source, or one whose packages are not installed.
    """
    sources = plugins.table("sources")
    if only and only not in sources:
        raise UsageError(suggest(only, sources, "model source"))
    rows = []
    for name in [only] if only else sorted(sources, key=lambda name: name != "zoo"):
        entry = sources[name].entry
        if name != "zoo" and not only:
            rows.append((f"{name}/…", entry.summary + _more(name, entry, counted=counted)))
            continue
        source = plugins.load("sources", name)()
        if name == "zoo":
            rows.extend((model, source.card(model, {}).notes) for model in source.names())
        else:
            rows.extend((f"{name}/{model}", _line(source, f"{name}/{model}")) for model in source.names())
            rows.extend([] if rows else [(f"{name}/…", entry.summary)])
    return rows


def _more(name: str, entry: plugins.Entry, *, counted: bool) -> str:
    """How many models a source has that can be named, and how to list them; or what to install first."""
    install = f"pip install '{entry.install}'"
    if not counted:
        return f" ({install}; list models --source {name})" if entry.install else ""
    try:
        count = len(plugins.load("sources", name)().names())
    except UsageError:  # nothing is loaded where its packages are not installed
        return f" (not installed: {install})" if entry.install else ""
    return f" ({count:,} models; list models --source {name})" if count else ""


def _line(source: ModelSource, spec: str) -> str:
    card = _card(source, spec)
    return "; ".join(part for part in (card.dataset, card.threat, card.notes) if part) if card else ""
