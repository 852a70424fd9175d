"""The audit's rules: at each limit and just beyond it, with the number, the limit and the words that are shown."""

from dataclasses import asdict

import pytest

from robustkit.audit import rules
from robustkit.audit.rules import Claim, Limits
from robustkit.stats import Proportion

L = Limits()
MANY = Proportion(500, 1000)


def claim(**more):
    return Claim(**{"robust": MANY, "gradient_attacks": 2, "backwards": 100, "averaged": False, **more})


def test_the_limits_are_those_that_were_frozen():
    assert asdict(L) == {
        "gap": 0.05, "query": 0.02, "steps": 0.05, "restarts": 0.05, "sweep": 0.05, "rising": 0.05, "zero": 0.02,
        "misled": 0.1, "saturated": 0.1, "margin": 50.0, "distinct": 0.8, "cosine": 0.3, "steady": 0.3,
        "backwards": 40, "interval": 0.2,
    }  # fmt: skip


# Each rule as a function of the one number that decides, its limit, and whether it is suspect below instead of above.
DECIDED = {
    "saturated-outputs": (lambda v: rules.saturated_outputs(v, L), 0.1, False),
    "hard-outputs": (lambda v: rules.hard_outputs(v, L), 0.8, True),
    "zero-gradient": (lambda v: rules.zero_gradient((1, 10), (v, 0.9), 0.9, 0.0, L), 0.02, False),
    "misleading-gradient": (lambda v: rules.misleading((0.1, 0.2), (0.9, 0.9), v, L), 0.1, False),
    "gradient-steadiness": (lambda v: rules.steadiness((0.1, 0.2), (v, 0.0), L), 0.3, True),
    "gradient-agreement": (lambda v: rules.agreement((1, 5), (0.9, v), None, L), 0.3, True),
    "eps-sweep": (lambda v: rules.sweep((0.1, 0.5, 1.0), (0.9, 0.7, v), L), 0.05, False),
    "eps-monotone": (lambda v: rules.monotone((0.25, 0.25 + v, 0.2), L), 0.05, False),
    "step-convergence": (lambda v: rules.steps((10, 20, 40), (0.9, 0.8, 0.7), v, L), 0.05, False),
    "restarts": (lambda v: rules.restarts(v, L), 0.05, False),
    "queries": (lambda v: rules.stronger("queries", "a query attack", v, L), 0.02, False),
    "stand-in-gap": (lambda v: rules.stand_ins(["a", "b"], [0.2, 0.3], v, L), 0.05, False),
    "claim": (lambda v: rules.claimed(v, L), 0.05, False),
}


@pytest.mark.parametrize("name", DECIDED)
def test_at_its_limit_a_check_is_fine_and_beyond_it_is_suspect(name):
    rule, limit, below = DECIDED[name]
    step = -0.001 if below else 0.001
    fine, beyond = rule(limit - step / 2), rule(limit + step)
    assert [found.name for found in (fine, beyond)] == [name] * 2
    assert [found.outcome for found in (fine, beyond)] == ["fine", "suspect"]
    assert (beyond.value, beyond.limit) == (pytest.approx(limit + step), limit)
    assert beyond.text.startswith(f"{beyond.text.split(': ')[0]}: ")
    assert len(fine.text) < len(beyond.text)
    if name != "eps-monotone":  # which takes a difference
        assert rule(limit).outcome == "fine"


def test_what_is_seen_is_said_in_numbers():
    said = {
        "the outputs are saturated on 12.0 % of the images (a margin over 50)": rules.saturated_outputs(0.12, L),
        "70.0 % of the output values differ from each other": rules.hard_outputs(0.7, L),
        "the gradient is exactly zero on 50.0 % of the images for the cross-entropy (logits ÷1 50.0 %, ÷10 25.0 %; "
        "its logarithm in float64 3.0 %), on 4.0 % for the margin": rules.zero_gradient(
            (1, 10), (0.5, 0.25), 0.03, 0.04, L),
        "no step against the margin's gradient lowers the margin on 20.0 % of the images": rules.misleading(
            (0.1, 0.2), (0.5, 0.9), 0.2, L),
        "the gradient 0.1 away agrees with cosine 0.20": rules.steadiness((0.1, 0.2), (0.2, 0.9), L),
        "gradients of two draws agree with cosine 0.10, means of 5 draws with 0.20": rules.agreement(
            (1, 3, 5), (0.1, 0.15, 0.2), None, L),
        "30.0 % stand at eps 0.5": rules.sweep((0.1, 0.25, 0.5), (0.9, 0.8, 0.3), L),
        "the robust accuracy rises by 8.0 points as eps grows": rules.monotone((0.5, 0.3, 0.34, 0.38), L),
        "the robust accuracy rises by 0.0 points as eps grows": rules.monotone((0.5, 0.3, 0.2), L),
        "40 steps break 10.0 % more than 20": rules.steps((10, 20, 40), (0.9, 0.8, 0.7), 0.1, L),
        "more restarts break 7.0 % more": rules.restarts(0.07, L),
        "noise breaks 3.0 % that stood before stronger attacks": rules.stronger("noise", "noise", 0.03, L),
        "through stand-ins (a, b) 30.0 % more break": rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, L),
        "the audit's attacks break 6.0 % that this run left standing": rules.claimed(0.06, L),
    }  # fmt: skip
    for text, found in said.items():
        assert found.text.split(": ")[0] == text
    assert rules.percent(0.5) == "50.0 %"


def test_what_is_plotted():
    series = {
        "zero-gradient": (rules.zero_gradient((1, 10), (0.5, 0.25), 0, 0, L), [1, 10], [0.5, 0.25]),
        "misleading": (rules.misleading((0.1, 0.2), (0.5, 0.9), 0.2, L), [0.1, 0.2], [0.5, 0.9]),
        "steadiness": (rules.steadiness((0.1, 0.2), (0.2, 0.9), L), [0.1, 0.2], [0.2, 0.9]),
        "agreement": (rules.agreement((1, 5), (0.1, 0.2), None, L), [1, 5], [0.1, 0.2]),
        "alone": (rules.agreement((1, 5), (0.1, 0.9), claim(), L), [1, 5], [0.1, 0.9]),
        "sweep": (rules.sweep((0.1, 1.0), (0.5, 0.2), L), [0.1, 1.0], [0.5, 0.2]),
        "steps": (rules.steps((10, 50), (0.5, 0.4), 0.1, L), [10, 50], [0.5, 0.4]),
        "stand-ins": (rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, L), [1, 2], [0.2, 0.3]),
    }
    for found, x, y in series.values():
        assert (list(found.series.x), list(found.series.y)) == (x, y)
        assert found.series.x_label
        assert found.series.y_label
    assert rules.stand_ins(["a", "b"], [0.2, 0.3], 0.3, L).series.x_label == "stand-ins tried: a, b"
    assert rules.monotone((0.5, 0.3), L).series is None


def test_the_larger_of_two_shares_of_zero_gradients_decides():
    found = [rules.zero_gradient((1, 10), (a, 0.0), 0.0, b, L) for a, b in ((0.3, 0.1), (0.1, 0.3), (0.02, 0.02))]
    assert [(one.value, one.outcome) for one in found] == [(0.3, "suspect"), (0.3, "suspect"), (0.02, "fine")]


@pytest.mark.parametrize(("standing", "rise"), [((), 0), ((0.5,), 0), ((0.2, 0.1, 0.3), 0.2), ((0.1, 0.4, 0.3), 0.3)])
def test_a_rise_is_from_the_lowest_before_it(standing, rise):
    assert rules.monotone(standing, L).value == pytest.approx(rise)


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
