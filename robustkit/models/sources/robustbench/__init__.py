"""RobustBench's zoo: `robustbench/NAME:dataset=cifar10,threat=Linf`. The networks normalise [0,1] images inside."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint
from robustkit.models.sources.evaluating import UndecidedNameError, evaluation
from robustkit.models.sources.robustbench import facts, library, weights
from robustkit.models.sources.robustbench.library import Entry
from robustkit.spec import Spec, listed, suggest

_OPTIONS = ("dataset", "threat", "weights", "path")
_PROBABILITIES = (  # means of their members' softmaxes
    "Chen2020Adversarial",
    "Diffenderfer2021Winning_LRR_CARD_Deck",
    "Diffenderfer2021Winning_Binary_CARD_Deck",
)


class Robustbench:
    """Networks of RobustBench by name, with these options; none is needed where the name is unique.

    dataset, threat: cifar10, cifar100 or imagenet; Linf, L2 or corruptions. What is left out is taken from the
        evaluation that the network is loaded for, if there is one.
    weights: `pretrained`, or `random` for an untrained network (always the same), without a download.
    path: a checkpoint of yours instead of the zoo's; the files of an ensemble as (a.pt)+(b.pt).
    """

    def names(self) -> Sequence[str]:
        """All networks, as NAME or, where several share it, NAME:dataset=…,threat=… ."""
        shared = Counter(entry.name for entry in library.entries())
        return [entry.name if shared[entry.name] == 1 else _full(entry) for entry in library.entries()]

    def card(self, name: str, options: Mapping[str, str]) -> ModelCard:
        """What is known of a network without loading it.

        Raises:
            UsageError: for an unknown name or option, or a name that several networks share.
        """
        _check(name, options)
        return _card(resolve(name, options), options)

    def load(self, name: str, options: Mapping[str, str]) -> tuple[nn.Module, ModelCard]:
        """The network in eval mode and its card.

        Raises:
            UsageError: see `card`; also if its weights cannot be had, are broken, not trusted, or do not fit.
        """
        _check(name, options)
        entry = resolve(name, options)
        card = _card(entry, options)
        if options.get("weights") == "random":
            module, files, notes = library.seeded(entry), [], []
        else:
            if options.get("path"):
                files = _own_files(options["path"])
                found = [checkpoint.read(file) for file in files]
            else:
                files, found = map(list, zip(*map(weights.fetched, weights.remotes(entry)), strict=True))
            module = library.seeded(entry)
            notes = weights.fill(module, entry, found)
        mean, std = normalisation(module)
        sha256 = "+".join(_sha256(file) for file in files)
        notes = [card.notes, *notes]
        return module.eval(), replace(card, mean=mean, std=std, sha256=sha256, notes="; ".join(filter(None, notes)))


def resolve(name: str, options: Mapping[str, str]) -> Entry:
    """The network of a name, told from others of that name by its options, then by the evaluation that it is for.

    Raises:
        UsageError: if there is none, or more than one.
    """
    every = library.entries()
    named = [entry for entry in every if entry.name == name]
    if not named:
        raise UsageError(suggest(name, {entry.name for entry in every}, "network of robustbench"))
    found = [e for e in named if all(_same(getattr(e, key), options.get(key, "")) for key in ("dataset", "threat"))]
    if not found:
        raise UsageError(f"robustbench/{name} is not there with these options; there are: {_choices(named)}")
    dataset, norm = evaluation()
    dataset, _, corrupted = dataset.lower().partition("-")  # cifar10-c
    found = [entry for entry in found if entry.dataset == dataset] or found
    found = [entry for entry in found if entry.threat.lower() == ("corruptions" if corrupted == "c" else norm)] or found
    if len(found) > 1:
        raise UndecidedNameError(f"several networks of robustbench are called {name}; name one: {_choices(found)}")
    return found[0]


def normalisation(module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std by which the network itself normalises its input, read off its buffers; empty where it has none."""
    children = dict(module.named_children())
    for part in (module, *(children[key] for key in ("normalize", "normalization", "0") if key in children)):
        for mean, std in (("mu", "sigma"), ("mean", "std")):
            pair = getattr(part, mean, None), getattr(part, std, None)
            if all(isinstance(value, Tensor) and value.numel() == 3 for value in pair):
                first, second = (tuple(round(v, 6) for v in torch.as_tensor(t).flatten().tolist()) for t in pair)
                return first, second
    return (), ()


def _check(name: str, options: Mapping[str, str]) -> None:
    for key in options:
        if key not in _OPTIONS:
            raise UsageError(f"robustbench/{name}: " + suggest(key, _OPTIONS, "option"))
    if options.get("weights", "pretrained") not in ("pretrained", "random"):
        raise UsageError(f"robustbench/{name}: weights must be pretrained or random, not {options['weights']!r}")
    if options.get("weights") == "random" and options.get("path"):
        raise UsageError(f"robustbench/{name}: weights=random takes no path=")


def _card(entry: Entry, options: Mapping[str, str]) -> ModelCard:
    known = facts.known().get((entry.dataset, entry.threat, entry.name))
    notes = [f"{column.lower()} {value}" for column, value in known.columns] if known else []
    notes = [f"RobustBench reports: {', '.join(notes)}"] if notes else []
    if entry.preprocessing:
        notes.append(f"images as {entry.preprocessing}")
    if entry.name in _PROBABILITIES:
        notes.append("returns probabilities: evaluate it with --outputs probs")
    if options.get("weights") == "random":
        notes.insert(0, "RANDOM WEIGHTS, untrained: for tests, and for questions of architecture only")
    elsewhere = entry.torchvision or entry.name == "AlexNet"  # torchvision's weights, of which the LICENSE says nothing
    return ModelCard(
        name=entry.name if options.get("weights") != "random" else f"{entry.name} (random weights)",
        source="robustbench",
        dataset=entry.dataset,
        classes=entry.classes,
        input_shape=entry.input_shape,
        threat=known.threat if known else entry.threat,
        licence="" if elsewhere or options.get("path") else facts.licence(entry.dataset, entry.threat, entry.name),
        paper=known.paper if known else "",
        notes="; ".join(notes),
    )


def _own_files(path: str) -> list[Path]:
    files = [Path(one).expanduser() for one in ([path] if Path(path).expanduser().is_file() else listed(path))]
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no file {file}; path= is a checkpoint saved by torch")
    return files


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _same(value: str, wanted: str) -> bool:
    return not wanted or value.lower() == wanted.lower()


def _full(entry: Entry) -> str:
    return str(Spec("", entry.name, {"dataset": entry.dataset, "threat": entry.threat}))


def _choices(found: Sequence[Entry]) -> str:
    return ", ".join(f"robustbench/{_full(entry)}" for entry in found)
