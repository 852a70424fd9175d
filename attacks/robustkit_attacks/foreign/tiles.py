"""Running a library's attack as the harness needs it: a tile of samples at a time, its random numbers keyed."""

import hashlib
import warnings
from collections.abc import Callable

import torch

from robustkit.api import Case, Draws, Images
from robustkit.numerics import generators


def by_tiles(case: Case, attack: Callable[[Case, int], Images]) -> Images:
    """Call `attack(case of one tile, seed)` tile after tile; the global generators are seeded for each and put back.

    A tile is as wide as the network's, of which a run attacks whole ones, so the same run gives the same answer. Each
    tile is handed in when it is done: what is broken stays broken if a later one crashes.
    """
    found = []
    for rows in torch.split(torch.arange(len(case.x), device=case.x.device), case.oracle.tile):
        part = case.select(rows)
        seed = _seed(part.draws)
        with generators.seeded(seed, case.x.device), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library warns of is not the user's to mend
            adv = attack(part, seed)
        part.submit(adv)
        found.append(adv.detach())
    return torch.cat(found)


def _seed(draws: Draws) -> int:
    """A seed below 2³¹ that the run's seed, the attack and the tile's samples decide."""
    drawn = draws.uniform((2,)).cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(drawn).digest()[:4], "little") >> 1
