"""Twenty real images of each of five datasets, which come with foolbox: `samples/cifar10`. Nothing is downloaded.

Source: the package foolbox (MIT licence), whose files are called {dataset}_{index}_{label}.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from robustkit.datasets.images import Framing, ImageFiles
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments
from robustkit.spec import suggest

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "mnist": 10, "fashionMNIST": 10}
_GREY = ("mnist", "fashionMNIST")


class Samples:
    """The source of sample images."""

    def names(self) -> Sequence[str]:
        """The five datasets."""
        return tuple(_CLASSES)

    def make(self, name: str, options: Mapping[str, str]) -> ImageFiles:
        """The twenty images of a dataset; ImageNet's are resized to 256 and cropped to 224 (bilinear) by default.

        Raises:
            UsageError: for an unknown name or option, or if foolbox is not installed.
        """
        if name not in _CLASSES:
            raise UsageError(suggest(name, _CLASSES, "samples"))
        own = {"resize": 256, "crop": 224} if name == "imagenet" else {}
        framing = Framing(**{**own, **typed_arguments(_settings, options, f"samples/{name}")}, grey=name in _GREY)
        files = sorted(_folder().glob(f"{name}_*"))
        if not files:
            raise UsageError(f"the installed foolbox has no {name} images; install its release from the package index")
        labels = [int(file.stem.rpartition("_")[2]) for file in files]
        return ImageFiles(f"samples/{name}", files, labels, _CLASSES[name], framing)


def _settings(resize: int = 0, crop: int = 0) -> None:
    """What may be set."""


def _folder() -> Path:
    """The data folder of foolbox, which need not be imported."""
    spec = find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("samples/… are images of the package foolbox: pip install 'robustkit-bench[attacks]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"
