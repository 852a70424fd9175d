"""Intervals and tests against scipy's, against sums over all that can happen, and by hand."""

import math

import pytest
from scipy.stats import binom, binomtest

from robustkit.stats import (
    MeanShare,
    Proportion,
    at_least,
    difference_interval,
    drop_p,
    fewest_worse,
    least_drop,
    mcnemar_p,
    mean_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 8), (8, 8), (499, 1000)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_a_share_s_interval_is_wilson_s(k, n, confidence):
    found = Proportion(k, n, confidence)
    known = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert float(found) == k / n
    mean = MeanShare(k / n, 0.0, 3, n, confidence)
    assert (mean.low, mean.high) == pytest.approx((known.low, known.high), abs=1e-12)


def test_none_and_all_have_an_end_that_is_exact():
    assert Proportion(0, 300).low == MeanShare(0.0, 0.0, 3, 300).low == 0
    assert Proportion(300, 300).high == 1
    assert Proportion(0, 3).high == 1 - Proportion(3, 3).low > 0


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_no_share(k, n):
    with pytest.raises(ValueError, match=f"no share of {k} in {n}"):
        Proportion(k, n)


def test_shares_as_text_and_as_data():
    share = Proportion(3, 8)
    assert str(share) == "37.50 % [13.68, 69.43]"
    assert share.to_json() == {"value": 0.375, "low": share.low, "high": share.high, "n": 8}
    mean = MeanShare.of([0.25, 0.5], 8)
    assert str(mean) == "37.50 ± 17.68 % [13.68, 69.43]"  # 0.25/√2
    assert mean.to_json() == {
        "value": 0.375, "std": math.sqrt(2) / 8, "low": share.low, "high": share.high, "draws": 2, "n": 8,
    }  # fmt: skip
    assert MeanShare.of([0.5], 8) == MeanShare(0.5, 0.0, 1, 8)


@pytest.mark.parametrize("chance", [0.03, 0.5, 0.9])
def test_at_least_is_the_binomial_s_tail(chance):
    for n in (1, 2, 5, 40):
        for k in range(n + 1):
            assert at_least(k, n, chance) == pytest.approx(binom.sf(k - 1, n, chance), rel=1e-9)


def test_a_mean_s_interval_is_the_normal_one_after_two_of_each_end_were_added():
    low, high = mean_interval([0.5, 0.25, 0.75, 0.5])  # of eight values, two 0 and two 1: mean 0.5
    spread = Z * math.sqrt((4 * 0.25 + 2 * 0.0625) / 8) / math.sqrt(8)
    assert (low, high) == pytest.approx((0.5 - spread, 0.5 + spread))
    assert mean_interval([0.0] * 4)[0] == 0
    assert mean_interval([0.0] * 4)[1] == pytest.approx(0.25 + Z * math.sqrt(0.1875 / 8))
    assert mean_interval([1.0] * 4)[1] == 1
    assert mean_interval([1.0] * 4)[0] == pytest.approx(0.75 - Z * math.sqrt(0.1875 / 8))
    narrower = mean_interval([0.5] * 4, 0.5)
    assert narrower == pytest.approx((0.5 - 0.67449 * math.sqrt(0.125 / 8) * 1, 0.5 + 0.67449 * math.sqrt(0.125 / 8)),
                                     abs=1e-5)  # fmt: skip


def test_mcnemar_s_p_is_the_fair_coin_s():
    for flips in range(12):
        for worse in range(flips + 1):
            assert mcnemar_p(worse, flips - worse) == pytest.approx(binom.sf(worse - 1, flips, 0.5), rel=1e-12)


def test_the_bounds_of_a_drop():
    assert least_drop(0, 0, 50) == 0
    assert drop_p(50, 0, 50, least_drop(50, 0, 50)) == pytest.approx(0.05, abs=1e-6)
    assert drop_p(50, 0, 50, least_drop(50, 0, 50, 0.99)) == pytest.approx(0.01, abs=1e-6)
    assert least_drop(50, 0, 50, 0.99) < least_drop(50, 0, 50)
    assert drop_p(0, 0, 50) == 1
    assert fewest_worse(0, 5) == 5
    assert fewest_worse(0, 4) is None
    assert fewest_worse(0, 100, 0.0, 0.01) > fewest_worse(0, 100)


def test_an_interval_of_a_difference_stays_between_one_and_minus_one():
    assert difference_interval(0, 3, 3)[1] == 1
    assert difference_interval(3, 0, 3)[0] == -1
    assert -1 < difference_interval(3, 0, 3)[1] < 0 < difference_interval(0, 3, 3)[0]
    wide, narrow = difference_interval(9, 4, 50), difference_interval(9, 4, 50, 0.5)
    assert wide[0] < narrow[0] < -0.1 < narrow[1] < wide[1]
