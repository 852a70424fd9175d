"""What data sets call their classes, by class number."""

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from robustkit.api import Dataset
from robustkit.records.about import class_names

_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
# As their publishers' files name them, in the order of their labels.
NAMES: Mapping[str, tuple[str, ...]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(name.replace("_", " ") for name in _CIFAR100.split()),
    "fashion-mnist": (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip


def names_of(dataset: Dataset) -> tuple[str, ...]:
    """The names of a data set's classes, which it may offer as `class_names`; empty where they are only numbers."""
    found = class_names(getattr(dataset, "class_names", ()) or NAMES.get(dataset.name.removesuffix("-c"), ()))
    known = len(found) if not dataset.classes else dataset.classes
    return found if len(found) == known and any(name != str(place) for place, name in enumerate(found)) else ()


@cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1,000 words, read from the installed torchvision, which is not imported; empty without it."""
    spec = find_spec("torchvision")
    files = [Path(root) / "models/_meta.py" for root in (spec.submodule_search_locations or ())] if spec else []
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in tree.body:
            named = isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets]
            if named == ["_IMAGENET_CATEGORIES"] and isinstance(node, ast.Assign):
                found = class_names(ast.literal_eval(node.value))
                return found if len(found) == 1000 else ()
    return ()
