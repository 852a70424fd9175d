"""Units of work: the shards of a run, claimed a few at a time so that their survivors fill a batch.

Here a claim always succeeds, for one process does all of them; what a claim gives is the same whoever holds it.
"""

from collections.abc import Iterator
from typing import NamedTuple

SHARD = 512
SHARD_BYTES = 80 << 20  # of a shard's images: memory depends neither on how many nor on how large they are
TOGETHER = 4  # shards at most that one process has open at once


class Claim(NamedTuple):
    """Shards that one process computes together, and nobody else."""

    shards: tuple[int, ...]


class Units(NamedTuple):
    """The shards of a run of `n` samples, whose images take so many bytes each."""

    n: int
    shard_size: int
    bytes_of_image: int

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(-(-self.n // self.shard_size))

    def claims(self, in_flight: int) -> Iterator[Claim]:
        """Every shard once: as many together as fill a batch of `in_flight` samples, if three in four fall.

        Together they hold no more bytes than one shard may: memory does not grow with the number of large images.
        """
        fitting = SHARD_BYTES // (self.shard_size * self.bytes_of_image)
        together = max(1, min(TOGETHER, 4 * in_flight // self.shard_size, fitting))
        for start in range(0, len(self.shards), together):
            yield Claim(tuple(self.shards[start : start + together]))


def shard_size(bytes_of_image: int, cohort: int = 1) -> int:
    """How many samples a shard holds: at most 512, fewer of large images; always whole cohorts of so many samples."""
    fitting = SHARD_BYTES // bytes_of_image
    size = min(SHARD, max(16, fitting // 16 * 16))
    return max(cohort, size // cohort * cohort)
