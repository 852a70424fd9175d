"""Figures of small records, each worked out by hand on a mix of samples: wrong, broken, robust, violated, not met."""

from types import SimpleNamespace

import numpy as np
import pytest

from robustkit.audit import rules
from robustkit.audit.chain import Settings
from robustkit.audit.run import _Audit
from robustkit.records import corruption
from robustkit.records.corruption import Cell, CorruptionRecord
from robustkit.records.run import RunRecord
from robustkit.report import facts
from robustkit.stats import MeanShare, Proportion
from tests.records import JOB, record


def mixed(*outcomes, eps=0.1):
    """A record of two attacks, a and b, from what they did to each sample: w(rong), b(roke), s(urvived), v(iolated)."""
    index = np.arange(len(outcomes))
    status = ["WRONG" if "w" in o else "BROKEN" if "b" in o else "UNKNOWN" if "v" in o else "ROBUST" for o in outcomes]
    names = {"b": "broken", "s": "survived", "v": "violated"}
    rows = [
        (i, "ab"[k], names[letter], 10 * (i + 1))
        for i, o in enumerate(outcomes)
        for k, letter in enumerate(o)
        if letter in names
    ]
    columns = dict(zip(("index", "attack", "outcome", "forwards"), map(np.array, zip(*rows, strict=True)), strict=True))
    return RunRecord(
        job={**JOB, "attacks": ["a", "b"], "eps": eps, "indices": index.tolist()},
        environment={},
        samples={"index": index, "label": index % 2, "status": np.array(status)},
        attacks={**columns, "backwards": columns["forwards"]},
    )


# wrong; broken by a; left by a and broken by b; robust; violated by a and broken by b
MIXED = mixed("w-", "b-", "sb", "ss", "vb")


def test_a_sample_that_a_later_attack_broke_is_decided():
    first, second = MIXED.by_attack
    assert (first.attacked, first.broken, first.violated, first.robust) == (4, 1, 1, None)
    assert (second.attacked, second.broken, second.violated) == (3, 2, 0)
    assert second.robust == MIXED.robust_accuracy == Proportion(1, 5)
    assert [row.robust for row in mixed("w-", "b-", "sb", "ss", "vs").by_attack] == [None, None]
    assert [row.robust for row in mixed("w-", "b-", "sb", "ss", "sv").by_attack] == [Proportion(3, 5), None]


def test_a_query_curve_is_over_the_samples_that_the_attack_met():
    curve = facts.query_curve(MIXED, "b")  # met samples 2, 3 and 4 with 30, 40 and 50 passes, and broke 2 and 4
    assert dict(zip(curve.x, curve.y, strict=True)) == {
        0: Proportion(0, 3), 30: Proportion(1, 3), 50: Proportion(2, 3)
    }  # fmt: skip
    assert facts.query_curve(MIXED, "a").y[-1] == Proportion(1, 4)


def corrupted(**more):
    """Two kinds at two severities on four images: 1, 2, 0 and 3 of them wrong."""
    cells = (
        Cell("fog", 1, (0,), ""),
        Cell("fog", 4, (0, 1), ""),
        Cell("snow", 1, (), ""),
        Cell("snow", 4, (0, 1, 2), ""),
    )
    return CorruptionRecord(job={}, environment={}, indices=(0, 1, 2, 3), cells=cells, **more)


def test_means_over_corruptions_are_over_the_severities_that_there_are():
    known = corrupted(baseline="net", reference={"fog": 0.5, "snow": 0.25})
    assert known.errors() == {"fog": 3 / 8, "snow": 3 / 8}
    assert known.mce.value == pytest.approx((3 / 8 / 0.5 + 3 / 8 / 0.25) / 2)
    assert known.mean_error.value == pytest.approx(6 / 16)
    assert known.mean_accuracy.value == pytest.approx(10 / 16)
    assert corruption.sum_of(known.reference, known.kinds) == pytest.approx((1 / 0.5 + 1 / 0.25) / 2)


def test_an_interval_begins_below_its_value_and_ends_above_it():
    """Of an accuracy and an error that are each other's complement, the intervals are too."""
    found = corrupted()
    assert 0 <= found.mean_accuracy.low < found.mean_accuracy.value < found.mean_accuracy.high <= 1
    assert found.mean_accuracy.low == pytest.approx(1 - found.mean_error.high)
    assert found.mean_accuracy.high == pytest.approx(1 - found.mean_error.low)
    few = MeanShare.of([0.25, 0.5], 8)  # the mean is 3 of 8
    assert (few.value, few.low, few.high) == (0.375, Proportion(3, 8).low, Proportion(3, 8).high)
    assert few.low < few.value < few.high


@pytest.mark.parametrize(
    ("standing", "rise"), [((0.5, 0.3, 0.34, 0.38), 0.08), ((0.5, 0.3, 0.32, 0.2), 0.02), ((0.3, 0.2, 0.1), 0.0)]
)
def test_a_rise_over_eps_is_from_the_lowest_of_all_smaller_balls(standing, rise):
    found = rules.monotone(standing, 1000, rules.Limits())
    assert found.value == pytest.approx(rise)
    assert found.outcome == ("suspect" if rise > 0.05 else "fine")


class Told(_Audit):
    """An audit whose attacks are told what they find: ten samples, two of them wrong."""

    def _run(self, opened, attacks, eps):
        names = [one.name for one in attacks]
        if "noise" in names:
            return record("WWRRRRRRRB", attacks=["noise"])
        if "one" in names:
            return record("WWBRRRRRBB", attacks=["one"])
        if "sweep" in names:
            return record("WWBBBBBBBR" if eps < 1 else "WWBBBBBRRR", attacks=["sweep"])
        by = ["", "", "steps10", "steps20", "steps40", "restart", "stand", "queries", "", ""]
        return record("WWBBBBBBRR", attacks=names, by=by)


def named(*names):
    return [SimpleNamespace(name=name) for name in names]


def audited(claimed):
    """Every check that rests on attacks, by its name."""
    steps, others = named("steps10", "steps20", "steps40"), named("restart", "stand", "queries")
    chain = SimpleNamespace(
        all=[*steps, *others], direct=[*steps, others[0]], steps=steps, restarts=others[:1], stand_ins=others[1:2],
        labels=["stand"], queries=others[2:], one_step=named("one")[0], sweep=named("sweep")[0],
        boundary=[], accepted=[], more_draws=[], before=lambda group: [*steps, *others[:2]],
    )  # fmt: skip
    opened = SimpleNamespace(
        module=None, samples=SimpleNamespace(indices=tuple(range(10))), offering=lambda *given: None,
        subject=SimpleNamespace(probes=np.zeros((1, 1, 4, 4))),
    )  # fmt: skip
    threat = SimpleNamespace(norm="linf", eps=0.25)
    audit = Told(opened, SimpleNamespace(threat=threat), claimed, (), lambda event: None, None)
    subject = SimpleNamespace(facts=SimpleNamespace(differentiable=True))
    return {check.name: check for check in audit._attacked(subject, chain, {}, Settings(steps=(10, 20, 40)))}


def test_shares_of_an_audit_are_of_all_its_samples():
    found = audited(None)  # eight of ten are right; three are broken by steps and one by a restart
    assert found["step-convergence"].series.y == [0.7, 0.6, 0.5]
    assert found["step-convergence"].value == 0.1
    assert found["restarts"].value == 0.1
    assert (found["stand-in-gap"].value, found["stand-in-gap"].series.y) == (0.1, [0.1])
    assert found["queries"].value == pytest.approx(1 / 3)  # of what all before them left
    assert found["noise"].value == 1 / 4  # sample 9, of four that stood before direct attacks
    assert found["one-step"].value == 2 / 4  # samples 8 and 9; 2 did not stand
    assert found["eps-sweep"].series.y == [0.6, 0.1, 0.3]
    assert found["eps-monotone"].value == pytest.approx(0.2)


def test_what_a_record_says_is_robust_is_what_an_audit_asks_about():
    found = audited(record("WWBRRBBRRR"))  # robust: 3, 4, 7, 8 and 9
    assert found["claim"].value == 0.3  # 3, 4 and 7 broke
    assert found["step-convergence"].value == 0.1  # 4
    assert (found["restarts"].value, found["stand-in-gap"].value) == (0, 0)
    assert found["queries"].value == pytest.approx(1 / 3)  # of what the record and all before them left
    assert (found["noise"].value, found["one-step"].value) == (1 / 5, 2 / 5)
    assert found["sample-size"].text.startswith(f"robust accuracy {Proportion(5, 10)}")
