"""What the installed robustbench says of its networks: papers and accuracies in its README, licences in its LICENSE.

Its wheel lacks the files with these facts (`model_info/`), but its metadata holds both texts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

_DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
_HEADING = re.compile(r"(#{3,4}) (.+?)\s*$")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_LICENCE = re.compile(r"- ([^,]+), ([^,]+), ([^:,]+): ([^;]+);")


@dataclass(frozen=True, slots=True)
class Facts:
    """A row of the README's tables."""

    paper: str
    threat: str  # the table's, such as "Linf, eps=8/255"
    columns: tuple[tuple[str, str], ...]  # the others, such as ("Clean accuracy", "89.69%")


@cache
def known() -> dict[tuple[str, str, str], Facts]:
    """By data set, threat model and name; empty where robustbench has no README."""
    return dict(_rows(_text("METADATA")))


def licence(dataset: str, threat: str, name: str) -> str:
    """The licence of a network's weights, or "" if the LICENSE does not say."""
    text = _text("LICENSE") or _text("licenses/LICENSE")
    for datasets, threats, pattern, kind in _LICENCE.findall(text):
        covered = {_DATASETS.get(each) for each in datasets.split("/")}
        whole = pattern == name or (pattern.endswith("*") and name.startswith(pattern[:-1]))
        if whole and dataset in covered and threat in threats.split("/"):
            return str(kind)
    return "MIT" if "weights of the models in the Model Zoo are released under the MIT license" in text else ""


@cache
def _text(file: str) -> str:
    try:
        return distribution("robustbench").read_text(file) or ""
    except PackageNotFoundError:
        return ""


def _rows(text: str) -> Iterator[tuple[tuple[str, str, str], Facts]]:
    """The rows of the tables below the headings of a data set and a threat model."""
    dataset, threat, header = "", "", []
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            level, title = heading.groups()
            dataset = _DATASETS.get(title, "") if level == "###" else dataset
            threat = title if level == "####" else ""
            continue
        if not (line.startswith("|") and dataset and threat):
            continue
        cells = [re.sub(r"<[^>]+>|\*", "", cell).strip() for cell in line.strip().strip("|").split("|")]
        if "Model ID" in cells:
            header = cells
        elif len(cells) == len(header) and cells[0].strip(":-"):
            row = dict(zip(header, cells, strict=True))
            key = "corruptions" if "orruptions" in threat else threat.partition(",")[0]
            paper = _LINK.search(row.get("Paper", ""))
            rest = tuple((k, v) for k, v in row.items() if k not in ("#", "Model ID", "Paper"))
            yield (
                (dataset, key, row["Model ID"]),
                Facts(
                    f"{paper[1].strip()}, {paper[2]}" if paper else "", key if key == "corruptions" else threat, rest
                ),
            )
