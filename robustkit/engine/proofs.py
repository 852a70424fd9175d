"""Certificates of a measurement: which samples are proved, before or after which attacks, and proofs put to the test.

A sample that is proved need not be attacked any more. Where proofs stand among the attacks is decided from the passes
that the attacks take at most and those that proofs took on the run's first samples: no clock is asked, so that the
same run decides the same. Some proved samples are attacked all the same at the end: one that breaks stops the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit import spec
from robustkit.api import Images, Labels, ModelFacts, ThreatModel
from robustkit.certificates import ladder, regions, tracing
from robustkit.certificates.graph import Graph, NotCertifiableError
from robustkit.engine.costs import cost_of
from robustkit.engine.plan import Named, make_attack, name_of, without_budget
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.models.opening import Opened
from robustkit.models.oracle import Network
from robustkit.numerics.streams import SampleDraws, key_of

ORDERS = ("auto", "first", "last")
CHECK = "pgd:steps=20"
SHARE, FEWEST = 0.05, 32  # of the proved samples, attacked all the same
TRIED = 8  # samples on which proofs are tried to see what they cost
AT_ONCE = 64  # samples whose bounds are computed together
ROW = 1.0  # passes of the network that one row of a bound takes the time of, measured: `reports/certificates`
BEFORE = (
    0.25  # of a proof's cost: what attacks cost no more than this in sum go first, for they break what is not robust
)


class Asked(NamedTuple):
    """What certificates are asked for: the last rung, and where among the attacks."""

    method: str
    order: str


class Proving(NamedTuple):
    """How a run proves: on which graph, by what, and after how many of its attacks; what that was decided from."""

    graph: Graph
    asked: Asked
    after: int
    share: float
    passes: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a model has no certificates."""

    reason: str


def parse(text: str, threat: ThreatModel | None = None) -> Asked | None:
    """Certificates as a caller writes them, `alpha-crown` or `crown:order=last`; None for nothing.

    Raises:
        UsageError: for a method or an order that is not there, or a threat model in which nothing can be bounded.
    """
    if not text:
        return None
    parsed = spec.parse(text)
    order = parsed.options.get("order", "auto")
    if parsed.source or parsed.name not in ladder.METHODS:
        raise UsageError("certify: " + spec.suggest(parsed.name, ladder.METHODS, "method"))
    if other := parsed.options.keys() - {"order"}:
        raise UsageError(f"certify: {parsed.name} has no option {sorted(other)[0]}; it has order={'|'.join(ORDERS)}")
    if order not in ORDERS:
        raise UsageError(f"certify: order={order}; there are: {', '.join(ORDERS)}")
    if threat is not None:
        regions.check(threat.norm, threat.eps)
    return Asked(parsed.name, order)


def proving(opened: Opened, asked: Asked, attacks: Sequence[Named], threat: ThreatModel) -> Proving | Refused:
    """How to prove on this model, decided on the run's first samples."""
    subject = opened.subject
    if subject.facts.randomised:
        return Refused("not certifiable: the model draws random numbers")
    x, y = (t.to(opened.device) for t in opened.samples.batch(0, min(len(opened.samples), 4 * TRIED)))
    reference = subject.reference
    x = x.to(reference.dtype)
    try:
        traced = tracing.trace(opened.module, x)
    except NotCertifiableError as error:
        return Refused(str(error))
    right = (reference.logits(x).argmax(1) == y).nonzero()[:TRIED, 0]
    found = ladder.prove(traced, regions.region(x[right], threat.norm, threat.eps), y[right], asked.method)
    share, passes = (float(each.double().mean()) if len(right) else 0.0 for each in (found.proved, found.passes))
    places = {"first": 0, "last": len(attacks)}
    after = places[asked.order] if asked.order in places else best_place(share, ROW * passes, attacks, subject.facts)
    return Proving(traced, asked, after, share, passes)


def best_place(share: float, passes: float, attacks: Sequence[Named], facts: ModelFacts) -> int:
    """After how many attacks proofs come that take so many passes a sample, and prove this share of those that stand.

    After all, where they save no more than they take.
    """
    costs = [sum(cost_of(named.attack, facts)) for named in attacks]
    cheap = 0
    while cheap < len(costs) and sum(costs[: cheap + 1]) <= BEFORE * passes:
        cheap += 1
    return cheap if share * sum(costs[cheap:]) > passes else len(attacks)


def climb(
    proving: Proving, network: Network, threat: ThreatModel, x: Images, y: Labels, standing: Tensor
) -> dict[str, Any]:
    """The certificates of a shard's samples that stand, a row a sample of it; see `schema.CERTIFICATE_FACTS`."""
    n = len(x)
    facts = {
        "certified": np.zeros(n, dtype=np.bool_), "rung": np.full(n, "", dtype=np.object_),
        "bound": np.full(n, np.nan), "needed": np.full(n, np.nan), "bound_passes": np.zeros(n),
    }  # fmt: skip
    for rows in torch.split(standing.nonzero()[:, 0], AT_ONCE):
        region = regions.region(x[rows].to(network.dtype), threat.norm, threat.eps)
        found = ladder.prove(proving.graph, region, y[rows], proving.asked.method)
        at = rows.cpu().numpy()
        facts["certified"][at] = found.proved.cpu().numpy()
        facts["rung"][at] = [ladder.METHODS[rung] for rung in found.rung.tolist()]
        for name, values in (("bound", found.margin), ("needed", found.threshold), ("bound_passes", found.passes)):
            facts[name][at] = values.double().cpu().numpy()
    facts["rung"] = facts["rung"].astype(np.str_)
    return facts


def checking() -> Named:
    """The attack that proved samples are put to the test with."""
    attack = make_attack(CHECK)
    return Named(name_of(attack), attack, f"certificates {without_budget(CHECK)}")


def contradiction(index: int, proof: str, broken: str) -> NotEstablishedError:
    """The error that stops a run: a sample is both proved and broken."""
    return NotEstablishedError(
        f"sample {index} is both proved and broken, so one of the two is a bug: {proof}, and {broken}; "
        "please report it with the model and the sample"
    )


def chosen(proved: np.ndarray, indices: Sequence[int], seed: int) -> np.ndarray:
    """The positions of the proved samples that are attacked all the same: a share of them, by a draw of their own."""
    positions = np.flatnonzero(proved)
    wanted = min(len(positions), max(FEWEST, round(SHARE * len(positions))))
    where = torch.tensor([indices[position] for position in positions.tolist()], dtype=torch.int64)
    draw = SampleDraws(key_of(seed, "certificates to check"), where).uniform((1,))[:, 0] if len(where) else where
    return np.sort(positions[draw.argsort(stable=True)[:wanted].numpy()])
