"""VNN-LIB, the part of version 1 that classification needs: a box of inputs, and which outputs would violate.

    (declare-const X_0 Real) …            (assert (<= X_0 0.6)) (assert (>= X_0 0.4)) …
    (assert (or (and (>= Y_1 Y_0)) (and (>= Y_2 Y_0))))

An instance asks for an input of the box whose outputs satisfy what is asserted of them. Anything else (several boxes,
sums, outputs beside numbers) is refused by name. No torch is needed to read one.
"""

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError

_DECLARED = re.compile(r"([XY])_(\d+)")


@dataclass(frozen=True, slots=True)
class Instance:
    """The box of each input, and the violation: any of `cases`, each a list of pairs (i, j): output i is at least j."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    outputs: int
    cases: tuple[tuple[tuple[int, int], ...], ...]


def read(file: Path) -> Instance:
    """The instance in a .vnnlib file, maybe packed as .gz.

    Raises:
        UsageError: if it cannot be read, or asks something else than classification does; the message says what.
    """
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    return parse(text, str(file))


def parse(text: str, where: str = "the instance") -> Instance:
    """The instance that a text is; see `read`.

    Raises:
        UsageError: see `read`.
    """
    sizes = {"X": 0, "Y": 0}
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    cases: list[tuple[tuple[int, int], ...]] = [()]
    for form in _forms(text, where):
        match form:
            case ["declare-const", str(name), "Real"] if found := _DECLARED.fullmatch(name):
                sizes[found[1]] = max(sizes[found[1]], int(found[2]) + 1)
            case ["assert", list(claim)]:
                if not _input_bound(claim, low, high):
                    met = _cases(claim, where)
                    cases = [(*known, *more) for known in cases for more in met]
            case _:
                raise UsageError(f"{where}: {_said(form)} is no declaration of X_i or Y_i and no assertion")
    n, outputs = sizes["X"], sizes["Y"]
    if missing := [i for i in range(n) if i not in low or i not in high]:
        raise UsageError(f"{where}: X_{missing[0]} has no lower and upper bound")
    if not n or not outputs or cases == [()]:
        raise UsageError(f"{where}: it declares {n} inputs and {outputs} outputs and asserts nothing of the outputs")
    if over := [i for i in (*low, *high) if i >= n]:
        raise UsageError(f"{where}: X_{over[0]} is not declared")
    if over := [i for case in cases for pair in case for i in pair if i >= outputs]:
        raise UsageError(f"{where}: Y_{over[0]} is not declared")
    if empty := [i for i in range(n) if low[i] > high[i]]:
        raise UsageError(f"{where}: the box is empty: X_{empty[0]} lies between {low[empty[0]]} and {high[empty[0]]}")
    return Instance(tuple(low[i] for i in range(n)), tuple(high[i] for i in range(n)), outputs, tuple(cases))


def _input_bound(claim: Sequence[Any], low: dict[int, float], high: dict[int, float]) -> bool:
    """Note what is claimed of one input, if that is what it is: the tighter of two bounds holds."""
    match claim:
        case ["<=" | ">=" as sign, str(left), str(right)]:
            if left.startswith("X_") and (value := _number(right)) is not None:
                below = sign == "<="
            elif right.startswith("X_") and (value := _number(left)) is not None:
                left, below = right, sign == ">="
            else:
                return False
            found = _DECLARED.fullmatch(left)
            if found is None:
                return False
            place = int(found[2])
            if below:
                high[place] = min(value, high.get(place, math.inf))
            else:
                low[place] = max(value, low.get(place, -math.inf))
            return True
    return False


def _cases(claim: Any, where: str) -> list[tuple[tuple[int, int], ...]]:
    """A claim on outputs as its cases, in each of which all of some comparisons hold."""
    match claim:
        case ["or", *parts] if parts:
            return [case for part in parts for case in _cases(part, where)]
        case ["and", *parts] if parts:
            found: list[tuple[tuple[int, int], ...]] = [()]
            for part in parts:
                found = [(*known, *more) for known in found for more in _cases(part, where)]
            return found
        case ["<=" | ">=" as sign, str(left), str(right)]:
            places = [int(f[2]) for name in (left, right) if (f := _DECLARED.fullmatch(name)) and f[1] == "Y"]
            if len(places) == 2:
                return [((places[0], places[1]) if sign == ">=" else (places[1], places[0]),)]
    raise UsageError(
        f"{where}: {_said(claim)} is not supported; supported are bounds of single inputs, and comparisons of two "
        "outputs joined by or and and"
    )


def _forms(text: str, where: str) -> Iterator[Any]:
    """The forms of a text in parentheses, one after another; `;` begins a comment."""
    stack: list[list[Any]] = []
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)):
        if token == "(":
            stack.append([])
        elif not stack:
            raise UsageError(f"{where} is no VNN-LIB: {token!r} stands outside of parentheses")
        elif token != ")":
            stack[-1].append(token)
        else:
            done = stack.pop()
            if stack:
                stack[-1].append(done)
            else:
                yield done
    if stack:
        raise UsageError(f"{where} is no VNN-LIB: a parenthesis is not closed")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _said(form: Any) -> str:
    text = f"({' '.join(map(_said, form))})" if isinstance(form, list) else str(form)
    return text if len(text) <= 60 else f"{text[:59]}…"
