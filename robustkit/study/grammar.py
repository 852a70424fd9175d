"""The grammar of a study's TOML file, which docs/studies.md describes. Only its form is looked at here: no torch.

Every key is known, every value has its type, every axis has at least one label and their product at least one cell.
"""

import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError
from robustkit.spec import DEFAULT_EPS, number, suggest
from robustkit.study.plan import NO_DEFENSE, Cell, Study, Threat, Transfer, matches

NORMS = tuple(DEFAULT_EPS)
_AXES = ("model", "defense", "attack", "norm", "eps")
_TRANSFER = ("surrogate", "surrogates", "victim", "attack")  # as in the file of `robustkit transfer --config`


def read(file: Path, changes: Mapping[str, Any] | None = None) -> Study:
    """The study in a TOML file, with `changes` of its top-level keys.

    Raises:
        UsageError: if it cannot be read, or says what no study can.
    """
    data = {**_toml(file), **(changes or {})}
    table = data.get("transfer")
    if isinstance(table, dict) and isinstance(table.get("config"), str):
        data = _with_config(data, table, file.parent / table["config"])
    try:
        return parse(data, file.stem)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} cannot be read as TOML: {error}; a study is a file as in docs/studies.md") from None


def _with_config(data: Mapping[str, Any], table: Mapping[str, Any], config: Path) -> dict[str, Any]:
    """The study with a file of `robustkit transfer --config` for what it does not say itself."""
    found = {key.replace("-", "_"): value for key, value in _toml(config).items()}
    if "seed" in found:
        found["seeds"] = found.pop("seed")
    ours = {key: found.pop(key) for key in _TRANSFER if key in found}
    return {**found, **data, "transfer": {**ours, **{key: v for key, v in table.items() if key != "config"}}}


def parse(data: Mapping[str, Any], name: str) -> Study:
    """The study that a TOML file's content says.

    Raises:
        UsageError: for an unknown key, a value of another type, an empty axis, or a product without a cell.
    """
    for key in data:
        if key not in _KEYS:
            raise UsageError(suggest(key, _KEYS, "key"))
    values = {key: check(data[key], key) for key, check in _KEYS.items() if key in data}
    if "dataset" not in values:
        raise UsageError("dataset is needed, such as dataset = 'digits'")
    if "n" in values and "indices" in values:
        raise UsageError("give n or indices, not both")
    if ("models" in values) != ("attacks" in values) or not {"models", "transfer"} & set(values):
        raise UsageError("there is nothing to run: give models and attacks, or transfer, or all three")
    study = Study(
        name=name,
        title=values.get("title", name),
        provenance=values.get("provenance", ""),
        data=values["dataset"],
        threats=_threats(values.get("norm"), data.get("eps")),
        seeds=values.get("seeds", (0,)),
        models=values.get("models", {}),
        defenses=values.get("defenses", {NO_DEFENSE: ()}),
        attacks=values.get("attacks", {}),
        skip=values.get("skip", ()),
        transfer=values.get("transfer"),
        threads=values.get("threads"),
        carry=values.get("carry", False),
        options={key: values[key] for key in _OPTIONS if key in values},
        source=dict(data),
    )
    _check_product(study)
    return study


def _check_product(study: Study) -> None:
    whole = [
        Cell(model, defense, attack, threat.norm, threat.eps, 0)
        for model in study.models
        for defense in study.defenses
        for attack in study.attacks
        for threat in study.threats
    ]
    known = {axis: {getattr(cell, axis) for cell in whole} for axis in _AXES}
    for rule in study.skip:
        for axis, label in rule.items():
            if label not in known[axis]:
                raise UsageError("skip: " + suggest(label, known[axis], axis))
        if not any(matches(rule, cell) for cell in whole):
            raise UsageError(f"skip: no cell is {', '.join(f'{axis} {label}' for axis, label in rule.items())}")
    if whole and not study.cells():
        raise UsageError("skip leaves no cell of the product")


def _threats(norm: str | None, eps: Any) -> tuple[Threat, ...]:
    if isinstance(eps, dict):
        if norm is not None:
            raise UsageError("eps is a table by norm, which leaves norm nothing to say; leave it out")
        for key in eps:
            if key not in NORMS:
                raise UsageError("eps: " + suggest(key, NORMS, "norm"))
        by_norm = eps
    else:
        norm = norm or NORMS[0]
        by_norm = {norm: DEFAULT_EPS[norm] if eps is None else eps}
    found = tuple(Threat(name, text) for name, value in by_norm.items() for text in _radii(value, name))
    if not found:
        raise UsageError("eps is empty; write eps = ['2/255', '8/255']")
    return found


def _radii(value: Any, norm: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    texts = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise _wrong("eps", "a number or text such as '8/255', or a list of these", item)
        texts.append(item.strip() if isinstance(item, str) else repr(item))
    values = [number(text) for text in texts]
    if not texts or any(b <= a for a, b in itertools.pairwise(values)):
        raise UsageError(f"eps of {norm} must be radii that grow, such as ['2/255', '8/255'], not {value!r:.60}")
    return texts


def _wrong(key: str, wanted: str, value: object) -> UsageError:
    return UsageError(f"{key} must be {wanted}, not {value!r:.60}")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(key, "text that is not empty", value)
    return value.strip()


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, "true or false", value)
    return value


def _whole(value: Any, key: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _wrong(key, f"a whole number of at least {least}", value)
    return value


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    def check(value: Any, key: str) -> str:
        if value not in choices:
            raise UsageError(f"{key}: " + suggest(str(value), choices, key))
        return str(value)

    return check


def _batch(value: Any, key: str) -> int | str:
    return "auto" if value == "auto" else _whole(value, key)


def _target(value: Any, key: str) -> str | int:
    return _text(value, key) if isinstance(value, str) else _whole(value, key, 0)


def _indices(value: Any, key: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return _text(value, key)
    if not isinstance(value, list) or not value:
        raise _wrong(key, "text such as '0-199,400' or a list of whole numbers", value)
    return tuple(_whole(item, key, 0) for item in value)


def _seeds(value: Any, key: str) -> tuple[int, ...]:
    found = tuple(_whole(item, key, 0) for item in (value if isinstance(value, list) else [value]))
    if not found or len(set(found)) != len(found):
        raise UsageError(f"{key} must name at least one seed, and none twice")
    return found


def _specs(value: Any, key: str) -> dict[str, str]:
    """Specs by label: a table, or a list or a single one, whose specs are their own labels."""
    items = value if isinstance(value, list) else [value]
    table = value if isinstance(value, dict) else {_text(item, key): item for item in items}
    if not table or (isinstance(value, list) and len(table) < len(value)):
        raise UsageError(f"{key} must name at least one, and none twice")
    return {_text(label, key): _text(spec, f"{key}.{label}") for label, spec in table.items()}


def _defenses(value: Any, key: str) -> dict[str, tuple[str, ...]]:
    """Defenses by label: each a spec, "none", or a list of specs that stand one before the other."""
    table = value if isinstance(value, dict) else {spec: spec for spec in _specs(value, key)}
    if not table:
        raise UsageError(f"{key} must name at least one, such as none = 'none'")
    found = {}
    for label, given in table.items():
        specs = tuple(_text(item, f"{key}.{label}") for item in (given if isinstance(given, list) else [given]))
        if not specs or (NO_DEFENSE in specs and len(specs) > 1):
            raise UsageError(f"{key}.{label} must be 'none', a defense, or a list of defenses")
        if (label == NO_DEFENSE) != (specs == (NO_DEFENSE,)):
            raise UsageError(f"{key}.{label}: 'none' is the label of no defense, and its only one")
        found[label] = () if label == NO_DEFENSE else specs
    return found


def _skip(value: Any, key: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(rule, dict) and rule for rule in value):
        raise _wrong(key, "a list of tables such as { model = 'a', defense = 'jpeg' }", value)
    for rule in value:
        for axis, label in rule.items():
            if axis not in _AXES:
                raise UsageError(f"{key}: " + suggest(axis, _AXES, "axis"))
            _text(label, f"{key}.{axis}")
    return tuple(value)


def _transfer(value: Any, key: str) -> Transfer:
    if not isinstance(value, dict):
        raise _wrong(key, "a table", value)
    for name in value:
        if name not in (*_TRANSFER, "config"):
            raise UsageError(f"{key}: " + suggest(name, (*_TRANSFER, "config"), "key"))
    for name in ("surrogate", "victim", "attack"):
        if name not in value:
            raise UsageError(f"{key}.{name} is needed: a table of names and specs")
    named = {name: _specs(value[name], f"{key}.{name}") for name in ("surrogate", "victim", "attack")}
    return Transfer(named["surrogate"], named["victim"], named["attack"], _sets(value, key))


def _sets(value: Mapping[str, Any], key: str) -> dict[str, tuple[str, ...]] | None:
    if "surrogates" not in value:
        return None
    sets, where = value["surrogates"], f"{key}.surrogates"
    if not isinstance(sets, dict) or not sets:
        raise _wrong(where, "a table of sets, such as both = ['a', 'b']", sets)
    for name, members in sets.items():
        if not isinstance(members, Sequence) or isinstance(members, str):
            raise _wrong(f"{where}.{name}", "a list of surrogates", members)
    return {name: tuple(_text(m, f"{where}.{name}") for m in members) for name, members in sets.items()}


_OPTIONS: Mapping[str, Callable[[Any, str], Any]] = {
    "n": _whole, "indices": _indices, "target": _target, "outputs": _one_of("logits", "probs"), "draws": _whole,
    "trust": _flag, "device": _text, "batch_size": _batch, "shard_size": _whole, "tile": _whole, "doctor": _flag,
    "audit": _flag, "save_adversarial": _flag,
}  # fmt: skip
_KEYS: Mapping[str, Callable[[Any, str], Any]] = {
    "title": _text, "provenance": _text, "dataset": _text, "norm": _one_of(*NORMS), "eps": lambda value, key: value,
    "seeds": _seeds, "models": _specs, "defenses": _defenses, "attacks": _specs, "skip": _skip, "transfer": _transfer,
    "threads": _whole, "carry": _flag, **_OPTIONS,
}  # fmt: skip
