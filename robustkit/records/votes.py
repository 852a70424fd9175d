"""What a randomised model's robustness is, from stored draws: three numbers, each with its name. Needs no torch.

A pattern is a text with one character a fresh draw, 1 for wrong and 0 for right.

* the worst case: a sample is broken if any pass of any attack, or any draw, ever misclassified a valid candidate or
  the clean image;
* the mean over fresh draws of the accuracy on the strongest candidate of each sample, with its standard deviation: the
  strongest by the draws that vote, the mean of other draws, so that the choice does not lower it;
* the majority vote of M fresh draws on each candidate, which is the headline: it is a decision that could be deployed,
  it does not fall with the number of passes an attack made, and it gives nothing for being right now and then. It does
  fall with the number of attacks, for each has a candidate that is voted on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkit.records.schema import ROBUST, WRONG, Columns
from robustkit.stats import MeanShare, Proportion

MEAN = 10  # fresh draws of the mean, beside those that vote


def reevaluations(draws: int) -> int:
    """How many fresh draws are taken: the first `draws` vote, the others give the mean."""
    return draws + MEAN


def lost(wrong: Any, draws: int) -> Any:
    """Whether a vote is lost: unless more than half of the draws are right. Of a number, an array or a tensor."""
    return 2 * wrong >= draws


def rule(draws: int) -> str:
    """The headline's rule, in words; 0 draws stand for a model that is not randomised."""
    if not draws:
        return "a sample is broken by any valid image that the model misclassifies"
    return (
        f"majority vote over {draws} fresh draws on the strongest valid image of each attack; a tie counts as wrong, "
        "and a sample is broken if any attack's image loses the vote"
    )


def worst_case(samples: Columns, attacks: Columns) -> Proportion:
    """The share of samples that no pass over a valid candidate, and no draw of the clean image, ever misclassified."""
    ever = set(attacks["index"][attacks["ever"].astype(bool)].tolist())
    rows = _rows(samples, "index", "status", "draws")
    stood = [status == ROBUST and i not in ever and "1" not in clean for i, status, clean in rows]
    return Proportion(sum(stood), len(stood))


def mean_accuracy(samples: Columns, attacks: Columns, draws: int, limit: float) -> MeanShare:
    """The accuracy over fresh draws on each sample's strongest candidate; what the clean vote lost is always wrong.

    Candidates that ended beyond `limit`, as a minimal attack's may, are no candidates here.
    """
    strongest: dict[int, str] = {}
    for i, pattern, distance in _rows(attacks, "index", "draws", "distance"):
        votes, before = pattern[:draws].count("1"), strongest.get(i, "")[:draws].count("1")
        if pattern and distance <= limit and votes >= before:
            strongest[i] = pattern
    n = len(samples["index"])
    right = np.zeros(MEAN)
    for i, status, clean in _rows(samples, "index", "status", "draws"):
        if status != WRONG:
            right += [c == "0" for c in strongest.get(i, clean)[draws:]]
    return MeanShare.of((right / n).tolist(), n)


def of_a_mixture(samples: Columns, attacks: Columns, limit: float) -> np.ndarray | None:
    """Of a mixture with known weights: each sample's least chance of a right answer, over its image and all candidates.

    None for any other model.
    """
    if "expected" not in samples or np.isnan(samples["expected"]).any():
        return None
    least = dict(_rows(samples, "index", "expected"))
    for i, chance, distance in _rows(attacks, "index", "expected", "distance"):
        if distance <= limit and chance < least[i]:
            least[i] = chance
    return np.array([least[i] for i in samples["index"].tolist()])


def _rows(columns: Columns, *names: str) -> Sequence[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=True))
