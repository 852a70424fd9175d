"""Randomised models: three numbers that agree with theory, records that repeat, and a judge that keeps the best."""

import dataclasses
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from robustkit import evaluate
from robustkit.api import ThreatModel
from robustkit.engine.voting import FIRST, MORE, VotingJudge
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.models.oracle import Network, Noise
from robustkit.records import gate
from robustkit.records.baseline import load as load_baseline
from robustkit.records.baseline import save as save_baseline
from robustkit.records.compare import compare
from robustkit.records.folder import load_run
from robustkit.records.votes import MEAN, reevaluations
from robustkit.report.text import markdown
from robustkit.stats import MeanShare, Proportion
from tests import toys
from tests.records import record as written

N = 1200


class Coin(nn.Module):
    """Two classes, the margin of class 0 being 6 × the mean pixel − 2.5 plus standard normal noise, fresh each call."""

    def forward(self, x):
        margin = 6 * x.mean((1, 2, 3)) - 2.5 + torch.randn(len(x), device=x.device)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


@dataclass(frozen=True)
class Lazies(toys.Lazy):
    """Several attacks that all return what they were given."""

    number: int = 0


@dataclass(frozen=True)
class Inverted(toys.Lazy):
    """Seeks the nearest and ends far away."""

    goal = "minimal"

    def __call__(self, case):
        return 1 - case.x


def coin_case(n=N):
    x = torch.rand(n, 1, 1, 1, generator=toys.seeded(0)).expand(-1, 1, 2, 2).contiguous()
    wrong = np.array([NormalDist().cdf(2.5 - 6 * v) for v in x.mean((1, 2, 3)).tolist()])
    return x, torch.zeros(n, dtype=torch.int64), wrong


def vote_lost(p, draws):
    """The chance that at least half of the draws are wrong."""
    return sum(math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(-(-draws // 2), draws + 1))


def agree(observed, chances):
    """Whether a share of independent events has its expectation, within four standard deviations."""
    chances = np.asarray(chances)
    return abs(float(observed) - chances.mean()) <= 4 * math.sqrt((chances * (1 - chances)).sum()) / len(chances)


@pytest.mark.parametrize("draws", [1, 5, 10])
def test_the_three_numbers_agree_with_theory(draws):
    x, y, p = coin_case()
    record = evaluate(Coin(), (x, y), toys.Lazy(), eps=0.01, draws=draws, doctor=False)
    right = 1 - vote_lost(p, draws)
    assert agree(record.clean_accuracy, right)
    assert agree(record.robust_accuracy, right * right)
    assert agree(record.mean_accuracy, right * (1 - p)), (float(record.mean_accuracy), (right * (1 - p)).mean())
    assert record.mean_accuracy.draws == MEAN
    expected = math.sqrt((right * p * (1 - p)).sum()) / N  # of one draw's accuracy, given who is attacked
    assert expected / 2 < record.mean_accuracy.std < 2 * expected
    # A first wrong draw already counts, so the further ones change nothing; the clean image's draws count too.
    assert agree(record.worst_case_accuracy, (1 - p) ** (FIRST + 2 * reevaluations(draws)))
    assert record.worst_case_accuracy.k < record.robust_accuracy.k


def test_the_number_of_attacks_does_not_lower_the_mean():
    x, y, p = coin_case(600)
    attacks = [Lazies(number) for number in range(6)]
    record = evaluate(Coin(), (x, y), attacks, eps=0.01, doctor=False)
    one = evaluate(Coin(), (x, y), attacks[0], eps=0.01, doctor=False)
    right = 1 - vote_lost(p, 10)
    assert agree(record.mean_accuracy, right * (1 - p))
    assert float(record.robust_accuracy) < float(one.robust_accuracy)  # each candidate has a vote, with its own noise


def test_a_candidate_beyond_eps_is_none_for_the_mean():
    x, y, p = coin_case(600)
    record = evaluate(Coin(), (x, y), Inverted(), eps=0.001, doctor=False)
    right = 1 - vote_lost(p, 10)
    assert (record.attacks["distance"] > 0.01).any()
    assert agree(record.mean_accuracy, right * (1 - p))


def test_what_is_within_eps_is_not_given_up_for_what_is_surer_beyond():
    x, y, _ = coin_case(200)

    @dataclass(frozen=True)
    class Both(Inverted):
        def __call__(self, case):
            case.submit(case.threat.clip(case.x - 0.04))
            return 1 - case.x

    record = evaluate(Coin(), (x, y), Both(), eps=0.05, doctor=False)
    distance = record.attacks["distance"]
    assert np.isfinite(distance).sum() > 5
    assert not (distance > 0.05).any()


def test_a_randomised_models_settings_are_part_of_the_run_though_they_are_in_no_weight(tmp_path):
    from robustkit_defenses.gaussian_smoothing import GaussianSmoothing

    _, x, y = noisy_case(20)
    little, much = (GaussianSmoothing(sigma=sigma, draws=2).protect(toys.Linear()) for sigma in (0.01, 5.0))
    first = evaluate(little, (x, y), "fgsm", eps=0.1)
    assert first.job["noisy_sha256"] == evaluate(little, (x, y), "fgsm", eps=0.1).job["noisy_sha256"] != ""
    assert first.job["id"] != evaluate(much, (x, y), "fgsm", eps=0.1).job["id"]
    assert evaluate(toys.Linear(), (x, y), "fgsm", eps=0.1).job["noisy_sha256"] == ""


def test_which_is_the_headline_stands_in_every_form_of_the_record(tmp_path):
    x, y, _ = coin_case(200)
    record = evaluate(Coin(), (x, y), toys.Lazy(), eps=0.01, out=tmp_path / "run", doctor=False)
    data = json.loads((tmp_path / "run/run.json").read_text())["summary"]
    assert data["rule"].startswith("majority vote over 10 fresh draws")
    assert data["randomised"]["majority"] == data["robust_accuracy"] == record.robust_accuracy.to_json()
    assert data["randomised"]["mean"] == record.mean_accuracy.to_json()
    assert data["randomised"]["worst_case"] == record.worst_case_accuracy.to_json()
    for text in (record.summary(), markdown(record), (tmp_path / "run/report.md").read_text()):
        for label in ("majority vote of 10 fresh draws", "mean ± std of 10 fresh draws", "worst case over all passes"):
            assert label in text
    again = load_run(tmp_path / "run")
    assert again.to_json()["summary"] == json.loads(json.dumps(record.to_json()["summary"]))


def noisy_case(n=70, sigma=1.5):
    """A linear model whose logits have noise, and images that it gets right without it."""
    x = torch.rand(n, 1, 4, 4, generator=toys.seeded(3))
    model = toys.Linear()
    return NoisyLogits(model, sigma), x, model(x).argmax(1)


class NoisyLogits(nn.Module):
    def __init__(self, inner, sigma):
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, x):
        z = self.inner(x)
        return z + self.sigma * torch.randn_like(z)


ATTACK = "(pgd:steps=8)+(pgd:steps=4,eot=3,loss=margin)"


def same(a, b):
    return a.to_frame().equals(b.to_frame()) and a.attacks_frame().equals(b.attacks_frame())


def test_a_rerun_repeats_exactly_whatever_the_batch_size_and_after_a_stop(tmp_path):
    model, x, y = noisy_case()
    options = {"eps": 0.05, "doctor": False, "tile": 16}
    first = evaluate(model, (x, y), ATTACK, **options)
    assert first.counts["BROKEN"]
    assert first.counts["ROBUST"]
    torch.rand(5)
    for size in (1, 40, "auto"):
        assert same(evaluate(model, (x, y), ATTACK, batch_size=size, **options), first)
    assert not same(evaluate(model, (x, y), ATTACK, seed=1, **options), first)

    seen = []

    def stop(event):
        seen.append(event)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, (x, y), ATTACK, out=tmp_path / "run", on_event=stop, **options)
    assert list((tmp_path / "run/journal").glob("*.npz"))
    assert same(evaluate(model, (x, y), ATTACK, out=tmp_path / "run", **options), first)


class NoisyBackward(nn.Module):
    """Its outputs hardly differ from call to call, its gradients do: in one draw they are mostly noise."""

    randomised = True

    def __init__(self, inner, sigma):
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, x):
        z = self.inner(x)
        noise = torch.randn(z.shape[1], *x.shape, device=x.device)
        hidden = (noise * (x - x.detach())).flatten(2).sum(2).T
        return z + self.sigma * hidden + 1e-3 * torch.randn_like(z)


def test_eot_breaks_what_plain_pgd_leaves_standing():
    x = torch.rand(32, 1, 4, 4, generator=toys.seeded(3))
    inner = toys.Linear()
    model, y = NoisyBackward(inner, 12.0), inner(x).argmax(1)
    plain, averaged, without = (
        evaluate(net, (x, y), attack, eps=0.1, doctor=False)
        for net, attack in ((model, "pgd:steps=10"), (model, "pgd:steps=10,eot=100"), (inner, "pgd:steps=10"))
    )
    assert float(plain.robust_accuracy) > float(averaged.robust_accuracy) + 0.2
    assert float(averaged.robust_accuracy) < float(without.robust_accuracy) + 0.15


def test_the_suite_that_is_no_measure_alone_establishes_nothing_alone(tmp_path):
    model, x, y = noisy_case(40)
    rand = "autoattack:version=rand,steps=2"
    alone = evaluate(model, (x, y), rand, eps=0.1, out=tmp_path / "run")
    assert alone.robust_accuracy is None
    assert alone.mean_accuracy is None
    assert "alone it is no measure" in alone.summary()
    assert load_run(tmp_path / "run").robust_accuracy is None
    among = evaluate(model, (x, y), f"({rand})+(square:queries=20)", eps=0.1)
    assert among.robust_accuracy is not None


def judge(x, y, draws=10, goal="bounded", eps=1.0):
    network = Network(Coin(), 8, x.device, noise=Noise("test"))
    return VotingJudge(network, ThreatModel("linf", eps), x, y, None, goal, draws)


def brightness(p):
    """The grey value at which the coin falls wrong with chance p."""
    return (2.5 + NormalDist().inv_cdf(1 - p)) / 6


def test_the_judge_keeps_the_candidate_that_is_most_often_wrong():
    n = 400
    x, y = torch.full((n, 1, 2, 2), 0.9), torch.zeros(n, dtype=torch.int64)
    asked = judge(x, y)
    for p in (0.3, 0.9, 0.1, 0.6):
        asked.submit(torch.arange(n), torch.full_like(x, brightness(p)))
    kept = asked.adv.mean((1, 2, 3))
    assert float(torch.isclose(kept, torch.tensor(brightness(0.9))).double().mean()) > 0.6
    assert float(torch.isclose(kept, torch.tensor(brightness(0.1))).double().mean()) < 0.02
    asked.settle(lambda draw: Network(Coin(), 8, x.device, noise=Noise("fresh", draw)))
    fresh = np.array([len(text) and text.count("1") / len(text) for text in asked.patterns()])
    chances = np.array([NormalDist().cdf(2.5 - 6 * v) for v in kept.tolist()])
    assert abs(fresh.mean() - chances.mean()) < 0.04  # the draws that chose a candidate do not vote on it


def test_submit_says_done_only_of_what_is_nearly_always_wrong():
    n = 500
    x, y = torch.full((n, 1, 2, 2), 0.9), torch.zeros(n, dtype=torch.int64)
    for p, low, high in ((0.5, 0, 0.02), (0.8, 0.2, 0.45), (0.99, 0.9, 1)):
        done = judge(x, y).submit(torch.arange(n), torch.full_like(x, brightness(p)))
        need = math.ceil(0.8 * (FIRST + MORE)) - FIRST
        theory = p**FIRST * sum(math.comb(MORE, k) * p**k * (1 - p) ** (MORE - k) for k in range(need, MORE + 1))
        assert low <= theory <= high
        assert abs(float(done.double().mean()) - theory) < 4 * math.sqrt(theory * (1 - theory) / n) + 1e-9


def test_rules_are_kept_on_a_randomised_model_too():
    x, y, _ = coin_case(40)
    for cheater in (toys.LeavesBall(), toys.LeavesBox(), toys.ReturnsNaN(), toys.Raises(), toys.ReturnsNothing()):
        record = evaluate(Coin(), (x, y), cheater, eps=0.01, doctor=False)
        assert record.counts["UNKNOWN"] > 10
        assert record.counts["BROKEN"] == 0
        assert record.robust_accuracy is record.mean_accuracy is record.worst_case_accuracy is None


@pytest.mark.parametrize(
    "more",
    [
        {"norm": "l2", "attack": "cw:steps=20,searches=3"},
        {"quantize": "8bit"},
        {"target": "least-likely"},
        {"target": "random", "attack": "square:queries=60"},
    ],
)
def test_minimal_rounded_and_targeted_evaluations_vote_as_well(more):
    model, x, y = noisy_case(40, sigma=0.3)
    record = evaluate(model, (x, y), **{"attack": "pgd:steps=10", "eps": 0.1, "doctor": False, **more})
    assert record.robust_accuracy is not None
    assert record.counts["UNKNOWN"] == 0
    broken = record.attacks["outcome"] == "broken"
    lost = np.array([text[:10].count("1") >= 5 for text in record.attacks["draws"]])
    inside = record.attacks["distance"] <= 0.1 * (1 + 1e-6) + 1e-7
    assert (broken == (lost & inside)).all()


def test_a_sweep_carries_what_lost_the_vote():
    model, x, y = noisy_case(40)
    small = evaluate(model, (x, y), "pgd:steps=5", eps=0.02, doctor=False)
    large = evaluate(model, (x, y), "pgd:steps=5", eps=0.05, doctor=False, carry=small)
    assert large.carried == small.counts["BROKEN"]
    assert large.robust_accuracy.k <= small.robust_accuracy.k
    assert large.worst_case_accuracy is not None


def test_compare_gate_and_baseline_take_voted_records(tmp_path):
    model, x, y = noisy_case(60)
    options = {"eps": 0.05, "doctor": False}
    before = evaluate(model, (x, y), "pgd:steps=5", **options)
    worse = evaluate(NoisyLogits(toys.Linear(scale=0.4), 1.5), (x, y), "pgd:steps=5", **options)
    assert compare(before, before).robust.difference == 0
    assert gate.judge(before, before, Fraction(0)).passed
    verdict = gate.judge(before, worse, Fraction(1, 200))
    assert not verdict.passed, verdict.reason
    save_baseline(before, tmp_path / "base.json")
    known = load_baseline(tmp_path / "base.json")
    assert known.robust_accuracy == before.robust_accuracy
    assert known.mean_accuracy is None
    assert "majority vote of 10" in known.summary()
    assert gate.request(known.job)["draws"] == 10
    with pytest.raises(UsageError, match="draws is 20 in the run but 10"):
        gate.judge(before, evaluate(model, (x, y), "pgd:steps=5", draws=20, **options), Fraction(0))
    # The same weights on a part of the samples: the noise falls otherwise, and the gate asks statistics, not identity.
    part = evaluate(model, (x, y), "pgd:steps=5", n=35, **options)
    assert gate.judge(known, part, Fraction(0)).passed


def test_records_of_one_pass_have_no_robust_accuracy_and_say_why():
    old = written("RRB", flags=[{"kind": "randomised", "message": "…"}])
    assert old.robust_accuracy is None
    assert "one pass" in old.why_no_robust_accuracy
    assert old.worst_case_accuracy is old.mean_accuracy is None
    with pytest.raises(NotEstablishedError, match="randomised"):
        compare(old, old)


def test_a_deterministic_model_has_none_of_it():
    model, x, y = noisy_case(20)
    record = evaluate(model.inner, (x, y), "fgsm", eps=0.05, draws=3, doctor=False)
    assert record.job["draws"] == 0
    assert "draws" not in record.samples
    assert "randomised" not in record.to_json()["summary"]
    assert record.rule.startswith("a sample is broken by any valid image")


def test_draws_must_be_at_least_one():
    model, x, y = noisy_case(5)
    with pytest.raises(UsageError, match="draws must be a whole number of at least 1"):
        evaluate(model, (x, y), "fgsm", eps=0.05, draws=0)


def test_the_interval_of_a_mean_is_wilsons():
    found, counted = MeanShare.of([0.3, 0.5], 50), Proportion(20, 50)
    assert dataclasses.astuple(found)[:4] == (0.4, pytest.approx(math.sqrt(0.02)), 2, 50)
    assert (found.low, found.high) == pytest.approx((counted.low, counted.high))
