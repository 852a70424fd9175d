"""What a record says, on small mixed records: with votes, an audit, a smaller eps carried, or without a number."""

from dataclasses import replace

import numpy as np
import pytest

from robustkit.records import votes
from robustkit.records.run import RunRecord
from robustkit.stats import Proportion
from tests.records import AUDIT, record

DRAWS = 3
RIGHT, WRONG = "0" * (DRAWS + votes.MEAN), "1" * (DRAWS + votes.MEAN)


def voted(**job):
    """Five samples and two attacks: wrong; lost to a; right in every draw; right, but wrong once; wrong in the mean."""
    found = record("WBRRR", attack="a+b", attacks=["a", "b"], attack_sources={"a": "", "b": ""}, draws=DRAWS, **job)
    once = RIGHT[:DRAWS] + "1" + RIGHT[DRAWS + 1 :]
    patterns = {("a", 1): WRONG, ("a", 3): RIGHT, ("b", 3): once, ("b", 4): "100" + "1" * 5 + "0" * 5}
    pairs = list(zip(found.attacks["attack"].tolist(), found.attacks["index"].tolist(), strict=True))
    attacks = {
        **found.attacks,
        "distance": np.full(len(pairs), 0.1),
        "draws": np.array([patterns.get(pair, RIGHT) for pair in pairs]),
        "ever": np.array([pair in patterns for pair in pairs]),
    }
    samples = {**found.samples, "draws": np.array([WRONG, RIGHT, RIGHT, RIGHT, RIGHT]), "broken_at": np.full(5, np.nan)}
    samples["broken_at"][1] = 0.05
    return replace(found, samples=samples, attacks=attacks, flags=[{"kind": "randomised", "message": "noise"}])


def test_three_numbers_of_a_randomised_model_by_hand():
    found = voted()
    assert (found.randomised, found.draws, found.unvoted) == (True, 3, False)
    assert found.robust_accuracy == Proportion(3, 5)
    assert found.worst_case_accuracy == Proportion(1, 5)  # only sample 2
    # Of ten fresh draws: none of samples 0 and 1; all of 2; nine of 3; five of 4
    assert found.mean_accuracy.value == pytest.approx((0 + 0 + 10 + 9 + 5) / 50)
    assert (found.mean_accuracy.draws, found.mean_accuracy.n) == (votes.MEAN, 5)
    said = found.to_json()["summary"]["randomised"]
    assert said == {
        "draws": 3, "worst_case": found.worst_case_accuracy.to_json(), "mean": found.mean_accuracy.to_json(),
        "majority": found.robust_accuracy.to_json(),
    }  # fmt: skip
    assert "majority vote over 3" in found.rule
    assert "randomised" not in record("R").to_json()["summary"]


def test_what_a_smaller_eps_broke_has_no_mean_but_a_worst_case():
    carried = voted(carried="ff")
    assert carried.carried == 1
    assert carried.mean_accuracy is None
    assert carried.worst_case_accuracy == Proportion(1, 5)
    assert carried.to_json()["summary"]["randomised"]["mean"] is None
    assert voted().carried == 0


@pytest.mark.parametrize("doubt", ["unknown", "insufficient", "no draws"])
def test_without_a_verdict_a_randomised_model_has_none_of_the_three(doubt):
    found = voted()
    if doubt == "unknown":
        found = replace(found, samples={**found.samples, "status": np.array(["WRONG", "UNKNOWN", *["ROBUST"] * 3])})
    elif doubt == "insufficient":
        found = replace(found, flags=[*found.flags, {"kind": "insufficient", "message": "too weak"}])
    else:
        found = replace(found, samples={k: v for k, v in found.samples.items() if k != "draws"})
    assert found.worst_case_accuracy is None
    assert found.mean_accuracy is None
    said = found.to_json()["summary"]["randomised"]
    assert (said["worst_case"], said["mean"]) == (None, None)
    assert (said["majority"] is None) == (doubt != "no draws")


def test_a_record_from_before_votes_has_no_number_and_says_why():
    old = record("RRB", flags=[{"kind": "randomised", "message": "noise"}])
    assert old.unvoted
    assert old.robust_accuracy is None
    assert "2 of 3 samples survived" in old.why_no_robust_accuracy
    assert [row.robust for row in old.by_attack] == [None]


def test_why_there_is_no_number():
    errors = [{"attack": "b", "message": "crashed", "indices": [1]}, {"attack": "a", "message": "left", "indices": [0]}]
    found = replace(record("UUR"), errors=errors)
    assert found.why_no_robust_accuracy == "2 of 3 samples are UNKNOWN (a: left; b: crashed)"
    assert record("UUR").why_no_robust_accuracy == "2 of 3 samples are UNKNOWN"
    weak = record("RRR", flags=[{"kind": "insufficient", "message": "too weak"}])
    assert weak.why_no_robust_accuracy == "too weak"
    assert weak.robust_accuracy is None
    assert [row.robust for row in weak.by_attack] == [None]
    assert record("RRR").why_no_robust_accuracy == ""
    assert record("RRR").to_json()["summary"]["why_no_robust_accuracy"] is None


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("valid", ""), ("invalid", "INVALID, do not rely on it: x; y"), ("suspect", "SUSPECT, do not rely on it: x; y"),
     ("undecided", "UNDECIDED, too little evidence: x; y")],
)  # fmt: skip
def test_an_audit_s_verdict_stands_beside_the_number(verdict, words):
    found = replace(record("RR"), audit={**AUDIT, "verdict": verdict, "reasons": ["x", "y"]})
    assert (found.verdict, found.warning) == (verdict, words)
    assert found.to_json()["audit"]["verdict"] == verdict
    assert (record("RR").verdict, record("RR").warning) == ("not audited", "")
    assert "audit" not in record("RR").to_json()


def test_the_robust_accuracy_after_rounding_is_of_all_samples_and_only_where_there_is_one():
    found = record("WBRRU".replace("U", "R"))
    column = np.array(["WRONG", "ROBUST", "ROBUST", "BROKEN", "ROBUST"])
    rounded = replace(found, samples={**found.samples, "quantized_status": column})
    assert rounded.quantized_robust_accuracy == Proportion(3, 5)
    assert rounded.to_json()["summary"]["quantized_robust_accuracy"] == Proportion(3, 5).to_json()
    unknown = record("WBRRU")
    unknown = replace(unknown, samples={**unknown.samples, "quantized_status": column})
    assert unknown.quantized_robust_accuracy is None
    assert unknown.to_json()["summary"]["quantized_robust_accuracy"] is None
    assert found.quantized_robust_accuracy is None
    assert "quantized_robust_accuracy" not in found.to_json()["summary"]


def test_what_an_attack_did_in_whole():
    job = {"attack": "a+b", "attacks": ["a", "b"], "attack_sources": {"a": "", "b": ""}}
    found = replace(record("WBBRU", by=["", "a", "b", "", ""], cost=7, **job), seconds={"a": 1.23456})
    first, second = found.by_attack
    assert first.to_json() == {
        "name": "a", "attacked": 4, "broken": 1, "violated": 1, "robust_accuracy": None, "forwards": 28,
        "backwards": 28, "seconds": 1.235,
    }  # fmt: skip
    assert (second.attacked, second.broken, second.violated, second.forwards, second.seconds) == (3, 1, 1, 21, 0.0)
    assert found.counts == {"WRONG": 1, "BROKEN": 2, "ROBUST": 1, "UNKNOWN": 1}
    assert (found.n, found.unknown) == (5, 1)
    assert float(found.clean_accuracy) == 0.8
    assert found.to_json()["seconds"] == {"a": 1.235}
    whole = record("WBBRR", by=["", "a", "b", "", ""], **job)
    assert [row.robust for row in whole.by_attack] == [Proportion(3, 5), Proportion(2, 5)]
    assert whole.robust_accuracy == Proportion(2, 5)


def test_a_record_of_facts_alone_has_every_figure_and_what_is_empty_is_left_out():
    bare = record("WBR")
    bare = RunRecord(bare.job, bare.environment, bare.samples, bare.attacks)
    assert bare.by_attack[0].seconds == 0.0
    data = bare.to_json()
    assert (data["seconds"], data["predicted"], data["flags"], data["errors"]) == ({}, None, [], [])
    assert "goals" not in data
    told = replace(bare, goals={"fgsm": "bounded"}, predicted={"seconds": 2.0}).to_json()
    assert (told["goals"], told["predicted"]) == ({"fgsm": "bounded"}, {"seconds": 2.0})
    assert bare.to_frame().shape[0] == 3
    assert bare.attacks_frame().shape[0] == 2
