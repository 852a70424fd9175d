"""The cascade `fast` and its stages: cohorts, what is handed on, what a walk that breaks something says."""

import numpy as np
import pytest
import torch
from robustkit_attacks import cohort
from robustkit_attacks.autoattack import AutoAttack
from robustkit_attacks.descent import Descent
from robustkit_attacks.fab_walk import FabWalk
from robustkit_attacks.fast import Fast
from robustkit_attacks.square_walk import SquareWalk
from robustkit_attacks.strong import Strong
from torch import nn

from benchmarks import kit
from robustkit import RobustkitError, UsageError, evaluate
from robustkit.api import Handed, ModelFacts, ThreatModel
from robustkit.engine.measure import begin, bench_of
from robustkit.engine.request import Execution, Request, threat_of
from robustkit.engine.shard import attack_shards
from robustkit.engine.units import shard_size
from robustkit.models.opening import load, open_model
from robustkit.records.run import CAUTION, ESCALATE
from robustkit.testing import attack_batch
from tests import linear, needs, toys
from tests.test_shards import assert_same, last_parts, unknown

SMALL = [
    Descent(4, cohort=32), Descent(3, "margin-targeted", "random", "auto", targets=2, share=0.5, cohort=32),
    FabWalk(steps=4, block=4, cohort=32), SquareWalk(queries=20, block=4, cohort=32),
]  # fmt: skip


@pytest.fixture(scope="module")
def opened():
    from robustkit.datasets import resolve
    from robustkit.datasets.choice import choose_samples

    samples = choose_samples(resolve("digits"), 100, None)
    with open_model(load("digits-cnn-at", "digits", "linf"), samples, tile=16) as found:
        yield found


def facts_of(opened, attacks, size, in_flight, together, known=unknown):
    with begin(opened, Request(attacks, threat_of("linf", 0.2), "digits"), Execution(shard_size=size)) as begun:
        pass
    bench, found = bench_of(begun, in_flight), {}
    for first in range(0, -(-100 // size), together):
        shards = range(first, min(-(-100 // size), first + together))
        found |= last_parts(attack_shards(bench, shards, known))
    return found


def test_a_cohort_is_attacked_as_a_whole_however_shards_are_packed(opened):
    one_by_one = facts_of(opened, SMALL, 32, 16, 1)
    assert_same(one_by_one, facts_of(opened, SMALL, 32, 64, 4))
    in_one = facts_of(opened, SMALL, 128, 16, 1)  # four cohorts in one shard
    for step in range(1, len(SMALL) + 1):
        for name in ("outcome", "margin", "forwards", "backwards", "distance"):
            parts = np.concatenate([one_by_one[shard, step][name] for shard in range(4)])
            assert np.array_equal(parts, in_one[0, step][name], equal_nan=parts.dtype.kind == "f"), (step, name)
    assert any((one_by_one[shard, 1]["outcome"] == 0).any() for shard in range(4))  # something is handed on


def test_what_a_stage_hands_on_is_read_back_from_the_journal(opened):
    whole = facts_of(opened, SMALL, 32, 16, 1)
    known = facts_of(opened, SMALL, 32, 16, 1, lambda shard, step: whole[shard, step] if step < 3 else None)
    assert_same(whole, known)

    def partly(shard, step):  # of a stage that ranks, half a cohort is no part of its result
        facts = whole[shard, step]
        keep = np.arange(len(facts.get("position", ()))) % 2 == 0
        if step != 2:
            return facts if step < 2 else None
        kept = {name: values[keep] if len(values) == len(keep) else values for name, values in facts.items()}
        return kept | {name: facts[name][:0] for name in ("point", "point_position")}

    assert_same(whole, facts_of(opened, SMALL, 32, 16, 1, partly))


def test_a_stage_gets_the_least_margin_so_far_and_the_point_where_it_was(opened):
    seen = []

    class Moves(toys._Settings):
        def __init__(self, size):
            self.size = size

        def __call__(self, case):
            return case.threat.project(case.x, case.x + self.size)

    class Looks(toys._Settings):
        cohort = 512

        def __call__(self, case):
            seen.append((case.x.clone(), case.y.clone(), case.handed))
            return case.x

    facts_of(opened, [Moves(0.03), Looks()], 128, 64, 1)
    x, y, handed = seen[0]
    assert isinstance(handed, Handed)
    network = opened.subject.reference
    clean, moved = (toys_margin(network, at, y) for at in (x, (x + 0.03).clamp(0, 1)))
    torch.testing.assert_close(handed.clean, clean.double())
    torch.testing.assert_close(handed.margin, torch.minimum(clean, moved).double())
    lower = moved < clean
    assert 0 < lower.sum() < len(x)
    torch.testing.assert_close(handed.point, torch.where(lower[:, None, None, None], (x + 0.03).clamp(0, 1), x))


def toys_margin(network, x, y):
    from robustkit.numerics import rows

    return rows.margin(network.logits(x), y)


def test_a_shard_holds_whole_cohorts():
    assert shard_size(3 * 32 * 32 * 4, 512) == 512
    assert shard_size(3 * 224 * 224 * 4, 512) == 512  # a shard of its own would be smaller
    assert shard_size(3 * 32 * 32 * 4, 100) == 500
    with pytest.raises(UsageError, match=r"a shard of 48 samples holds no whole cohorts of 32.*multiple of 32"):
        evaluate("digits-cnn", "digits", [Descent(2, cohort=32)], eps=0.1, n=64, shard_size=48, doctor=False)


def test_a_cohort_that_does_not_fit_is_refused_and_not_split(monkeypatch):
    class Hungry(toys._Settings):
        cohort = 512

        def __call__(self, case):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RobustkitError, match=r"64 samples, which are ranked together; choose a smaller cohort"):
        evaluate("digits-cnn", "digits", [Hungry()], eps=0.05, n=64, tile=16, doctor=False)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearest_classes_are_those_of_a_linear_model(norm):
    network, x, y = linear.lin(n=30, wrong=0)
    caught = []

    class Ranks(toys._Settings):
        norms = frozenset({"linf", "l2", "l1"})

        def __call__(self, case):
            caught.append(cohort.nearest_classes(case, 3))
            return case.x

    attack_batch(Ranks(), network, x, y, ThreatModel(norm, 0.1))
    weight, z = network[1].weight.detach(), network(x).detach()
    order = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    for row, ranked in enumerate(caught[0].tolist()):
        distance = {
            k: float((z[row, y[row]] - z[row, k]) / (weight[y[row]] - weight[k]).norm(p=order))
            for k in range(5)
            if k != y[row]
        }
        assert ranked == sorted(distance, key=distance.get)[:3]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_stages_break_what_a_linear_model_lets_break(norm):
    network, x, y = linear.lin(n=40, wrong=0)
    truth = linear.distances(network, x, y, norm)
    eps = linear.between(truth)
    stages = Fast(cohort=64).attacks(ThreatModel(norm, eps), ModelFacts(5, False, True, 0, ()))
    broken = [attack_batch(one, network, x, y, ThreatModel(norm, eps)).broken for one in (*stages[1:3], stages[6])]
    assert torch.equal(torch.stack(broken).any(0), truth <= eps)
    assert not (broken[0] & (truth > eps)).any()


def test_a_sample_with_several_rows_leaves_with_all_of_them_and_counts_each_pass():
    network, x, y = linear.lin(n=20, wrong=0)
    done = attack_batch(Descent(10, "margin", "random", starts=3), network, x, y, ThreatModel("linf", 0.5))
    assert done.broken.all()
    assert (done.forwards % 3 == 1).all()  # three rows, and the margin of the original image once
    assert (done.backwards % 3 == 0).all()
    assert done.backwards.max() < 30  # at eps 0.5 all of them fall at the first checkpoints


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_stage_on_all_samples_gives_each_what_it_gives_it_alone(norm):
    network, x, y = linear.lin(n=20, wrong=0)
    threat = ThreatModel(norm, linear.between(linear.distances(network, x, y, norm)))
    stage = Descent(8, "margin-targeted", "random", targets=2)
    whole = attack_batch(stage, network, x, y, threat)
    for rows in (torch.tensor([7]), torch.tensor([19, 2, 11])):
        some = attack_batch(stage, network, x[rows], y[rows], threat, indices=rows)
        assert torch.equal(whole.verdicts.adv[rows], some.verdicts.adv)
        assert torch.equal(whole.forwards[rows], some.forwards)


def test_the_walk_ends_at_the_first_block_in_which_nothing_breaks():
    network, x, y = linear.lin(n=40, wrong=0)
    truth = linear.distances(network, x, y, "linf")
    tiny = ThreatModel("linf", float(truth.min()) / 2)
    for walk in (FabWalk(steps=5, block=8), SquareWalk(queries=10, block=8)):
        done = attack_batch(walk, network, x, y, tiny)
        assert not done.broken.any()
        assert (done.forwards > 5).sum() == 8  # the ranking costs each sample a pass or two


class Bent(nn.Module):
    """A network whose gradient, but not whose decision, has all of its signs turned."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(2 * x.detach() - x)


def test_a_walk_that_breaks_something_says_so_and_names_what_settles_it():
    network, x, y = linear.lin((1, 6, 6), n=60, wrong=0)
    eps = linear.between(linear.distances(network, x, y, "linf"), 0.8)
    record = evaluate(Bent(network), (x, y), Fast(cohort=64), eps=eps, doctor=False)
    found = [flag["message"] for flag in record.flags if flag["kind"] == ESCALATE]
    assert len(found) == 1
    assert "--then autoattack" in found[0]
    assert record.attacks["outcome"][record.attacks["attack"] == record.job["attacks"][-1]].tolist().count("broken") > 0
    honest = evaluate(network, (x, y), Fast(cohort=64), eps=eps, doctor=False)
    assert not [flag for flag in honest.flags if flag["kind"] == ESCALATE]
    settled = evaluate(Bent(network), (x, y), [Fast(cohort=64), AutoAttack(steps=3, queries=20)], eps=eps, doctor=False)
    assert "broken" in settled.attacks["outcome"][settled.attacks["attack"] == record.job["attacks"][-1]]
    assert not [flag for flag in settled.flags if flag["kind"] == ESCALATE]  # AutoAttack has seen what stands


def test_fast_says_that_it_is_not_autoattack_unless_autoattack_follows():
    def flags(attack):
        record = evaluate("digits-cnn", "digits", attack, eps=0.1, n=8, doctor=False)
        return [flag["message"] for flag in record.flags if flag["kind"] == CAUTION]

    (text,) = flags("fast")
    assert text.startswith("fast is not AutoAttack")
    assert flags("(fast)+(autoattack:steps=3,queries=10,targets=1)") == []


def test_what_fast_cannot_judge_it_refuses():
    threat = ThreatModel("linf", 0.1)
    for facts in (ModelFacts(10, True, True, 0, ()), ModelFacts(10, False, False, 0, ())):
        for suite in (Fast(), Strong()):
            with pytest.raises(UsageError, match="use adaptive"):
                suite.attacks(threat, facts)
    with pytest.raises(UsageError, match="no l0 form"):
        Fast().attacks(ThreatModel("l0", 3), ModelFacts(10, False, True, 0, ()))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strong_ends_with_the_attacks_of_autoattack_for_at_most_two_and_a_half_times_its_passes(norm):
    threat, facts = ThreatModel(norm, 0.1), ModelFacts(10, False, True, 0, ())
    strong, auto = (suite.attacks(threat, facts) for suite in (Strong(), AutoAttack()))
    assert list(strong[-4:]) == list(auto)
    total, limit = (sum(sum(one.cost(10)) for one in attacks) for attacks in (strong, auto))
    assert total <= 2.5 * limit


@pytest.mark.slow
def test_fast_breaks_what_autoattack_breaks_on_a_bundled_network():
    fast = evaluate("digits-cnn-at", "digits", "fast", eps=0.2, n=100, doctor=False)
    auto = evaluate("digits-cnn-at", "digits", "autoattack", eps=0.2, n=100, doctor=False)
    standing = [set(r.samples["index"][r.samples["status"] == "ROBUST"].tolist()) for r in (fast, auto)]
    assert len(standing[0] - standing[1]) <= 1
    assert standing[0]


@needs.kit
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_cnn_a_adv", "cifar10_cnn_a_adv4"])
def test_fast_lands_inside_the_proved_brackets(name):
    import json

    known = json.loads((kit.ROOT / "oracle/sdp200_indices.json").read_text())
    low, high = {"cifar10_cnn_a_adv": (48.5, 50.0), "cifar10_cnn_a_adv4": (48.5, 49.5)}[name]
    record = evaluate(
        f"python/benchmarks.kit.model:name={name}", f"cifar10:path={kit.ROOT}/cifar10_test.npz", "fast",
        eps="2/255", indices=known["cifar10"], trust=True, doctor=False,
    )  # fmt: skip
    assert low <= 100 * float(record.robust_accuracy) <= high
