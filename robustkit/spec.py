r"""The one grammar for everything named on a command line or in a file, and the identity of a job.

    [source/]name[:key=value[,key=value…]]        pgd:steps=40,restarts=5
    what begins with . / ~ or C:\ is a file        ./net.safetensors:arch=timm/resnet18
    parentheses nest a spec inside a value        ensemble/(timm/a)+(file/b.pt):mean=probs
    + makes a list

Nothing is evaluated: values stay text until a dataclass's fields give them a type.
"""

import dataclasses
import hashlib
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from robustkit.errors import UsageError
from robustkit.words import nearest

STREAMS = 2  # random numbers by (seed, place in the list, stream, sample); 1, in old records: the attack's whole name
DEFAULT_DRAWS = 10  # that vote on a sample of a randomised model
_CLOSING = {"(": ")", "[": "]"}


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm as it is told; `robustkit.numerics.norms` computes in it.

    Attributes:
        written: its name in prose, and in other libraries.
        unit: what eps counts.
        eps: the default, as text.
        least: an eps below it lets nothing change.
        most: an eps above it, in widths of the pixels' range, is no bound at all.
    """

    written: str
    unit: str
    eps: str
    least: float = 0.0
    most: float = math.inf


NORMS: Mapping[str, Norm] = {  # the eps are RobustBench's, and 10 pixels
    "linf": Norm("Linf", "pixel values in [0,1]", "8/255", most=1.0),
    "l2": Norm("L2", "pixel values in [0,1]", "0.5"),
    "l1": Norm("L1", "pixel values in [0,1]", "12"),
    "l0": Norm("L0", "whole pixels", "10", least=1.0),
}
DEFAULT_EPS = {name: norm.eps for name, norm in NORMS.items()}


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed name: `source` is empty for a bare name, `options` are untyped text."""

    source: str
    name: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        plain = not self.source or (self.source == "file" and is_path(self.name))
        head = self.name if plain else f"{self.source}/{self.name}"
        return head + _options_text(self.options)


def is_path(text: str) -> bool:
    """Whether a text is a path by how it begins: with . / or ~, or a drive's letter as on Windows."""
    return text[:1] in (".", "/", "~") or (text[:1].isalpha() and text[1:3] in (":/", ":\\"))


def looks_like_file(text: str) -> bool:
    """Whether a name without a path before it ends as files of networks and data do."""
    return text.endswith((".npz", ".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2", ".jit"))


def parse(text: str) -> Spec:
    """Parse one spec.

    Raises:
        UsageError: for an empty name, unbalanced parentheses, or an option that is not key=value.
    """
    text = unwrap(text.strip())
    head, *tail = split(text, ":")
    if head.startswith("python/") and tail and "=" not in tail[0] and tail[0].strip():
        head = f"{head}.{tail.pop(0)}"  # module:name, as entry points are written
    if is_path(text):
        # A file's path may hold colons of its own: options start at the last ':' that has a '=' behind it.
        while len(tail) > 1 or (tail and "=" not in tail[0]):
            head = f"{head}:{tail.pop(0)}"
        return Spec("file", head, _options(text, tail))
    if len(tail) > 1:
        raise UsageError(f"{text!r} has more than one ':'; write name:key=value,key=value")
    if not head:
        raise UsageError(f"{text!r} names nothing; write [source/]name[:key=value,…]")
    source, slash, name = head.partition("/")
    if not slash or head.startswith("("):
        return Spec("", unwrap(head), _options(text, tail))
    return Spec(source, name, _options(text, tail))


def split(text: str, separator: str) -> list[str]:
    r"""Split at separators outside parentheses; the ':' behind a drive's letter (`C:\nets`) is none.

    Raises:
        UsageError: for unbalanced parentheses.
    """
    parts, depth, start = [], [], 0
    for i, char in enumerate(text):
        if char in _CLOSING:
            depth.append(_CLOSING[char])
        elif depth and char == depth[-1]:
            depth.pop()
        elif char in ")]":
            raise UsageError(f"{text!r} closes {char!r} at position {i} without opening it")
        elif char == separator and not depth and not (char == ":" and text[i + 1 : i + 2] in ("/", "\\")):
            parts.append(text[start:i])
            start = i + 1
    if depth:
        raise UsageError(f"{text!r} lacks a closing {depth[-1]!r}")
    return [*parts, text[start:]]


def unwrap(text: str) -> str:
    """Drop one pair of parentheses, if it is one pair that stands around the whole text."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


def listed(text: str) -> list[str]:
    """The items of a '+' list, without the parentheses around each."""
    return [unwrap(item) for item in split(text, "+")]


def _options(text: str, tail: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in split(tail[0], ",") if tail and tail[0] else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            code = f" (a callable of yours is python/{text.replace(':', '.')})" if item.isidentifier() else ""
            raise UsageError(f"{item!r} in {text!r} is no option; write key=value{code}")
        if key.strip() in options:
            raise UsageError(f"option {key.strip()!r} is given twice in {text!r}")
        options[key.strip()] = unwrap(value.strip())
    return options


def _options_text(options: Mapping[str, str]) -> str:
    def quoted(value: str) -> str:
        plain = value == value.strip() and unwrap(value) == value and not any(c in value for c in ":,+=")
        return value if plain else f"({value})"

    return ":" + ",".join(f"{k}={quoted(v)}" for k, v in options.items()) if options else ""


def suggest(given: str, known: Iterable[str], what: str) -> str:
    """The text of an unknown-name error: what was given, what is close, what there is."""
    names = sorted(known)
    listing = ", ".join(names[:40]) + (" …" if len(names) > 40 else "")
    return f"no {what} called {given!r}{meant(given, names) or '.'} There are: {listing or 'none'}"


def meant(given: str, known: Iterable[str]) -> str:
    """`; did you mean A or B?` behind a wrong word; empty if nothing is near it."""
    close = nearest(given, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def number(text: str) -> float:
    """A number written as 0.031, 1e-3 or 8/255.

    Raises:
        UsageError: if it is neither, or not finite.
    """
    try:
        value = float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{text!r} is no number; write 8/255 or 0.031") from None
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not finite; write 8/255 or 0.031")
    return value


def written(eps: float) -> str:
    """A radius as one would write it, and `number` reads it back to the digit: 0.1, 8/255, 1/3."""
    short = f"{eps:.6g}"
    if float(short) == eps:
        return short
    close = Fraction(eps).limit_denominator(2040)
    if close.numerator / close.denominator != eps:
        return repr(eps)
    pixels = 255 % close.denominator == 0 and close.denominator > 5
    return f"{close * 255}/255" if pixels else str(close)


def whole(value: Any, what: str, least: int | None = 1) -> int:
    """A number that counts something, or a seed, as an int; it may be numpy's or a tensor.

    Raises:
        UsageError: if it is no whole number of at least `least`: a fraction, text, None, a truth value.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise UsageError(f"{what} must be a whole number{bound}, not {value!r}")
    return found


def check_types(settings: Any, what: str) -> None:
    """Refuse a settings dataclass made in Python with a value that its field's type does not allow.

    Python lets `steps=2.5` stand where an int is declared. Looked at are int, float, bool and Literal, optional or not.

    Raises:
        UsageError: for the first such field.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        optional = type(None) in typing.get_args(hint)
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if optional else [hint]
        if (optional and value is None) or len(kinds) > 1:
            continue
        name, kind = f"{what}: {field.name}", kinds[0]
        if kind is int:
            whole(value, name, None)
        elif kind is float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise UsageError(f"{name} must be a number, not {value!r}")
        elif kind is bool and str(value) not in ("True", "False"):
            raise UsageError(f"{name} must be True or False, not {value!r}")
        elif typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            raise UsageError(f"{name} must be one of {', '.join(map(str, typing.get_args(kind)))}, not {value!r}")


def build(factory: Callable[..., Any], options: Mapping[str, str], what: str) -> Any:
    """Make a settings dataclass from text options, typed by its fields.

    `factory` is the class, or a preset: a function of nothing that returns one, some of whose settings are overridden.

    Raises:
        UsageError: for a key that the dataclass does not have, or a value that is not of the field's type.
    """
    preset = None if isinstance(factory, type) else factory()
    settings_type: Any = factory if preset is None else type(preset)
    if not dataclasses.is_dataclass(settings_type):
        raise UsageError(
            f"{what} is no dataclass of settings ({settings_type.__name__}); write @dataclass(frozen=True)"
        )
    fields = {f.name: f for f in dataclasses.fields(settings_type) if f.init}
    hints = typing.get_type_hints(settings_type)
    values = {}
    for key, text in options.items():
        if key not in fields:
            raise UsageError(f"{what}: " + suggest(key, fields, "option"))
        values[key] = typed(text, hints[key], f"{what}: {key}")
    try:
        return factory(**values) if preset is None else dataclasses.replace(preset, **values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what}: {error}") from error


def typed(text: str, hint: Any, what: str) -> Any:
    """A text as a bool, int, float (8/255 too), str, Literal, optional or tuple of these."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text not in map(str, arguments):
            names = [str(argument) for argument in arguments]
            raise UsageError(f"{what} must be one of {', '.join(names)}, not {text!r}{meant(text, names)}")
        return next(a for a in arguments if str(a) == text)
    if origin in (types.UnionType, typing.Union):
        if text.lower() in ("none", "null") and type(None) in arguments:
            return None
        return typed(text, next(a for a in arguments if a is not type(None)), what)
    if origin is tuple:
        return tuple(typed(item, arguments[0], what) for item in listed(text))
    if hint is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise UsageError(f"{what} must be true or false, not {text!r}")
        return text.lower() in ("true", "yes", "1")
    if hint is int:
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{what} must be a whole number, not {text!r}") from None
    if hint is float:
        try:
            return number(text)
        except UsageError as error:
            raise UsageError(f"{what}: {error}") from None
    return text


def settings(value: Any) -> dict[str, str]:
    """The settings of a dataclass that differ from its defaults, as option text in the order of its fields."""
    changed = {}
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        if field.default is not dataclasses.MISSING and current == field.default:
            continue
        changed[field.name] = text_of(current)
    return changed


def text_of(value: Any) -> str:
    """A setting as option text; `typed` reads it back."""
    if str(value) in ("True", "False"):  # numpy's too
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(text_of(item) for item in value)
    fraction = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    return repr(float(value)) if fraction else str(value)


def limit(eps: float) -> float:
    """The largest distance that still counts as within eps."""
    return eps * (1 + 1e-6) + 1e-7


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """All that decides a run's numbers; its hash is the run's identity. Plain data, JSON both ways.

    `carried` is the identity of the run at a smaller eps whose broken samples count as broken here, or empty. `draws`
    is how many vote on a sample of a randomised model; 0 of any other. `defense` names what stands before the model,
    `noisy_sha256` is the probe images' answer of a randomised model under fixed noise, `gradient_signs` where the
    gradients point there. `streams` is how random numbers are keyed, see `STREAMS`. `certify` says how samples are
    proved; empty, it is left out of the JSON, so that a run without it is what it was before there were proofs.

    The batch size, the shard size and the folder are not part of it, since they change nothing.
    """

    model: str
    model_sha256: str
    probe_sha256: str
    data: str
    data_sha256: str
    indices: tuple[int, ...]
    attack: str
    attacks: tuple[str, ...]
    attack_sources: Mapping[str, str]
    norm: str
    eps: float
    target: str
    seed: int
    outputs: str
    quantize: str
    carried: str
    device: str
    threads: int
    tile: int
    precision: str
    versions: Mapping[str, str]
    draws: int = 0
    defense: str = ""
    noisy_sha256: str = ""
    gradient_signs: str = ""
    streams: int = STREAMS
    certify: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON data, with its own hash under `id`."""
        data: dict[str, Any] = json.loads(canonical(dataclasses.asdict(self)))
        if not self.certify:
            del data["certify"]
        return {**data, "id": digest(data)}

    @property
    def id(self) -> str:
        """The identity: sha256 of everything above."""
        return str(self.to_json()["id"])


def parse_indices(text: str) -> tuple[int, ...]:
    """Sample indices from `0-199,400` or a JSON list such as `[3, 5]`.

    Raises:
        UsageError: if it is neither, names an index twice, or a negative one.
    """
    text = text.strip()
    try:
        if text.startswith("["):
            found = json.loads(text)
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
                raise ValueError
        else:
            found = []
            for part in text.split(","):
                first, dash, last = part.strip().partition("-")
                if dash and int(last) < int(first):
                    raise ValueError
                found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    except ValueError:
        raise UsageError(f"--indices {text!r} is no list of samples; write 0-199,400 or a JSON list") from None
    if not found or min(found) < 0:
        raise UsageError(f"--indices {text!r} must name at least one sample, none negative")
    if len(set(found)) != len(found):
        raise UsageError(f"--indices {text!r} names a sample twice")
    return tuple(found)
