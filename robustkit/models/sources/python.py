"""Networks from a callable of the user's, `python/package.module.callable:key=value`, and how to find callables."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.sources.trust import check_code
from robustkit.models.state import put_in_eval_mode
from robustkit.spec import suggest, typed

_IMAGES = frozenset({"x", "input", "inputs", "images", "image", "batch", "img", "imgs"})


class Python:
    """Networks that a callable of the user's returns, alone or with their `ModelCard`."""

    def names(self) -> Sequence[str]:
        """None: whatever can be imported."""
        return ()

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """Its name, once the callable is found and takes the options; it is not called.

        Raises:
            UsageError: if it cannot be found, or does not take the options.
        """
        _maker(name, options)
        return ModelCard(name, "python")

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: if the callable cannot be found, does not take the options, or returns no network.
        """
        found = _maker(name, options)
        made = found if isinstance(found, nn.Module) else call(name, options, "model")
        module, card = made if isinstance(made, tuple) and len(made) == 2 else (made, ModelCard(name, "python"))
        if not isinstance(module, nn.Module) or not isinstance(card, ModelCard):
            raise UsageError(
                f"{name} returned {_kind(made)}; it must return an nn.Module, or an (nn.Module, ModelCard) pair"
            )
        return put_in_eval_mode(module), card


def _maker(name: str, options: Mapping[str, str]) -> object:
    """The callable that returns the network for these options, or the network itself where a module holds it.

    Raises:
        UsageError: for options where it is a network already, or a callable that wants others, or images.
    """
    found = imported(name)
    if isinstance(found, nn.Module):
        if options:
            raise UsageError(f"{name} is a network already, which takes no options, not {', '.join(options)}")
        return found
    maker = import_callable(name)
    needed = lacking(maker, options)
    if len(needed) == 1 and needed[0] in _IMAGES:
        raise UsageError(
            f"{name} takes images ({needed[0]}) and so is the network itself; name a function without arguments that "
            "returns it, as an nn.Module"
        )
    typed_arguments(maker, options, f"model {name}")
    return maker


def held_or_made(
    dotted: str, options: Mapping[str, str], what: str, kinds: tuple[type, ...], argument: str = ""
) -> object:
    """What a module holds where that is of one of these kinds, else what the callable there returns.

    `argument` is what a callable takes that is no maker but the thing itself.

    Raises:
        UsageError: as `call`; for options where it is held, or a callable that takes `argument`.
    """
    found = imported(dotted)
    if isinstance(found, kinds) and not isinstance(found, type):
        if options:
            raise UsageError(f"{dotted} is made already and takes no options, not {', '.join(options)}")
        return found
    if argument and callable(found) and argument in lacking(found, options):
        raise UsageError(
            f"{dotted} takes a {argument}, so it is no {what} yet but what one does: name a class of settings whose "
            f"__call__ it is"
        )
    return call(dotted, options, what)


def call(dotted: str, options: Mapping[str, str], what: str) -> object:
    """What a dotted callable, which should make a `what`, returns for options given as text.

    Raises:
        UsageError: if it cannot be imported or does not take the options; what it raises itself passes through.
    """
    function = import_callable(dotted)
    arguments = typed_arguments(function, options, f"{what} {dotted}")
    with _current_folder():
        return function(**arguments)


def import_callable(dotted: str) -> Callable[..., Any]:
    """The callable at package.module.name; modules of the current folder come first.

    Raises:
        UsageError: if the module or the name is not there, the module does not import, or it cannot be called.
    """
    found = imported(dotted)
    if not callable(found):
        raise UsageError(f"{dotted} is {_kind(found)}, which cannot be called; name a function or a class")
    return found  # type: ignore[no-any-return]


def imported(dotted: str) -> Any:
    """What stands at package.module.name; modules of the current folder come first.

    Raises:
        UsageError: if the module or the name is not there, or the module does not import.
    """
    module_name, _, name = dotted.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in dotted.split(".")):
        raise UsageError(f"{dotted!r} is no callable's name; write python/package.module.callable")
    check_code(f"python/{dotted}")
    with _current_folder():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise UsageError(f"{module_name} needs a module that is not installed: {error}") from error
            raise UsageError(
                f"no module called {error.name!r} for {dotted}; it must be installed or in the current folder"
            ) from error
        except (Exception, SystemExit) as error:
            raise UsageError(f"{module_name} does not import: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(suggest(name, public, f"callable of {module_name}"))
    return getattr(module, name)


def typed_arguments(function: Callable[..., Any], options: Mapping[str, str], what: str) -> dict[str, Any]:
    """Options given as text, typed by the callable's annotations, or where one has none by its default.

    Without either, and for `**settings`, what reads as a number or a truth value is one; a default of None says that it
    may be text, and leaves it that.

    Raises:
        UsageError: for an option that it does not take, one that it needs, or a value that is not of its type.
    """
    parameters = _parameters(function)
    if parameters is None:
        if options:
            raise UsageError(f"{what} does not tell which options it takes; wrap it in a function that does")
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: p for name, p in parameters.items() if p.kind in by_name}
    anything = next((p for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    arguments: dict[str, Any] = {}
    for key, text in options.items():
        if key not in known and anything is None:
            raise UsageError(f"{what}: " + suggest(key, known, "option"))
        arguments[key] = _value(text, known.get(key, anything), f"{what}: {key}")
    if needed := lacking(function, options):
        raise UsageError(f"{what} needs {', '.join(needed)}; append :{','.join(f'{key}=…' for key in needed)}")
    return arguments


def lacking(function: Callable[..., Any], options: Mapping[str, str]) -> list[str]:
    """The parameters that a callable needs and that the options do not give."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = (_parameters(function) or {}).values()
    return [p.name for p in parameters if p.kind in by_name and p.default is p.empty and p.name not in options]


def _value(text: str, parameter: inspect.Parameter | None, what: str) -> Any:
    """An option's text as its parameter wants it."""
    assert parameter is not None
    hint, default = parameter.annotation, parameter.default
    if hint not in (inspect.Parameter.empty, Any):
        return typed(text, hint, what)
    if default is None or isinstance(default, str):
        return text
    if isinstance(default, bool | int | float):
        return typed(text, type(default), what)
    for kind in (int, float):
        with contextlib.suppress(UsageError):
            return typed(text, kind, what)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without a signature
        return None


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder on the import path, first."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"
