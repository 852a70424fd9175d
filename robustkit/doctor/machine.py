"""What robustkit finds on this machine: devices, versions, extras that are missing, the cache, broken plugins."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, get_args

from robustkit import DISTRIBUTION, __version__, cache, plugins

_PACKAGES = (
    "torch", "torchvision", "numpy", "timm", "transformers", "robustbench", "torchattacks", "foolbox", "pyautoattack",
)  # fmt: skip
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+).*;.*extra\s*==\s*['\"]([^'\"]+)['\"]")
NAMESAKE = "robustkit"
_NOT_FOR_USERS = ("test", "docs", "all")


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found.

    `missing` maps an extra to its packages that are not installed; `namesake` says that another project's distribution
    is mixed with this one.
    """

    devices: Sequence[str]
    versions: dict[str, str]
    missing: dict[str, list[str]]
    cache: str
    broken_plugins: Sequence[str]
    namesake: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        extras = {extra: {"packages": names, "install": install(extra)} for extra, names in self.missing.items()}
        return {
            "devices": list(self.devices),
            "versions": self.versions,
            "missing_extras": extras,
            "cache": self.cache,
            "broken_plugins": list(self.broken_plugins),
            "namesake": self.namesake,
        }


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def machine() -> Machine:
    """Look at this machine."""
    versions = {"robustkit": __version__, "python": platform.python_version()}
    versions |= {name: found for name in _PACKAGES if (found := _version(name))}
    return Machine(devices(), versions, missing_extras(), str(cache.home()), broken_plugins(), namesake())


def devices() -> list[str]:
    """What torch can compute on, the CPU first, with the number of threads and the version of CUDA."""
    import torch

    from robustkit.numerics import devices as accelerators

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    of = {"cuda": f", CUDA {torch.version.cuda}", "xpu": "", "mps": ""}
    for kind, count in accelerators.there().items():
        for device in (torch.device(kind, i) for i in range(count) if kind != "cpu"):
            free = accelerators.free_memory(device) / 2**30
            found.append(f"{device} ({accelerators.name(device)}, {free:.0f} GiB free{of[kind]})")
    return found


def missing_extras() -> dict[str, list[str]]:
    """The packages of each of robustkit's extras that are not installed."""
    missing: dict[str, list[str]] = {}
    requires = (metadata.requires(DISTRIBUTION) if _version(DISTRIBUTION) else None) or []  # it may run from a checkout
    for requirement in requires:
        match = _REQUIREMENT.match(requirement)
        if match is None or match[2] in _NOT_FOR_USERS or match[1] == DISTRIBUTION:
            continue
        if _version(match[1]) is None:
            missing.setdefault(match[2], []).append(match[1])
    return missing


def namesake() -> str | None:
    """What is wrong if the distribution `robustkit` of the package index, another project's, is installed too."""
    try:
        other = metadata.distribution(NAMESAKE)
    except metadata.PackageNotFoundError:
        return None
    if any(point.group == plugins.GROUP for point in other.entry_points):
        return None  # ours, from before it was called robustkit-bench
    return (
        f"{NAMESAKE} {other.version} is another project's, whose files stand in the same folder; pip uninstall "
        f"{NAMESAKE}, and then pip install --force-reinstall --no-deps {DISTRIBUTION}"
    )


def broken_plugins() -> list[str]:
    """Which plugins, tables in them, or names cannot be used, and why; empty if all can."""
    twice = (
        f"two plugins give the {plugins.singular(kind)} {name!r}: {found.plugin} and {found.rival}; uninstall one"
        for kind in get_args(plugins.Kind)
        for name, found in plugins.table(kind).items()
        if found.rival
    )
    return [*plugins.broken(), *twice]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
