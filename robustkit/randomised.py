"""What a randomised model's robustness is, from stored draws: three numbers, each with its name. Needs no torch.

A pattern is a text with one character a fresh draw, 1 for wrong and 0 for right.

* the worst case: a sample is broken if any pass of any attack, or any draw, ever misclassified a valid candidate;
* the mean over fresh draws of the accuracy on the strongest candidate of each sample, with its standard deviation;
* the majority vote of M fresh draws on each candidate, which is the headline: it is a decision that could be deployed,
  it does not fall with the number of passes an attack made, and it gives nothing for being right now and then.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkit.stats import MeanShare, Proportion

LEAST = 10  # fresh draws of the mean, however few vote
Columns = Any


def reevaluations(draws: int) -> int:
    """How many fresh draws are taken, of which the first `draws` vote."""
    return max(LEAST, draws)


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
    """The share of samples that no pass over a valid candidate ever misclassified."""
    ever = set(attacks["index"][attacks["ever"].astype(bool)].tolist())
    stood = [s == "ROBUST" and i not in ever for i, s in _rows(samples, "index", "status")]
    return Proportion(sum(stood), len(stood))


def mean_accuracy(samples: Columns, attacks: Columns) -> MeanShare:
    """The accuracy over fresh draws on each sample's strongest candidate; what the clean vote lost is always wrong."""
    strongest: dict[int, str] = {}
    for i, pattern in _rows(attacks, "index", "draws"):
        if pattern and pattern.count("1") >= strongest.get(i, "").count("1"):
            strongest[i] = pattern
    n = len(samples["index"])
    draws = max(map(len, strongest.values()), default=LEAST)
    right = np.zeros(draws)
    for i, status, clean in _rows(samples, "index", "status", "draws"):
        if status != "WRONG":
            right += [c == "0" for c in strongest.get(i, clean)]
    return MeanShare.of((right / n).tolist(), n)


def _rows(columns: Columns, *names: str) -> Sequence[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=True))
