"""Architectures by name, untrained: of the zoo, timm/NAME, torchvision/NAME, or a callable of the user's."""

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from robustkit import plugins
from robustkit.errors import UsageError, first_line
from robustkit.models.sources import load_model, names
from robustkit.models.sources.python import import_callable, typed_arguments
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from robustkit.models.state import check_usable, put_in_eval_mode
from robustkit.spec import Spec, parse, suggest

_UNTRAINED: Mapping[str, Mapping[str, str]] = {
    "timm": {"pretrained": "false"},
    "torchvision": {"weights": "none"},
    "robustbench": {"weights": "random"},
}
_SEEDED = ("timm", "torchvision")  # whose untrained weights are always the same, unless seed= says otherwise


def architecture(spec: str) -> nn.Module:
    """The network of a spec, whose weights are about to be replaced: an architecture of the zoo, or any model.

    Raises:
        UsageError: for an unknown name or option.
    """
    parsed = parse(plugins.spelled("sources", spec))
    if parsed.name in ARCHITECTURES and not parsed.source:
        factory = ARCHITECTURES[parsed.name]
        return factory(**typed_arguments(factory, parsed.options, parsed.name))
    untrained = {**_UNTRAINED.get(parsed.source, {}), **parsed.options}
    network = load_model(str(replace(parsed, options=untrained)))[0]
    check_usable(network)
    return network


def check_architecture(spec: str) -> None:
    """Check the spec of an architecture as far as that goes without making it.

    Raises:
        UsageError: for an unknown name or option.
    """
    parsed = parse(plugins.spelled("sources", spec))
    if parsed.source or parsed.name not in ARCHITECTURES:
        names.check(str(replace(parsed, options={**_UNTRAINED.get(parsed.source, {}), **parsed.options})))


def check_trainable(spec: str) -> None:
    """The same for training: a name without a source must be an architecture.

    Raises:
        UsageError: see `check_architecture`.
    """
    parsed = parse(plugins.spelled("sources", spec))
    if not parsed.source and parsed.name not in ARCHITECTURES:
        raise UsageError(suggest(parsed.name, ARCHITECTURES, "architecture") + "; also timm/NAME, python/package.make")
    check_architecture(spec)


def fresh(spec: str) -> nn.Module:
    """The same with weights that the global generator decides, for training.

    Raises:
        UsageError: see `architecture` and `check_trainable`.
    """
    check_trainable(spec)
    parsed = parse(plugins.spelled("sources", spec))
    if parsed.source in _SEEDED:
        seed = int(torch.randint(2**31, (1,)))
        return architecture(str(replace(parsed, options={**parsed.options, "seed": str(seed)})))
    return architecture(spec)


def fitted(spec: str, classes: int, image: tuple[int, int, int]) -> str:
    """The spec with the data's classes and channels written in, where it takes them and they are not said.

    Raises:
        UsageError: if the network does not answer that many classes for such images.
    """
    parsed = parse(plugins.spelled("sources", spec))
    wanted = {"classes": classes, "channels": image[0], "in_chans": image[0]}
    usual = {"channels": 3, "in_chans": 3} | ({} if parsed.source else {"classes": 10})
    added = {
        name: str(value)
        for name, value in wanted.items()
        if name in _takes(parsed) and name not in parsed.options and usual.get(name) != value
    }
    whole = str(replace(parsed, options={**parsed.options, **added}))
    with torch.random.fork_rng(devices=[]):
        network = fresh(whole)
    try:
        with torch.no_grad():
            shape = tuple(put_in_eval_mode(network)(torch.zeros(2, *image)).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        text = "×".join(map(str, image))
        raise UsageError(f"{whole} does not take the data's images of {text}: {first_line(error)}") from error
    if shape != (2, classes):
        raise UsageError(f"{whole} answers {shape[1:]} for an image; the data has {classes} classes")
    return whole


def _takes(parsed: Spec) -> set[str]:
    """The names of the options that an architecture takes."""
    if parsed.source == "timm":
        return {"classes", "in_chans"}
    if parsed.source == "torchvision":
        return {"classes"}
    if parsed.source == "python":
        function = import_callable(parsed.name)
    elif parsed.name in ARCHITECTURES and not parsed.source:
        function = ARCHITECTURES[parsed.name]
    else:
        return set()
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built in, without a signature
        return set()
