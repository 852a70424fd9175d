"""The audit's rules: at each limit and just beyond it, with the number, the limit and the words that are shown."""

import math
from dataclasses import asdict
from fractions import Fraction

import pytest

from robustkit.audit import rules
from robustkit.audit.rules import Claim, Limits, exceeds
from robustkit.stats import Proportion

L = Limits()
MANY = Proportion(500, 1000)


def claim(**more):
    return Claim(**{"robust": MANY, "gradient_attacks": 2, "backwards": 100, "averaged": False, **more})


def test_the_limits_are_those_that_were_frozen():
    assert asdict(L) == {
        "gap": 0.05, "query": 0.02, "boundary": 0.1, "left": 20, "steps": 0.05, "restarts": 0.05, "sweep": 0.05,
        "rising": 0.05, "zero": 0.02, "misled": 0.1, "saturated": 0.1, "margin": 50.0, "distinct": 0.8, "cosine": 0.3,
        "steady": 0.3, "backwards": 40, "interval": 0.2, "contract": 1e-3, "grid": 0.01, "cosine_near": 0.6,
        "cosine_nearer": 0.9, "dead": 0.1, "still": 0.99, "stuck": 0.5, "kinks": 0.25, "draws": 0.05, "agree": 0.9,
        "jump": 0.02,
    }  # fmt: skip


# How many of 20, 100 and 200 are at most a share but for chance, from the binomial distribution's table: one more has
# a probability below 5 %. Of 100 at a share of 0.02, P(k >= 5) = 0.0508 and P(k >= 6) = 0.0155.
MOST = {
    0.02: {20: 2, 100: 5, 200: 7},
    0.05: {20: 3, 100: 9, 200: 15},
    0.1: {20: 4, 100: 15, 200: 27},
}

# Each rule on shares as a function of k and n, and the share that is exceeded.
SHARES = {
    "saturated-outputs": (lambda k, n: rules.saturated_outputs(k / n, n, L), 0.1),
    "zero-gradient": (lambda k, n: rules.zero_gradient((1, 10), (k / n, 0.9), 0.9, 0.0, n, L), 0.02),
    "misleading-gradient": (lambda k, n: rules.misleading((0.1, 0.2), (0.9, 0.9), k / n, n, L), 0.1),
    "eps-sweep": (lambda k, n: rules.sweep((0.1, 0.5, 1.0), (0.9, 0.7, k / n), n, L), 0.05),
    "eps-monotone": (lambda k, n: rules.monotone((0.25, 0.25 + k / n, 0.2), n, L), 0.05),
    "step-convergence": (lambda k, n: rules.steps((10, 20, 40), (0.9, 0.8, 0.7), k / n, n, L), 0.05),
    "reject-rate": (lambda k, n: rules.refusals(k / n, n, L), 0.05),
    "eot-curve": (lambda k, n: rules.draws(5, k / n, n, L), 0.05),
    "restarts": (lambda k, n: rules.restarts(k / n, n, L), 0.05),
    "queries": (lambda k, n: rules.others("queries", "a query attack", k, n, L), 0.02),
    "noise": (lambda k, n: rules.others("noise", "noise", k, n, L), 0.02),
    "boundary": (lambda k, n: rules.others("boundary", "a walk", k, n, L), 0.1),
    "stand-in-gap": (lambda k, n: rules.stand_ins(["a", "b"], [0.2, 0.3], k / n, n, L), 0.05),
    "claim": (lambda k, n: rules.claimed(k / n, n, L), 0.05),
}


@pytest.mark.parametrize("n", [20, 100, 200])
@pytest.mark.parametrize("name", SHARES)
def test_what_chance_makes_of_its_limit_is_fine_and_one_more_is_suspect(name, n):
    rule, limit = SHARES[name]
    most = MOST[limit][n]
    fine, beyond = rule(most, n), rule(most + 1, n)
    assert [found.name for found in (fine, beyond)] == [name] * 2
    assert [found.outcome for found in (fine, beyond)] == ["fine", "suspect"]
    assert (beyond.value, beyond.limit) == (pytest.approx((most + 1) / n), limit)
    assert fine.text.endswith(f" ({most + 1} of {n} would be a sign)")
    assert "would be a sign" not in beyond.text
    assert beyond.text.count(": ") == 1
    assert (rule(0, n).outcome, rule(n, n).outcome) == ("fine", "suspect")


@pytest.mark.parametrize("limit", MOST)
def test_the_table_is_that_of_the_binomial_distribution(limit):
    share = Fraction(str(limit))
    for n, most in MOST[limit].items():
        chances = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
        assert sum(chances[most + 1 :]) < Fraction(1, 20) <= sum(chances[most:])
        assert (exceeds(most + 1, n, limit), exceeds(most, n, limit)) == (True, False)


def test_of_too_few_samples_no_share_is_a_sign():
    found = rules.saturated_outputs(1.0, 1, L)  # a single image has a chance of 0.1
    assert (found.outcome, found.text.endswith(" (1 are too few to tell)")) == ("fine", True)
    both = rules.saturated_outputs(1.0, 2, L)  # and two of two one of 0.01
    assert both.outcome == "suspect"
    for name in ("queries", "noise", "boundary"):
        found = rules.others(name, "it", 19, 19, L)
        assert (found.outcome, found.value) == ("skipped", 1.0)
        assert (
            found.text == "it breaks 100.0 % of 19 that gradient attacks left, which are too few to tell: 20 would do"
        )
        assert rules.others(name, "it", 20, 20, L).outcome == "suspect"
        assert rules.others(name, "it", 0, 0, L).outcome == "skipped"
    few = rules.too_few("slopes", "nothing was seen", 7, 9, "lines")
    assert (few.name, few.outcome, few.text) == (
        "slopes", "undecided", "nothing was seen: 7 lines are too few to tell, 9 would do")  # fmt: skip


# Each rule on a mean as a function of the one number that decides: suspect below its limit.
MEANS = {
    "hard-outputs": (lambda v: rules.hard_outputs(v, L), 0.8),
    "gradient-steadiness": (lambda v: rules.steadiness((0.1, 0.2), (v, 0.0), L), 0.3),
    "gradient-agreement": (lambda v: rules.agreement((1, 5), (0.9, v), None, L), 0.3),
}


@pytest.mark.parametrize("name", MEANS)
def test_at_its_limit_a_check_is_fine_and_below_it_is_suspect(name):
    rule, limit = MEANS[name]
    fine, beyond = rule(limit), rule(limit - 0.001)
    assert [found.name for found in (fine, beyond)] == [name] * 2
    assert [found.outcome for found in (fine, beyond)] == ["fine", "suspect"]
    assert (beyond.value, beyond.limit) == (pytest.approx(limit - 0.001), limit)
    assert len(fine.text) < len(beyond.text)


def test_what_is_seen_is_said_in_numbers():
    said = {
        "the outputs are saturated on 22.0 % of the images (a margin over 50)": rules.saturated_outputs(0.22, 100, L),
        "70.0 % of the output values differ from each other": rules.hard_outputs(0.7, L),
        "the gradient is exactly zero on 50.0 % of the images for the cross-entropy (logits ÷1 50.0 %, ÷10 25.0 %; "
        "its logarithm in float64 3.0 %), on 4.0 % for the margin": rules.zero_gradient(
            (1, 10), (0.5, 0.25), 0.03, 0.04, 100, L),
        "no step against the margin's gradient lowers the margin on 20.0 % of the images": rules.misleading(
            (0.1, 0.2), (0.5, 0.9), 0.2, 100, L),
        "the gradient 0.1 away agrees with cosine 0.20": rules.steadiness((0.1, 0.2), (0.2, 0.9), L),
        "gradients of two draws agree with cosine 0.10, means of 5 draws with 0.20": rules.agreement(
            (1, 3, 5), (0.1, 0.15, 0.2), None, L),
        "30.0 % stand at eps 0.5": rules.sweep((0.1, 0.25, 0.5), (0.9, 0.8, 0.3), 100, L),
        "the robust accuracy rises by 13.0 points as eps grows": rules.monotone((0.5, 0.3, 0.34, 0.43), 100, L),
        "the robust accuracy rises by 0.0 points as eps grows (10 of 100 would be a sign)": rules.monotone(
            (0.5, 0.3, 0.2), 100, L),
        "40 steps break 10.0 % more than 20": rules.steps((10, 20, 40), (0.9, 0.8, 0.7), 0.1, 100, L),
        "steps on the score of refusal break 12.0 % more than steps on the margin alone": rules.refusals(0.12, 100, L),
        "an average over 20 draws breaks 11.0 % more than over 5": rules.draws(5, 0.11, 100, L),
        "more restarts break 12.0 % more": rules.restarts(0.12, 100, L),
        "more restarts break 7.0 % more (10 of 100 would be a sign)": rules.restarts(0.07, 100, L),
        "noise breaks 8.0 % of 50 that gradient attacks left": rules.others("noise", "noise", 4, 50, L),
        "noise breaks 6.0 % of 50 that gradient attacks left (4 of 50 would be a sign)": rules.others(
            "noise", "noise", 3, 50, L),
        "through stand-ins (a, b) 30.0 % more break": rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, 100, L),
        "the audit's attacks break 10.0 % that this run left standing": rules.claimed(0.1, 100, L),
        "in this run no loss moved; queries broke more": rules.own_signs(["no loss moved", "queries broke more"]),
    }  # fmt: skip
    for text, found in said.items():
        assert found.text.split(": ")[0] == text
        assert (found.outcome == "fine") == ("would be a sign" in text)
    assert rules.own_signs([]).outcome == "fine"
    assert rules.percent(0.5) == "50.0 %"


def test_what_is_plotted():
    series = {
        "zero-gradient": (rules.zero_gradient((1, 10), (0.5, 0.25), 0, 0, 100, L), [1, 10], [0.5, 0.25]),
        "misleading": (rules.misleading((0.1, 0.2), (0.5, 0.9), 0.2, 100, L), [0.1, 0.2], [0.5, 0.9]),
        "steadiness": (rules.steadiness((0.1, 0.2), (0.2, 0.9), L), [0.1, 0.2], [0.2, 0.9]),
        "agreement": (rules.agreement((1, 5), (0.1, 0.2), None, L), [1, 5], [0.1, 0.2]),
        "alone": (rules.agreement((1, 5), (0.1, 0.9), claim(), L), [1, 5], [0.1, 0.9]),
        "sweep": (rules.sweep((0.1, 1.0), (0.5, 0.2), 100, L), [0.1, 1.0], [0.5, 0.2]),
        "steps": (rules.steps((10, 50), (0.5, 0.4), 0.1, 100, L), [10, 50], [0.5, 0.4]),
        "stand-ins": (rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, 100, L), [1, 2], [0.2, 0.3]),
    }
    for found, x, y in series.values():
        assert (list(found.series.x), list(found.series.y)) == (x, y)
        assert found.series.x_label
        assert found.series.y_label
    assert rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, 100, L).series.x_label == "stand-ins tried: a, b"
    assert rules.monotone((0.5, 0.3), 100, L).series is None


def test_the_larger_of_two_shares_of_zero_gradients_decides():
    shares = ((0.3, 0.1), (0.1, 0.3), (0.05, 0.05), (0.06, 0.0), (0.0, 0.06))
    found = [rules.zero_gradient((1, 10), (a, 0.0), 0.0, b, 100, L) for a, b in shares]
    assert [one.value for one in found] == [0.3, 0.3, 0.05, 0.06, 0.06]
    assert [one.outcome for one in found] == ["suspect", "suspect", "fine", "suspect", "suspect"]


@pytest.mark.parametrize(("standing", "rise"), [((), 0), ((0.5,), 0), ((0.2, 0.1, 0.3), 0.2), ((0.1, 0.4, 0.3), 0.3)])
def test_a_rise_is_from_the_lowest_before_it(standing, rise):
    assert rules.monotone(standing, 100, L).value == pytest.approx(rise)


@pytest.mark.parametrize(
    ("one", "claimed", "outcome"),
    [(0.29, claim(), "suspect"), (0.3, claim(), "fine"), (0.29, claim(averaged=True), "fine"), (0.29, None, "fine")],
)
def test_gradients_of_a_randomised_model_are_averaged_where_two_draws_do_not_agree(one, claimed, outcome):
    found = rules.agreement((1, 5), (one, 0.9), claimed, L)
    assert (found.outcome, found.limit) == (outcome, 0.3)
    assert found.value == (one if outcome == "suspect" else 0.9)
    assert ("no attack averaged" in found.text) == (outcome == "suspect")


@pytest.mark.parametrize(
    ("facts", "outcome", "words"),
    [
        ({"training": True, "changes": True}, "invalid", "stays in training mode"),
        ({"training": False, "changes": True, "counts": True}, "invalid", "changes its own state"),
        ({"training": False, "changes": False, "counts": True}, "fine", "calling the model changes no answer of it"),
        ({"training": False, "changes": False}, "fine", "in eval mode, and calling the model changes nothing in it"),
    ],
)
def test_a_model_in_eval_mode_answers_the_same_however_often_it_was_called(facts, outcome, words):
    found = rules.state(**facts)
    assert (found.name, found.outcome) == ("state", outcome)
    assert words in found.text


@pytest.mark.parametrize(
    ("randomised", "declared", "repeatable", "outcome", "words"),
    [
        (False, False, False, "fine", "the same outputs"),
        (True, True, True, "fine", "differ from call to call"),
        (True, False, True, "suspect", "does not declare it"),
        (True, True, False, "invalid", "no seed fixes them"),
        (True, False, False, "invalid", "no seed fixes them"),
    ],
)
def test_randomness_is_known_and_can_be_repeated(randomised, declared, repeatable, outcome, words):
    found = rules.randomness(randomised=randomised, declared=declared, repeatable=repeatable)
    assert (found.name, found.outcome, found.value, found.limit) == ("randomness", outcome, None, None)
    assert words in found.text


@pytest.mark.parametrize(("flows", "outcome"), [(True, "fine"), (False, "suspect")])
def test_gradients_reach_the_image(flows, outcome):
    found = rules.differentiable(flows)
    assert (found.outcome, found.text.startswith("gradients reach the image")) == (outcome, flows)


@pytest.mark.parametrize(
    ("backwards", "differentiable", "outcome"), [(40, True, "fine"), (39, True, "suspect"), (0, False, "fine")]
)
def test_a_record_s_attacks_climbed_long_enough_where_there_is_something_to_climb(backwards, differentiable, outcome):
    found = rules.attack_list(claim(backwards=backwards), differentiable=differentiable, limits=L)
    assert (found.outcome, found.value, found.limit) == (outcome, backwards, 40)
    assert found.text.startswith(f"2 gradient attacks with up to {backwards} backward passes a sample")
    weak = rules.attack_list(claim(insufficient="rand alone"), differentiable=False, limits=L)
    assert (weak.outcome, weak.text) == ("suspect", "rand alone")


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([7], "1 samples (7)"), ([3, 4, 5, 6], "4 samples (3–6)"), ([0, 2], "2 samples (0, 2)"),
        ([1, 2, 3, 4, 6], "5 samples (1, 2, 3, 4, 6)"), ([1, 2, 3, 4, 6, 9, 12], "7 samples (1, 2, 3, 4, 6 … 12)"),
        ([5, 4], "2 samples (5, 4)"),
    ],
)  # fmt: skip
def test_which_samples_the_evidence_is_of(indices, words):
    found = rules.sample(indices, Proportion(1, 2))
    assert found.text == f"looked at {words}; clean accuracy {Proportion(1, 2)}"


def test_too_few_samples_leave_it_undecided_and_say_how_many_would_do():
    for share, n in ((0.0, 16), (1.0, 16), (0.5, 93)):
        assert rules.enough(share, L) == n
        below, above = Proportion(round(share * (n - 1)), n - 1), Proportion(round(share * n), n)
        assert rules.size(below, L).outcome == "undecided"
        assert rules.size(above, L).outcome == "fine"
    found = rules.size(Proportion(16, 32), L)
    assert (found.value, found.limit) == (Proportion(16, 32).high - Proportion(16, 32).low, 0.2)
    assert found.text.endswith("on 32 samples: too few to tell; 93 would decide, if as many of them stand")
    assert rules.enough(0.0, Limits(interval=0.8)) == 1
    # Of a share that no n hits, both neighbours must be narrow enough.
    near = rules.enough(1 / 3, L)
    assert all(rules.size(Proportion(k, near), L).outcome == "fine" for k in (near // 3, -(-near // 3)))
    before = [Proportion(k, near - 1) for k in ((near - 1) // 3, -(-(near - 1) // 3))]
    assert any(one.high - one.low > 0.2 for one in before)


@pytest.mark.parametrize(
    ("outside", "undecided", "outcome", "value", "words"),
    [(0, 0, "fine", 0, "every adversarial lies in the ball"), (0, 2, "invalid", 2, "2 samples are UNKNOWN"),
     (3, 2, "invalid", 3, "3 samples count as broken by images outside")],
)  # fmt: skip
def test_a_break_outside_the_threat_model_or_an_undecided_sample_is_no_number(
    outside, undecided, outcome, value, words
):
    found = rules.violations(outside, undecided)
    assert (found.outcome, found.value, found.limit) == (outcome, value, 0)
    assert words in found.text
    skipped = rules.skipped("noise", "no time")
    assert (skipped.name, skipped.outcome, skipped.text) == ("noise", "skipped", "no time")
