"""Certified accuracy by bounds alone: what of a dataset's images is proved, without an attack."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from robustkit import datasets
from robustkit.api import Dataset, Defense, Norm, ThreatModel
from robustkit.certificates import ladder, regions, tracing
from robustkit.certificates.graph import Graph
from robustkit.datasets.choice import choose_samples
from robustkit.datasets.names import names_of
from robustkit.engine import plan
from robustkit.engine.identity import harness_sha256, source_hashes
from robustkit.engine.request import threat_of
from robustkit.errors import UsageError
from robustkit.locks import at_work
from robustkit.models import defended
from robustkit.models.opening import Model, Opened, load, open_model
from robustkit.models.turns import one_at_a_time
from robustkit.records.about import About, now
from robustkit.records.bounds import RESULT, BoundsRecord, Proved
from robustkit.records.folder import resume
from robustkit.records.schema import BOUNDS
from robustkit.report import files

PART = 32  # images whose bounds are computed, and kept, together


class ImagesDone(NamedTuple):
    """So many of the images are done, and so many of these proved."""

    proved: int
    done: int
    total: int


@one_at_a_time()
def evaluate_bounds(
    model: Model,
    data: str | Dataset | tuple[Any, Any],
    *,
    method: str = "alpha-crown", norm: Norm = "linf", eps: float | str | None = None,
    defense: str | Defense | Sequence[str | Defense] = (),
    n: int | None = None, indices: str | Sequence[int] | None = None,
    outputs: Literal["logits", "probs"] = "logits", trust: bool = False, device: str = "auto", tile: int | None = None,
    out: str | os.PathLike[str] | None = None, fresh: bool = False,
    on_event: Callable[[ImagesDone], None] | None = None, label: str = "",
) -> BoundsRecord:  # fmt: skip
    """Prove images robust by bounds of the network, each by the cheapest that suffices; see `certificates.ladder`.

    Args:
        model: a spec, an nn.Module, or a callable from [0,1] images to logits. It is put in eval mode and restored.
        data: a spec, a Dataset, or a pair (x, y).
        method: the last rung: "ibp", "crown" or "alpha-crown".
        norm: of the ball, which lies around the image before any normalisation.
        eps: its radius in [0,1] units; None is the norm's default.
        defense: what stands before the model; it must be certifiable too.
        n: the first n samples.
        indices: these samples, instead of n.
        outputs: what the model returns; probabilities must be declared.
        trust: unpickle checkpoints that are more than weights, which runs code from them.
        device: "auto" is the module's own, or CUDA if there is one for a model named by a spec.
        tile: width of the batches that are classified.
        out: a folder that is continued, part by part, if it holds this very run; None writes nothing.
        fresh: forget what `out` holds.
        on_event: told of each part that is done.
        label: what the run is called in its record and report; it decides nothing.

    Raises:
        UsageError: for anything that cannot be run as given; a model that cannot be bounded, and what of it.
    """
    started, threat = now(), threat_of(norm, eps)
    regions.check(threat.norm, threat.eps)
    if method not in ladder.METHODS:
        raise UsageError(f"method {method!r}; there are: {', '.join(ladder.METHODS)}")
    dataset, defenses = datasets.resolve(data), defended.resolve(defense)
    loaded = load(model, dataset.name, threat.norm, outputs=outputs, trust=trust, device=device)
    samples = choose_samples(dataset, n, indices)
    with open_model(loaded, samples, defenses=defenses, tile=tile) as opened, at_work(out):
        if opened.subject.facts.randomised:
            raise UsageError("not certifiable: the model draws random numbers")
        reference = opened.subject.reference
        traced = tracing.trace(opened.module, samples.first()[0].to(opened.device, reference.dtype))
        job = {
            **opened.identity,
            "method": method,
            "norm": threat.norm,
            "eps": threat.eps,
            "data": data if isinstance(data, str) else dataset.name,
            "sources": {
                **source_hashes((), opened.defenses),
                "certificates": harness_sha256("robustkit.certificates.proofs"),
            },
            "versions": plan.versions(),
        }

        def part(number: int) -> dict[str, list[Any]]:
            return _part(opened, traced, threat, method, number)

        images: list[Proved] = []
        parts = -(-len(samples) // PART)
        for facts in resume(out, BOUNDS, RESULT, job, parts, part, fresh=fresh):
            rows = zip(*(facts[name] for name in ("right", "proved", "rung", "bound")), strict=True)
            for row in rows:
                at = len(images)
                images.append(Proved(samples.indices[at], int(samples.labels[at]), *row))
            if on_event is not None:
                on_event(ImagesDone(sum(image.proved for image in images), len(images), len(samples)))
        written = eps if isinstance(eps, str) else ""
        about = About(label, written, started, now(), names_of(dataset))
        record = BoundsRecord(job, plan.environment(opened.device), tuple(images), about)
        if out is not None:
            record.save(Path(out) / RESULT, files.of_bounds(record))
    return record


def _part(opened: Opened, traced: Graph, threat: ThreatModel, method: str, number: int) -> dict[str, list[Any]]:
    """The facts of one part's images, a column each."""
    samples = opened.samples
    x, y = (t.to(opened.device) for t in samples.batch(number * PART, min(len(samples), (number + 1) * PART)))
    right = opened.subject.reference.logits(x).argmax(1) == y
    rung = [""] * len(x)
    proved, bound = torch.zeros(len(x), dtype=torch.bool), torch.full((len(x),), torch.nan)
    if right.any():
        region = regions.region(x[right], threat.norm, threat.eps)
        found = ladder.prove(traced, region, y[right], method)
        proved[right.cpu()], bound[right.cpu()] = found.proved.cpu(), found.margin.float().cpu()
        for at, place in zip(right.nonzero()[:, 0].tolist(), found.rung.tolist(), strict=True):
            rung[at] = ladder.METHODS[place]
    return {"right": right.tolist(), "proved": proved.tolist(), "rung": rung, "bound": bound.tolist()}
