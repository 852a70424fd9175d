"""Settings against the model as given, image by image, with an exact paired test."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images, Labels, Logits
from robustkit.doctor.settings import GIVEN, Setting
from robustkit.errors import first_line
from robustkit.models.oracle import Network
from robustkit.numerics import devices
from robustkit.stats import Proportion, at_least, mcnemar_p

ALPHA = 1e-3
MARGIN = 0.05
WORSE = 0.05  # a setting is clearly worse on the first images below this p
GLANCE = 16  # images, of the first glance at large ones
LOOKS = (64, 256)  # images, of the first look and the next; the last is at all there are
GOLDEN = 0.618034  # a step of this share of a circle spreads any number of points evenly over it
Sample = Callable[[int, int], tuple[Images, Labels]]


class Trial(NamedTuple):
    """A setting against the model as given, on the same images. `p` is corrected for all settings that were tried.

    `better` of the images are right in this setting alone, `worse` as given alone; `constant` would be right if one
    class were always the answer.
    """

    setting: str
    right: Proportion
    better: int = 0
    worse: int = 0
    p: float = 1.0
    constant: int = 0
    error: str = ""

    @property
    def suspicious(self) -> bool:
        """Whether it is better by the margin, by a model that does more than to name one class."""
        return self.better - self.worse >= MARGIN * self.right.n and self.right.k > self.constant

    @property
    def clear(self) -> bool:
        """Whether it is that beyond chance."""
        return self.suspicious and self.p < ALPHA

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        counts = {"better": self.better, "worse": self.worse, "p": self.p, "clear": self.clear}
        return {"setting": self.setting, "accuracy": self.right.to_json(), **counts, "error": self.error or None}


class Bench:
    """The images fetched so far, and which of them the model gets right in each setting that was tried.

    Args:
        network: the model as given.
        sample: gives the images and labels from one position to another.
        n: how many images there are; they are fetched when they are needed.
    """

    def __init__(self, network: Network, sample: Sample, n: int) -> None:
        self.network, self.sample, self.n = network, sample, n
        self.x, self.y = sample(0, min(n, LOOKS[0]))
        self.y = self.y.cpu()
        self.logits: Logits = network.logits(self.x).cpu()
        self.right: dict[Setting, Tensor] = {GIVEN: correct(self.logits, self.y)}
        self.errors: dict[Setting, str] = {}

    def fetch(self, stop: int) -> None:
        """Have the images up to `stop` too, with the model's answers as given."""
        if stop <= len(self.y):
            return
        x, y = self.sample(len(self.y), stop)
        self.logits = torch.cat([self.logits, self.network.logits(x).cpu()])
        self.x, self.y = torch.cat([self.x, x]), torch.cat([self.y, y.cpu()])
        self.right[GIVEN] = correct(self.logits, self.y)

    @property
    def channels(self) -> int:
        """Of the images."""
        return int(self.x.shape[1])

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return int(self.logits.shape[1])

    @property
    def predicted(self) -> Labels:
        """The model's decisions as given."""
        return self.logits.argmax(1)

    @property
    def given(self) -> Trial:
        """The model as given."""
        return Trial(str(GIVEN), share(self.right[GIVEN]))

    @property
    def one_class(self) -> bool:
        """Whether all images fetched are of one class: then a model that always names it looks perfect."""
        return bool((self.y == self.y[0]).all())

    @property
    def like_guessing(self) -> bool:
        """Whether guessing would often do as well, on enough images to say so."""
        found = self.given.right
        return found.n >= LOOKS[0] / 2 and at_least(found.k, found.n, 1 / self.classes) > 0.05

    def could_improve(self, tests: int) -> bool:
        """Whether enough images are wrong that some setting could be clearly better: most models need no more."""
        wrong = int((~self.right[GIVEN]).sum()) * self.n // len(self.y)
        return wrong >= MARGIN * self.n and tests * 0.5**wrong < ALPHA

    def survivors(self, settings: Sequence[Setting]) -> list[Setting]:
        """The settings that may be better, by the images fetched; of large images the bad ones see only a glance.

        Another mean/std in place of one is worth a few points only, which few images do not show: on small images it
        stays unless it is clearly worse.
        """
        if large(self.x[0]):
            settings = [setting for setting in settings if self._gain(setting, GLANCE) >= 0]
            return [setting for setting in settings if self._gain(setting, LOOKS[0]) >= 2]
        return [setting for setting in settings if self._gain(setting, LOOKS[0]) >= 2 or self._near(setting)]

    def _near(self, setting: Setting) -> bool:
        """Whether it puts one mean/std in place of another, and is not clearly worse."""
        right, given = self.right[setting], self.right[GIVEN]
        return setting.replaces and mcnemar_p(int((given & ~right).sum()), int((right & ~given).sum())) > WORSE

    def _gain(self, setting: Setting, stop: int) -> int:
        right = self.tried(setting, stop)
        return self.hits(setting) - int(self.right[GIVEN][: len(right)].sum())

    def tried(self, setting: Setting, stop: int | None = None) -> Tensor:
        """Which of the images fetched, up to `stop`, the model gets right in a setting."""
        known = self.right.get(setting, torch.empty(0, dtype=torch.bool))
        stop = min(stop or len(self.y), len(self.y))
        if len(known) < stop:
            self.right[setting] = torch.cat([known, self._answers(setting, len(known), stop)])
        return self.right[setting]

    def _answers(self, setting: Setting, start: int, stop: int) -> Tensor:
        x, y = self.x[start:stop], self.y[start:stop]
        try:
            return correct(self.network.logits(setting(x)).cpu(), y)
        except Exception as error:  # whatever a foreign network raises on images that it refuses
            if devices.out_of_memory(error):
                raise
            self.errors[setting] = first_line(error)
            return torch.zeros(len(y), dtype=torch.bool)

    def trial(self, setting: Setting, tests: int) -> Trial:
        """A setting that was tried, against the model as given."""
        right = self.right[setting]
        given, y = self.right[GIVEN][: len(right)], self.y[: len(right)]
        return paired(str(setting), right, given, y, tests)._replace(error=self.errors.get(setting, ""))

    def complete(self, settings: Sequence[Setting]) -> None:
        """Try these settings on all images fetched."""
        for setting in settings:
            self.tried(setting)

    def hits(self, setting: Setting) -> int:
        """How many images are right in a setting that was tried."""
        return int(self.right[setting].sum())

    def rival(self, setting: Setting, best: Setting) -> bool:
        """Whether the images cannot tell a setting from the best one."""
        one, other = self.right[setting], self.right[best]
        return mcnemar_p(int((other & ~one).sum()), int((one & ~other).sum())) > 0.05


def spread(total: int, n: int) -> list[int]:
    """At most `n` of so many positions, any first few of them spread evenly: data is often sorted by class."""
    step = max(1, round(GOLDEN * total))
    while math.gcd(step, total) > 1:
        step += 1
    return [i * step % total for i in range(min(n, total))]


def large(image: Tensor) -> bool:
    """Whether images are so large that few of them are spent."""
    from robustkit.models.examination import SMALL_IMAGE  # the engine imports the doctor

    return image.numel() > SMALL_IMAGE


def of_labels(predicted: Labels, y: Labels, tests: int) -> list[Trial]:
    """Readings of the labels against the labels as given: one more, one less, and the best one-to-one renaming.

    The renaming is chosen on every second image and tried on the others, so that it has to prove itself.
    """
    right = predicted == y
    trials = [
        paired("labels one higher", predicted == y + 1, right, y, tests),
        paired("labels one lower", predicted == y - 1, right, y, tests),
    ]
    names = renaming(predicted[::2], y[::2])
    if not names or len(y) < 2:
        return trials
    y = y[1::2]
    renamed = torch.tensor([names.get(label, label) for label in y.tolist()])
    changed = ", ".join(f"{old}→{new}" for old, new in sorted(names.items())[:6])
    name = f"labels renamed ({changed}{', …' if len(names) > 6 else ''})"
    return [*trials, paired(name, predicted[1::2] == renamed, right[1::2], y, tests)]


def renaming(predicted: Labels, y: Labels) -> dict[int, int]:
    """The one-to-one renaming of labels that fits the predictions; labels that keep their name are left out.

    A label's new name is what most of its images are predicted as. Where another label still has that name, the model
    just takes one class for the other, and nothing is renamed.
    """
    counts = Counter(zip(y.tolist(), predicted.tolist(), strict=True))
    sizes = Counter(y.tolist())
    names = {label: name for (label, name), k in counts.items() if name != label and 2 * k > sizes[label]}
    while wrong := [
        label
        for label, name in names.items()
        if (name in sizes and name not in names) or list(names.values()).count(name) > 1
    ]:
        for label in wrong:
            del names[label]
    return names


def paired(name: str, right: Tensor, given: Tensor, y: Labels, tests: int) -> Trial:
    """A trial from what is right in a setting and as given; Bonferroni's correction for so many tests."""
    better, worse = int((right & ~given).sum()), int((given & ~right).sum())
    p = min(1.0, tests * mcnemar_p(better, worse))
    return Trial(name, share(right), better, worse, p, max(Counter(y.tolist()).values()))


def correct(logits: Logits, y: Labels) -> Tensor:
    """Which images are classified right; outputs that are not finite classify nothing."""
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def share(right: Tensor) -> Proportion:
    """The share of true entries."""
    return Proportion(int(right.sum()), len(right))
