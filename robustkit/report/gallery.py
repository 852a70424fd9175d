"""The images of broken samples, where a run kept them: original, adversarial and what was added, as PNG data URIs."""

import base64
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustkit.records.run import RunRecord
from robustkit.report import facts

SHOWN = 12
MOST_BYTES = 2_500_000  # of PNG in one page, so that it stays easy to send
SMALL = 64  # pixels: an image below is enlarged without smoothing


@dataclass(frozen=True, slots=True)
class Shown:
    """One broken sample. Images are data URIs; `clean` and `added` are empty where the original was not kept.

    `factor` is what the perturbation is multiplied by before it is added to grey; `decided` −1: it was not stored.
    """

    index: int
    label: int
    attack: str
    predicted: int
    decided: int
    distance: float
    clean: str
    adv: str
    added: str
    factor: float
    small: bool


def chosen(record: RunRecord, most: int) -> list[int]:
    """Rows of `record.adversarial`: the first few that each attack broke, in turn."""
    if record.adversarial is None:
        return []
    by = dict(zip(record.samples["index"].tolist(), record.samples["broken_by"].tolist(), strict=True))
    queues: dict[str, list[int]] = {name: [] for name in record.job["attacks"]}
    for row, index in enumerate(record.adversarial["index"].tolist()):
        if by.get(index) in queues:
            queues[by[index]].append(row)
    rounds = range(max(map(len, queues.values()), default=0))
    return [queue[place] for place in rounds for queue in queues.values() if place < len(queue)][:most]


def amplified(clean: np.ndarray, adv: np.ndarray) -> tuple[np.ndarray, float]:
    """The perturbation around grey, multiplied so that its largest entry reaches black or white; and the factor."""
    added = adv.astype(np.float64) - clean
    most = float(np.abs(added).max())
    factor = 0.5 / most if most else 1.0
    return np.clip(0.5 + factor * added, 0, 1), factor


def shown(record: RunRecord) -> list[Shown] | facts.LeftOut:
    """Broken samples with their images."""
    if record.adversarial is None:
        return facts.LeftOut("the run did not keep its adversarials (--save-adversarial)")
    rows = chosen(record, SHOWN)
    if not rows:
        return facts.LeftOut("no attack broke a sample")
    if record.adversarial["adv"].ndim != 4 or record.adversarial["adv"].shape[1] not in (1, 3):
        return facts.LeftOut("the images are neither grey nor coloured")
    if importlib.util.find_spec("PIL") is None:
        return facts.LeftOut("Pillow, which draws the images, was not installed: pip install 'robustkit-bench[plots]'")
    known = facts.decisions(record)
    decided = {} if isinstance(known, facts.LeftOut) else known
    place = {index: row for row, index in enumerate(record.samples["index"].tolist())}
    found: list[Shown] = []
    size = 0
    for row in rows:
        item = _one(record, record.adversarial, row, place, decided)
        size += len(item.clean) + len(item.adv) + len(item.added)
        if found and size > MOST_BYTES:
            break
        found.append(item)
    return found


def _one(
    record: RunRecord, images: Mapping[str, Any], row: int, place: Mapping[int, int], decided: Mapping[int, int]
) -> Shown:
    samples, index = record.samples, int(images["index"][row])
    at, adv = place[index], np.asarray(images["adv"][row])
    clean, added, factor = "", "", 1.0
    if "clean" in images:
        original = np.asarray(images["clean"][row])
        difference, factor = amplified(original, adv)
        clean, added = data_uri(original), data_uri(difference)
    return Shown(
        index=index,
        label=int(samples["label"][at]),
        attack=str(samples["broken_by"][at]),
        predicted=int(samples["prediction"][at]) if "prediction" in samples else -1,
        decided=decided.get(index, -1),
        distance=float(samples["distance"][at]),
        clean=clean,
        adv=data_uri(adv),
        added=added,
        factor=factor,
        small=max(adv.shape[1:]) < SMALL,
    )


def data_uri(image: np.ndarray) -> str:
    """An image (channels, height, width) in [0,1] as the text of a PNG."""
    from PIL import Image

    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
