"""The command that repeats a stored run, from its job."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from robustkit.records.gate import request


def command(job: Mapping[str, Any], eps: str = "", *, audit: bool = False) -> str:
    """The command line of a run, or of a sweep over `eps`; as far as model and data were named on one."""
    options = {**request(job), "indices": ranges(job["indices"])}
    options["defense"] = job.get("defense") or None
    options["eps"] = eps or options["eps"]
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["robustkit", "eval", *words, *(["--audit"] if audit else [])])


def ranges(indices: Sequence[int]) -> str:
    """Indices as `--indices` reads them, in their order: 0-199,400."""
    runs: list[list[int]] = []
    for before, index in itertools.pairwise([-2, *indices]):
        if index == before + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
