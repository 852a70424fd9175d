"""Any dataset under a corruption made on the fly: `corrupted/(cifar10):kind=gaussian-blur,severity=3`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from robustkit.api import Dataset, Images, Labels
from robustkit.corruptions.images import KINDS, check_severity, corrupt, kind_named
from robustkit.datasets.names import names_of
from robustkit.datasets.subset import known_labels
from robustkit.errors import UsageError
from robustkit.models.sources.python import typed_arguments
from robustkit.spec import unwrap, whole


class CorruptedSource:
    """The source of datasets corrupted here."""

    def names(self) -> Sequence[str]:
        """None: it takes another dataset's spec."""
        return ()

    def make(self, name: str, options: Mapping[str, str]) -> "Corrupted":
        """The dataset of the spec `name` under `kind` at `severity`; `seed` is of the random kinds.

        Raises:
            UsageError: for an unknown dataset, kind, severity or option.
        """
        from robustkit.datasets import load_dataset

        return Corrupted(load_dataset(unwrap(name)), **typed_arguments(_settings, options, f"corrupted/{name}"))


def _settings(kind: str = "", severity: int = 0, seed: int = 0) -> None:
    """What may be set."""


@dataclass(frozen=True)
class Corrupted:
    """A dataset whose images are corrupted when a batch is asked for; sample i is the same in every batch."""

    clean: Dataset
    kind: str = ""
    severity: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole(self.seed, "seed", 0))
        if self.kind:
            object.__setattr__(self, "kind", kind_named(self.kind, KINDS))
            check_severity(self.severity)

    @property
    def name(self) -> str:
        """The clean dataset's, with what was done to it."""
        return f"{self.clean.name} under {self.kind} {self.severity}" if self.kind else f"{self.clean.name} corrupted"

    @property
    def classes(self) -> int:
        """The clean dataset's."""
        return self.clean.classes

    @property
    def labels(self) -> Labels | None:
        """The clean dataset's, if it offers them."""
        return known_labels(self.clean)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The clean dataset's."""
        return names_of(self.clean)

    @property
    def notes(self) -> tuple[str, ...]:
        """The clean dataset's."""
        return tuple(getattr(self.clean, "notes", ()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be made here of its images: grey ones have no saturation."""
        colour = self.clean.batch([0])[0].shape[1] == 3
        return tuple(kind for kind in KINDS if colour or kind != "saturate")

    def at(self, kind: str, severity: int) -> "Corrupted":
        """The same images under another corruption."""
        return replace(self, kind=kind, severity=severity)

    def __len__(self) -> int:
        return len(self.clean)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """The corrupted images (float32 in [0,1], on 8 bits) and labels at `indices`.

        Raises:
            UsageError: if no kind was chosen, or the images are not ones that it works on.
        """
        if not self.kind:
            raise UsageError(f"{self.name}: choose one: kind=gaussian-blur,severity=3; there are: {', '.join(KINDS)}")
        x, y = self.clean.batch(indices)
        made = [
            corrupt(image, self.kind, self.severity, seed=self.seed, index=int(i))
            for image, i in zip(x, indices, strict=True)
        ]
        return torch.stack(made) if made else x, y
