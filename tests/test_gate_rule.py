"""The statistics of the gate, held by exact sums and values computed by hand: its level, its power, its interval."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks import gate_power as power
from robustkit.stats import difference_interval, drop_p, fewest_worse, least_drop, mcnemar_p

REPORT = Path(__file__).parent.parent / "reports/gate-power/power.csv"


# z of each computed by hand from the score's formula
@pytest.mark.parametrize(
    ("worse", "better", "n", "points", "z"),
    [(5, 0, 100, 0, 1.7889), (5, 0, 100, 0.5, 1.6458), (14, 3, 1000, 0, 2.4254), (14, 3, 1000, 0.5, 1.2907),
     (40, 20, 160, 2, 2.0506)],
)  # fmt: skip
def test_p_is_the_score_statistic_s(worse, better, n, points, z):
    assert drop_p(worse, better, n, points / 100) == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, abs=2e-5)


def test_without_an_allowance_it_is_mcnemar_s_test_with_edwards_correction():
    for worse, better in [(5, 0), (9, 2), (30, 12), (12, 30)]:
        z = (worse - better - 1) / math.sqrt(worse + better)
        assert drop_p(worse, better, 500) == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, rel=1e-12)
    assert drop_p(0, 0, 100) == 1
    assert mcnemar_p(40, 20) == pytest.approx(drop_p(40, 20, 160), rel=0.1)


def test_p_falls_with_what_got_worse_and_rises_with_what_got_better_and_the_allowance():
    for worse in range(20, 60):
        here = drop_p(worse, 5, 1000, 0.005)
        assert drop_p(worse + 1, 5, 1000, 0.005) < here < drop_p(worse, 6, 1000, 0.005)
        assert here < drop_p(worse, 5, 1000, 0.006)


@pytest.mark.parametrize(
    ("points", "by_n"),
    [
        (0, {50: (5, 9, 13), 1000: (5, 9, 13), 10_000: (5, 9, 13)}),
        (0.5, {50: (5, 9, 14), 100: (5, 9, 14), 300: (6, 10, 15), 1000: (10, 15, 19), 10_000: (63, 66, 70)}),
        (2, {50: (6, 10, 15), 100: (7, 11, 16), 300: (11, 16, 20), 1000: (29, 32, 36), 10_000: (225, 227, 230)}),
    ],
)
def test_the_fewest_that_fail_are_those_of_the_rule(points, by_n):
    for n, least in by_n.items():
        assert tuple(fewest_worse(better, n, points / 100) for better in (0, 2, 5)) == least
        assert drop_p(least[1], 2, n, points / 100) < 0.05 <= drop_p(least[1] - 1, 2, n, points / 100)
    assert fewest_worse(0, 4) is None
    assert fewest_worse(0, 20, 0.9) is None


def test_at_least_is_the_largest_drop_that_is_refuted():
    for worse, better, n in [(14, 3, 1000), (40, 20, 160), (100, 0, 100)]:
        least = least_drop(worse, better, n)
        assert drop_p(worse, better, n, least - 1e-6) < 0.05 < drop_p(worse, better, n, min(1 - 1e-9, least + 1e-6))
    assert 100 * least_drop(14, 3, 1000) == pytest.approx(0.36, abs=0.005)
    assert least_drop(4, 0, 100) == least_drop(0, 9, 100) == 0


@pytest.mark.parametrize("points", [0, 0.5, 2])
@pytest.mark.parametrize("n", [50, 100, 250, 1000])
def test_at_a_drop_of_what_is_allowed_the_gate_fails_in_at_most_one_of_twenty(n, points):
    for better in (0, 0.5 / n, 1 / n, 0.02, 0.2):
        assert power.failing(n, points / 100 + better, better, points) <= 0.05


def test_the_gate_finds_what_the_sums_say():
    assert power.failing(1000, 0.0275, 0.0225, 0.5) == pytest.approx(0.038, abs=0.0005)
    assert power.failing(1000, 0.035, 0.015, 0.5) == pytest.approx(0.649, abs=0.0005)
    assert power.failing(1000, 0.03, 0.0, 0.5) > 0.99


@pytest.mark.parametrize(
    ("worse", "better", "n", "low", "high"),
    [(14, 3, 1000, 0.29, 2.06), (5, 0, 100, 0.33, 11.18), (40, 20, 160, 3.06, 21.67), (0, 0, 100, -3.70, 3.70)],
)
def test_the_interval_is_that_of_two_wilson_intervals(worse, better, n, low, high):
    found = difference_interval(worse, better, n)
    assert [100 * end for end in found] == pytest.approx([-high, -low], abs=0.005)
    assert difference_interval(better, worse, n) == pytest.approx([-end for end in reversed(found)])


def test_the_interval_covers_at_any_n_and_when_all_flips_go_one_way():
    assert power.covering(100, 0.02, 0) > 0.99
    assert power.covering(750, 0.075, 0) == pytest.approx(0.948, abs=0.0005)
    shares = [(f / 100 * share, f / 100 * (1 - share)) for f in (0.5, 1, 2, 3.5, 5.5, 10) for share in (0.5, 0.75, 1)]
    assert min(power.covering(n, *law) for n in (50, 100, 300) for law in shares) >= 0.94


def test_a_drop_that_fails_the_gate_is_never_outside_the_interval_from_the_other_side():
    for n, points in ((100, 0), (100, 2), (1000, 0.5)):
        for worse in range(0, 40):
            for better in range(0, 20):
                if drop_p(worse, better, n, points / 100) >= 0.05:
                    assert -difference_interval(worse, better, n)[1] <= points / 100


def test_the_report_is_what_the_rule_gives_now():
    rows = list(csv.DictReader(REPORT.read_text().splitlines()))
    assert {(r["n"], r["allowed_points"]) for r in rows} == {
        (str(n), str(a)) for n in power.SIZES for a in power.ALLOWED
    }
    assert max(float(r["failed"]) for r in rows if float(r["drop_points"]) <= float(r["allowed_points"])) <= 0.05
    assert min(float(r["covered"]) for r in rows if r["n"] == "100") >= 0.94
    for row in rows:
        if row["n"] == "10000" and row["drop_points"] not in ("0.5", "2.0"):
            continue  # they take seconds
        flips = row["flips_percent"] if row["flips_percent"] == "one way" else float(row["flips_percent"])
        law = power.shares(float(row["drop_points"]), flips)
        failed = power.failing(int(row["n"]), *law, float(row["allowed_points"]))
        assert failed == pytest.approx(float(row["failed"]), abs=1e-5), row
