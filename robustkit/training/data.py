"""Training images on the device of the training, their order in each epoch, and augmentation, all keyed by the seed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.api import Dataset, Images, Labels
from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.training.recipes import Batch, Schedule

LIMIT = 16 * 2**30  # bytes of images
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Held:
    """All images of a dataset on one device, as bytes where that loses nothing, and the hash of what they are."""

    x: Tensor
    y: Labels
    sha256: str

    def __len__(self) -> int:
        return len(self.y)

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

    def images(self, rows: Tensor) -> Images:
        """Images in [0,1], float32."""
        x = self.x[rows]
        return x.float() / 255 if x.dtype == torch.uint8 else x


def held(data: Dataset, device: torch.device) -> Held:
    """The whole dataset, read once.

    Raises:
        UsageError: if it has no images, or more than fit.
    """
    if not len(data):
        raise UsageError(f"{data.name} has no images to train on")
    if (size := data.batch([0])[0].numel() * len(data)) > LIMIT:
        raise UsageError(f"{data.name} holds {size / 2**30:.0f} GiB of pixels; training keeps its images in memory")
    xs, ys, exact = [], [], True
    for start in range(0, len(data), _CHUNK):
        x, y = data.batch(range(start, min(start + _CHUNK, len(data))))
        levels = (x * 255).round().to(torch.uint8)
        exact = exact and torch.equal(levels.float() / 255, x)
        xs.append(levels if exact else x)
        ys.append(y)
    if not exact:  # the first chunks may have been
        xs = [x.float() / 255 if x.dtype == torch.uint8 else x for x in xs]
    x, y = torch.cat(xs), torch.cat(ys)
    content = hashlib.sha256(repr((tuple(x.shape), str(x.dtype))).encode())
    for part in (x, y):
        content.update(part.contiguous().numpy().tobytes())
    return Held(x.to(device), y.to(device), content.hexdigest())


def batches(data: Held, schedule: Schedule, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """The batches of an epoch from the `first` on; each depends on (seed, epoch, its number) only."""
    device = data.x.device
    orders: dict[int, Tensor] = {}
    shared = SampleDraws(key_of("training epoch", seed, epoch), torch.zeros(1, dtype=torch.int64, device=device))

    def batch(number: int, order: int) -> Batch:
        if order not in orders:
            generator = torch.Generator().manual_seed(key_of("training order", seed, epoch, order)[0])
            orders[order] = torch.randperm(len(data), generator=generator).to(device)
        rows = orders[order][number * schedule.batch : (number + 1) * schedule.batch]
        draws = SampleDraws(key_of("training", seed, epoch, order), rows)
        x = augmented(data.images(rows), schedule.augment, draws.at(1))
        return Batch(x, data.y[rows], rows, epoch, number, draws.at(0), shared, lambda k: batch(number, k))

    for number in range(first, -(-len(data) // schedule.batch)):
        yield batch(number, 0)


def augmented(x: Images, how: str, draws: SampleDraws) -> Images:
    """Images shifted by up to an eighth of their side (zeros come in), and half of them mirrored for `crop-flip`."""
    if how == "none":
        return x
    n, channels, height, width = x.shape
    most = max(height, width) // 8
    shift = (draws.uniform((2,)) * (2 * most + 1)).long()
    down = shift[:, :1] + torch.arange(height, device=x.device)
    right = shift[:, 1:] + torch.arange(width, device=x.device)
    if how == "crop-flip":
        mirrored = draws.uniform((1,), step=1) < 0.5
        right = torch.where(mirrored, right.flip(1), right)
    padded = F.pad(x, (most, most, most, most))
    each = torch.arange(n, device=x.device)
    return padded[each[:, None, None, None], torch.arange(channels, device=x.device)[:, None, None],
                  down[:, None, :, None], right[:, None, None, :]]  # fmt: skip
