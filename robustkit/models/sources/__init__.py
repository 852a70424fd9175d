"""Model sources: where networks come from, by name."""

from torch import nn

from robustkit import plugins
from robustkit.api import CardSource, ModelCard
from robustkit.errors import UsageError
from robustkit.models.sources import normalized
from robustkit.models.sources.names import check as check
from robustkit.models.sources.names import named, own_options
from robustkit.models.sources.trust import trusted, trusting
from robustkit.models.state import put_in_eval_mode
from robustkit.models.turns import one_at_a_time
from robustkit.numerics import generators
from robustkit.spec import suggest


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
    parsed, source = named(spec)
    shared = {key for key in normalized.OPTIONS if key not in getattr(source, "own_options", ())}
    own = {key: text for key, text in parsed.options.items() if key not in shared}
    with trusting(trust or trusted()), generators.untouched():  # a network's first weights, a user's module that seeds
        module, card = _pair(source.load(parsed.name, own), spec)
    return normalized.prepare(
        put_in_eval_mode(module), card, {k: text for k, text in parsed.options.items() if k in shared}
    )


def _pair(made: object, spec: str) -> tuple[nn.Module, ModelCard]:
    """What a source gave, if it is a network with its card.

    Raises:
        UsageError: if it is not.
    """
    match made:
        case (nn.Module() as module, ModelCard() as card):
            return module, card
    raise UsageError(f"the source of {spec} gave a {type(made).__name__}; load() must return (nn.Module, ModelCard)")


def card_dataset(spec: str) -> str:
    """The dataset that the card of a model names; empty if there is none.

    Raises:
        UsageError: for an unknown source, name or option.
    """
    card = _card(spec)
    return card.dataset if card else ""


def _card(spec: str) -> ModelCard | None:
    """What a source knows of a model without making it, if it knows anything."""
    parsed, source = named(spec)
    return source.card(parsed.name, own_options(parsed.options)) if isinstance(source, CardSource) else None


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
        source = plugins.source("sources", name)
        if name == "zoo":
            rows.extend((model, source.card(model, {}).notes) for model in source.names())
        else:
            rows.extend((f"{name}/{model}", _line(f"{name}/{model}")) for model in source.names())
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


def _line(spec: str) -> str:
    card = _card(spec)
    return "; ".join(part for part in (card.dataset, card.threat, card.notes) if part) if card else ""
