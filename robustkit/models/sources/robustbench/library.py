"""RobustBench's zoo as its package has it: imported although it does not import; networks made without downloads."""

import contextlib
import importlib
import importlib.util
import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustkit.errors import UsageError

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_SAME_NETWORK = "Salman2020Do_R50"  # as ImageNet's Standard_R50, whose own factory downloads weights when called
_IMPORTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of the zoo: a name is unique only together with its data set and threat model."""

    name: str
    dataset: str
    threat: str
    drive: tuple[str, ...]  # Google Drive ids, one for each file of weights
    hosted: str  # the timm name of one that is registered there instead, or ""
    preprocessing: str
    make: Callable[[], nn.Module] = field(repr=False, compare=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return CLASSES[self.dataset]

    @property
    def torchvision(self) -> bool:
        """Whether its weights are torchvision's."""
        return self.dataset == "imagenet" and self.name.startswith("Standard")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width that it was trained for."""
        size = 32 if self.dataset != "imagenet" else 288 if self.preprocessing == "Crop288" else 224
        return (3, size, size)


@cache
def entries() -> tuple[Entry, ...]:
    """All networks of the installed robustbench, in its order.

    Raises:
        UsageError: if it is not installed, or does not import.
    """
    timm, zoo = _import()
    found = []
    for dataset, threats in zoo.model_dicts.items():
        for threat, networks in threats.items():
            for name, facts in networks.items():
                # The name under which robustbench's load_model looks in timm before it looks in its own table.
                hosted = f"{name}_{dataset.value}_{threat.value}".lower().replace("-", "_")
                drive = facts["gdrive_id"] or ()
                found.append(
                    Entry(
                        name=name,
                        dataset=dataset.value,
                        threat=threat.value,
                        drive=(drive,) if isinstance(drive, str) else tuple(drive),
                        hosted=hosted if timm.is_model(hosted) else "",
                        preprocessing=facts.get("preprocessing") or "",
                        make=facts["model"],
                    )
                )
    return tuple(found)


def construct(entry: Entry) -> nn.Module:
    """The network on the CPU with random weights from torch's global generator; nothing is downloaded.

    Raises:
        UsageError: if the package cannot make it with what is installed.
    """
    with _quiet(), _NoGpu():
        try:
            if entry.hosted:
                import timm

                made = timm.create_model(entry.hosted, pretrained=False, num_classes=entry.classes)
            elif entry.torchvision:
                twin = next(e for e in entries() if (e.name, e.dataset) == (_SAME_NETWORK, entry.dataset))
                made = twin.make()
            else:
                made = entry.make()
        except ImportError as error:
            raise UsageError(f"robustbench/{entry.name} needs {error.name!r}: pip install {error.name}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"robustbench made {type(made).__name__} for {entry.name}, no network")
    for part in made.modules():  # a few keep constants, such as their mean, where module.to(device) does not see them
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                delattr(part, name)
                part.register_buffer(name, value, persistent=False)
    return made


class _NoGpu(TorchFunctionMode):
    """Leaves tensors where they are: one network asks for a GPU while it is made, whether there is one or not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.cuda else func(*args, **(kwargs or {}))


def seeded(entry: Entry) -> nn.Module:
    """The network with random weights, the same each time; the caller's generator is left alone.

    Raises:
        UsageError: see `construct`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return construct(entry)


def weights_url(entry: Entry) -> str:
    """Where a timm-hosted network's weights are."""
    import timm

    return str(timm.get_pretrained_cfg(entry.hosted).url)


def _import() -> tuple[Any, Any]:
    """The modules timm and robustbench.model_zoo."""
    try:
        with _IMPORTING, _quiet(), _stand_ins():
            return importlib.import_module("timm"), importlib.import_module("robustbench.model_zoo")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the models of robustbench need {error.name!r}, which is not installed: pip install 'robustkit-bench[zoo]'"
        ) from error
    except Exception as error:
        raise UsageError(
            f"the installed robustbench does not import ({type(error).__name__}: {error}); "
            "it was built for timm 1.0.9: pip install 'robustkit-bench[zoo]' 'timm==1.0.9'"
        ) from error


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules that robustbench 1.1.1 imports and nobody installs, for as long as it is being imported.

    Its wheel asks for `pkg_resources`, which setuptools 82 no longer has, and for `autoattack`, which PyPI does not
    have (it depends on `pyautoattack`, which has another interface). No network needs either: they are for its data
    loaders and its own benchmark. So each that is missing is stood in for, and taken away again, and the environment is
    as it was: a later `import autoattack` finds what is installed, or nothing. The whole package is imported, rather
    than the zoo without its parent, so that each class can be found under its own name by pickle and torch.compile.
    """
    made = {name: module for make in (_pkg_resources, _autoattack) for name, module in make().items()}
    missing = {name: module for name, module in made.items() if not _there(name.partition(".")[0])}
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name, module in missing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _there(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _pkg_resources() -> dict[str, ModuleType]:
    module = ModuleType("pkg_resources")

    def resource_filename(owner: str, path: str) -> str:
        """The file beside a module; all that robustbench asks for."""
        return str(Path(sys.modules[owner].__file__ or "").parent / path)

    vars(module).update(resource_filename=resource_filename)
    return {"pkg_resources": module}


def _autoattack() -> dict[str, ModuleType]:
    class Missing:
        """Takes the place of AutoAttack in robustbench.eval."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            raise ImportError("robustbench.benchmark needs the package autoattack; `robustkit eval` does not")

    module, state = ModuleType("autoattack"), ModuleType("autoattack.state")
    vars(module).update(AutoAttack=Missing, state=state)
    vars(state).update(EvaluationState=Missing)
    return {"autoattack": module, "autoattack.state": state}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what robustbench prints while it makes networks, and warnings of what it imports."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
