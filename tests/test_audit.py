"""The audit: each check on a toy where the answer is known by construction, and what a record keeps of it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.masking_zoo import FlipsGradients, Shattered, one_hot, rounded
from robustkit import evaluate, events
from robustkit.api import ModelFacts, ThreatModel
from robustkit.audit import Audit, Check, Series, gradients, rules
from robustkit.audit import run as auditing
from robustkit.audit.chain import Settings
from robustkit.audit.noise import RandomNoise
from robustkit.audit.rules import Claim, Limits
from robustkit.audit.run import Question, audit, audit_opened
from robustkit.datasets import resolve
from robustkit.datasets.choice import choose_samples
from robustkit.engine import plan
from robustkit.errors import UsageError
from robustkit.models import standins
from robustkit.models.examination import examine
from robustkit.models.opening import load, open_model
from robustkit.records.findings import stored
from robustkit.stats import Proportion
from tests import records, toys

SHAPE = (1, 4, 4)
FEW = 24
THREAT = ThreatModel("linf", 0.02)
SHORT = Settings(steps=(3, 10, 20), targets=1, restarts=2, swap=10, copies=2, queries=50, noise=10)


class Net(nn.Module):
    """A linear model that is right on `labelled` images: honest, and broken at a known eps."""

    def __init__(self, classes=5):
        super().__init__()
        self.inner = toys.Linear(SHAPE, classes)

    def forward(self, x):
        return self.inner(x - 0.5)


class Changed(nn.Module):
    """A network with something done to its images, its logits, or both."""

    def __init__(self, network, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


def labelled(n=FEW, model=None):
    x = torch.rand(n, *SHAPE, generator=toys.seeded(5))
    return x, (model or Net())(x).argmax(1).detach()


def network(model, x):
    y = model(x).argmax(1).detach() if not isinstance(model, Noisy) else torch.zeros(len(x), dtype=torch.int64)
    subject = examine(model.eval(), x, y, classes=None, outputs="logits", tile=8, seed=0, device=torch.device("cpu"))
    return subject.reference


class Noisy(nn.Module):
    """Noise whose gradient is all there is, or none of it."""

    randomised = True

    def __init__(self, network, of_gradient):
        super().__init__()
        self.network, self.of_gradient = network, of_gradient

    def forward(self, x):
        noise = torch.randn(x[0].numel(), 5)
        return self.network(x) + (x.flatten(1) @ (100 * noise) if self.of_gradient else 1e-4 * noise[:1])


def check(found, name):
    (one,) = [one for one in found.checks if one.name == name]
    return one


def outcomes(found):
    return {one.name: one.outcome for one in found.checks}


# Rules: what is measured becomes an outcome

HALF = Proportion(50, 100)
CLAIM = Claim(Proportion(500, 1000), 2, 100, averaged=False)
L = Limits()
EDGES = {
    "state": (rules.state(training=True, changes=False), "invalid"),
    "state, changes": (rules.state(training=False, changes=True), "invalid"),
    "state, fine": (rules.state(training=False, changes=False), "fine"),
    "state, counts": (rules.state(training=False, changes=False, counts=True), "fine"),
    "no randomness": (rules.randomness(randomised=False, declared=False, repeatable=False), "fine"),
    "undeclared": (rules.randomness(randomised=True, declared=False, repeatable=True), "suspect"),
    "declared": (rules.randomness(randomised=True, declared=True, repeatable=True), "fine"),
    "not repeatable": (rules.randomness(randomised=True, declared=True, repeatable=False), "invalid"),
    "flows": (rules.differentiable(True), "fine"),
    "none flows": (rules.differentiable(False), "suspect"),
    "distinct": (rules.hard_outputs(L.distinct, L), "fine"),
    "hard": (rules.hard_outputs(L.distinct - 0.01, L), "suspect"),
    "soft": (rules.saturated_outputs(L.saturated, 100, L), "fine"),
    "saturated": (rules.saturated_outputs(0.16, 100, L), "suspect"),
    "zero of ce": (rules.zero_gradient((1, 10), (0.5, 0), 0, 0, 100, L), "suspect"),
    "zero of margin": (rules.zero_gradient((1, 10), (0, 0), 0, 0.5, 100, L), "suspect"),
    "zero only divided": (rules.zero_gradient((1, 10), (0, 0.5), 0, 0, 100, L), "fine"),
    "misled": (rules.misleading((0.1,), (1.0,), 0.16, 100, L), "suspect"),
    "misled now and then": (rules.misleading((0.1, 0.2), (1.0, 0.0), 0.0, 100, L), "fine"),
    "shattered": (rules.steadiness((0.1, 0.2), (0.0, 0.9), L), "suspect"),
    "steady": (rules.steadiness((0.1, 0.2), (0.9, 0.0), L), "fine"),
    "eot agrees": (rules.agreement((1, 5), (0.05, 0.9), None, L), "fine"),
    "eot disagrees": (rules.agreement((1, 5), (0.05, 0.1), None, L), "suspect"),
    "no eot was used": (rules.agreement((1, 5), (0.05, 0.9), CLAIM, L), "suspect"),
    "sweep": (rules.sweep((0.1, 1.0), (0.5, 0.2), 100, L), "suspect"),
    "sweep to zero": (rules.sweep((0.1, 1.0), (0.5, 0.0), 100, L), "fine"),
    "rises": (rules.monotone((0.5, 0.3, 0.4), 100, L), "suspect"),
    "falls": (rules.monotone((0.5, 0.3, 0.3), 100, L), "fine"),
    "rises little by little": (rules.monotone((0.5, 0.3, 0.35, 0.41), 100, L), "suspect"),
    "one eps": (rules.monotone((0.0,), 100, L), "fine"),
    "late": (rules.steps((10, 50), (0.5, 0.4), 0.1, 100, L), "suspect"),
    "converged": (rules.steps((10, 50), (0.5, 0.4), 0.0, 100, L), "fine"),
    "restarts": (rules.restarts(0.1, 100, L), "suspect"),
    "queries": (rules.others("queries", "a query attack", 6, 100, L), "suspect"),
    "one or two queries": (rules.others("queries", "a query attack", 2, 64, L), "fine"),
    "of few left": (rules.others("queries", "a query attack", 19, 19, L), "skipped"),
    "boundary": (rules.others("boundary", "a walk", 16, 100, L), "suspect"),
    "boundary now and then": (rules.others("boundary", "a walk", 15, 100, L), "fine"),
    "signs of its own": (rules.own_signs(["queries broke 9 of 20"]), "suspect"),
    "no signs": (rules.own_signs([]), "fine"),
    "gap": (rules.stand_ins(["mean"], [0.3], 0.3, 100, L), "suspect"),
    "no gap": (rules.stand_ins(["mean"], [0.0], 0.0, 100, L), "fine"),
    "claim": (rules.claimed(0.1, 100, L), "suspect"),
    "alone": (rules.attack_list(Claim(HALF, 2, 100, False, "rand alone"), differentiable=True, limits=L), "suspect"),
    "few steps": (rules.attack_list(Claim(HALF, 1, 3, False), differentiable=True, limits=L), "suspect"),
    "nothing to climb": (rules.attack_list(Claim(HALF, 0, 0, False), differentiable=False, limits=L), "fine"),
    "enough": (rules.attack_list(CLAIM, differentiable=True, limits=L), "fine"),
    "few samples": (rules.size(Proportion(16, 32), L), "undecided"),
    "many samples": (rules.size(Proportion(500, 1000), L), "fine"),
    "outside": (rules.violations(1, 0), "invalid"),
    "undecided": (rules.violations(0, 1), "invalid"),
    "inside": (rules.violations(0, 0), "fine"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "outcome"), EDGES.values(), ids=EDGES)
def test_a_limit_decides(made, outcome):
    assert made.outcome == outcome
    assert made.text


def test_a_rise_is_measured_from_the_lowest_before_it():
    found = rules.monotone((0.5, 0.3, 0.34, 0.38), 100, L)
    assert found.value == pytest.approx(0.08)
    assert found.limit == 0.05


@pytest.mark.parametrize(("k", "n", "wanted"), [(24, 48, 93), (0, 5, 16), (10, 10, 16)])
def test_too_few_samples_say_how_many_would_decide(k, n, wanted):
    found = rules.size(Proportion(k, n), L)
    assert found.outcome == "undecided"
    assert f"on {n} samples: too few to tell; {wanted} would decide" in found.text
    share = k / n
    for near in {int(share * wanted), -int(-share * wanted // 1)}:
        assert rules.size(Proportion(near, wanted), L).outcome == "fine"
    assert rules.size(Proportion(round(share * (wanted - 1)), wanted - 1), L).outcome == "undecided"


def test_the_worst_outcome_is_the_verdict_and_what_is_invalid_comes_first():
    fine, skip = Check("a", "fine", "well"), Check("b", "skipped", "not possible")
    doubt, wrong = Check("c", "suspect", "doubt"), Check("d", "invalid", "wrong")
    assert Audit((fine, skip)).verdict == "valid"
    assert Audit((fine, skip)).reasons == ()
    assert Audit((fine, doubt)).verdict == "suspect"
    assert Audit((doubt, wrong)).verdict == "invalid"
    assert Audit((doubt, wrong)).reasons == ("wrong", "doubt")
    few = Check("e", "undecided", "too few")
    assert Audit((fine, few)).verdict == "undecided"
    assert Audit((fine, few)).reasons == ("too few",)
    assert Audit((few, doubt)).verdict == "suspect"
    assert Audit((few, doubt)).reasons == ("doubt", "too few")


def test_an_audit_survives_json_and_its_verdict_is_recomputed():
    found = Audit((Check("c", "suspect", "doubt", 0.5, 0.1, Series([1, 2], [0.5, 0.4], "x", "y")),))
    data = json.loads(json.dumps(found.to_json()))
    assert set(data) == {"schema", "verdict", "reasons", "checks"}
    assert Audit.from_json(data).to_json() == found.to_json()
    assert stored({**data, "verdict": "valid", "reasons": []}) == found.to_json()
    assert stored(None) is None
    for damaged in ({**data, "schema": "robustkit/audit/9"}, {**data, "checks": [{"name": "x"}]}, []):
        with pytest.raises(UsageError):
            stored(damaged)


# Measurements


def test_the_gradients_of_a_linear_model_are_sound():
    x, _ = labelled()
    reference = network(Net(), x)
    assert gradients.vanishing(reference, x) == ((0, 0, 0), 0, 0)
    assert gradients.misleading(reference, x) == ((0, 0, 0), 0)
    assert gradients.steadiness(reference, x, torch.arange(FEW)) == pytest.approx((1, 1, 1), abs=1e-6)
    seen = gradients.outputs(reference, x)
    assert seen.distinct == 1
    assert seen.saturated(50) == 0


def test_large_logits_starve_the_cross_entropy_but_neither_the_margin_nor_float64():
    x, _ = labelled()
    found = gradients.vanishing(network(Changed(Net(), after=lambda z: 1e4 * z), x), x)
    assert found.entropy[0] > 0.9
    assert found.entropy[0] >= found.entropy[1] > found.entropy[2]
    assert found.of_log == found.of_margin == 0


def test_a_margin_is_saturated_by_scale_alone():
    x, _ = labelled()
    assert gradients.outputs(network(Changed(Net(), after=lambda z: 1e4 * z), x), x).saturated(50) > 0.9


def test_a_backward_pass_of_the_wrong_sign_misleads_everywhere():
    x, _ = labelled()
    assert gradients.misleading(network(Changed(Net(), FlipsGradients.apply), x), x).always == 1


def test_steep_waves_shatter_gradients():
    x, _ = labelled()
    model = Shattered(Net(), period=1e-3)
    assert gradients.steadiness(network(model, x), x, torch.arange(FEW))[0] < 0.1


def test_decisions_take_few_values():
    x, _ = labelled()
    assert gradients.outputs(network(Changed(Net(), after=one_hot), x), x).distinct == 2 / (FEW * 5)


@pytest.mark.parametrize(("of_gradient", "low", "high"), [(False, 0.999, 1.001), (True, -0.6, 0.6)])
def test_draws_agree_unless_the_noise_is_in_the_gradient(of_gradient, low, high):
    x, _ = labelled()
    one, many = gradients.agreement(network(Noisy(Net(), of_gradient), x), x, (1, 4))
    assert low < one < high
    assert low < many < high


# Stand-ins


def test_the_network_inside_is_found_and_fed_what_it_is_really_fed():
    x, _ = labelled(8)
    net = Net()
    model = Changed(net, rounded(3)).eval()
    assert standins.networks_inside(model, x, 5) == ["network", "network.inner"]
    assert standins.networks_inside(toys.Linear(SHAPE), x, 5) == []
    inside = standins.Inside(model, "network")
    images = x.clone().requires_grad_(True)
    assert torch.equal(inside(images), model(x))
    (grad,) = torch.autograd.grad(inside(images)[:, 0].sum(), images)
    assert torch.allclose(grad.flatten(1), net.inner.weight[0].expand(8, -1))  # as if rounding were the identity


def test_smoothing_is_of_a_sample_alone_and_always_the_same():
    x, _ = labelled(8)
    smoothed = standins.Smoothed(Net(), 0.1, 4).eval()
    assert torch.equal(smoothed(x), smoothed(x))
    assert torch.allclose(smoothed(x)[3:5], smoothed(x[3:5]), atol=1e-6)


def test_a_watched_model_is_the_model_with_more_stand_ins():
    x, _ = labelled(8)
    ensemble = toys.SharedBackbone()
    watched = standins.Watched(ensemble, {"more": Net()})
    assert torch.equal(watched(x), ensemble(x))
    assert torch.equal(watched.forward_with_members(x)[1], ensemble.forward_with_members(x)[1])
    assert len(watched.members()) == 3
    assert list(watched.surrogates()) == ["more"]
    assert set(dict(watched.named_children())) == {"model"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_noise_finds_what_is_everywhere(norm):
    class Fragile(nn.Module):
        """Wrong wherever the image is not exactly grey."""

        def forward(self, x):
            grey = (x == 0.5).flatten(1).all(1).to(x.dtype)
            return torch.stack([grey, 0.5 + 0 * grey], 1)

    x = torch.full((4, *SHAPE), 0.5)
    data = (x, torch.zeros(4, dtype=torch.int64))
    record = evaluate(Fragile(), data, RandomNoise(2), norm=norm, eps=0.1)
    assert record.counts["BROKEN"] == 4
    assert evaluate(Fragile(), data, RandomNoise(2), norm=norm, eps=0.1, indices="2").counts["BROKEN"] == 1
    assert evaluate(Net(), (X, Y), RandomNoise(4), norm=norm, eps=0.1).unknown == 0  # never out of the ball


# The audit of a model

X, Y = labelled()


def seen(model, **more):
    return audit(model, (X, Y), eps=0.02, settings=SHORT, **more)


def test_an_honest_model_is_valid_and_the_budget_is_told_before_anything_is_spent():
    told = []
    found = seen(Net(), on_event=told.append)
    assert found.verdict == "valid", found.reasons
    first = told[0]
    assert isinstance(first, events.Auditing)
    assert first.n == FEW
    assert first.forwards > 0 < first.backwards
    checked = [event for event in told if isinstance(event, events.Checked)]
    assert [(e.name, e.outcome) for e in checked] == [(one.name, one.outcome) for one in found.checks]
    assert "0–23" in check(found, "sample").text
    assert check(found, "eps-sweep").series.y[-1] == 0
    assert seen(Net()).to_json() == found.to_json()


def test_members_are_stand_ins_and_two_classes_are_enough():
    ensemble = toys.SharedBackbone(SHAPE, classes=2)
    found = audit(ensemble, labelled(model=ensemble), eps=0.02, settings=SHORT)
    assert found.verdict == "valid", found.reasons
    assert "mean of members, member 0, member 1, member 2" in check(found, "stand-in-gap").text


def test_what_an_audit_names_it_is_of_those_samples():
    found = seen(Net(), indices="3,5,9")
    assert "3, 5, 9" in check(found, "sample").text


def cheats():
    class Detached(Changed):
        def forward(self, x):
            return super().forward(x).detach()

    class Counts(Changed):
        def __init__(self, network, weight):
            super().__init__(network)
            self.register_buffer("calls", torch.zeros(()))
            self.weight = weight

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + self.weight * self.calls * torch.arange(5)

    class Drops(Changed):
        def train(self, mode=True):
            return super().train(True)

    class Unseeded(Changed):
        draws = torch.Generator().manual_seed(1)

        def forward(self, x):
            return super().forward(x) + 0.01 * torch.randn(5, generator=self.draws)

    net = Net()
    return {
        "hard labels": (Changed(net, after=one_hot), "suspect", {"hard-outputs", "gradient-flow"}),
        "detached": (Detached(net), "suspect", {"gradient-flow"}),
        "rounded": (Changed(net, rounded(9)), "suspect", {"gradient-flow"}),
        "saturated": (Changed(net, after=lambda z: 1e5 * z), "suspect", {"saturated-outputs", "zero-gradient"}),
        "wrong sign": (Changed(net, FlipsGradients.apply), "suspect", {"misleading-gradient", "stand-in-gap"}),
        "undeclared noise": (Changed(net, lambda x: x + 0.01 * torch.randn_like(x)), "suspect", {"randomness"}),
        "noise of its own": (Unseeded(net), "invalid", {"randomness"}),
        "stays in training": (Drops(net), "invalid", {"state"}),
        "counts its calls and goes by it": (Counts(net, 0.01), "invalid", {"state"}),
        "counts its calls alone": (Counts(net, 0.0), "valid", set()),
    }


@pytest.mark.parametrize("name", cheats())
def test_what_hides_is_found_whether_declared_or_not(name):
    model, verdict, names = cheats()[name]
    found = seen(model)
    assert found.verdict == verdict, found.reasons
    assert names <= {one.name for one in found.checks if one.outcome == verdict}


def test_noise_that_is_declared_and_averaged_over_is_no_sign():
    model = Changed(Net(), lambda x: x + 0.01 * torch.randn_like(x))
    model.randomised = True
    found = seen(model)
    assert check(found, "randomness").outcome == check(found, "gradient-agreement").outcome == "fine"
    assert found.verdict == "valid", found.reasons


def test_a_declared_stand_in_shows_the_gap():
    hidden = [Net()]  # so that it is not found inside, but declared

    class Sealed(nn.Module):
        def forward(self, x):
            return hidden[0](FlipsGradients.apply(x))

        def surrogates(self):
            return {"plain": hidden[0]}

    found = check(seen(Sealed()), "stand-in-gap")
    assert found.outcome == "suspect"
    assert "plain" in found.text
    assert "plain" in found.series.x_label


def test_l0_and_targets_are_refused_before_anything_is_computed():
    with pytest.raises(UsageError, match="no l0 form"):
        audit(Net(), (X, Y), norm="l0", eps=3)
    with pytest.raises(UsageError, match="no l0 form"):
        evaluate(Net(), (X, Y), "fgsm", norm="l0", eps=3, audit=True)
    with pytest.raises(UsageError, match="untargeted"):
        evaluate(Net(), (X, Y), "fgsm", eps=0.1, target=1, audit=True)


def test_the_caller_s_model_comes_back_as_it_was():
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not part._forward_hooks for part in model.modules())


# The audit of a record


def of_record(attack):
    """The record of an attack on the honest model, and a short audit of it."""
    named = plan.resolve_attacks(attack, THREAT, ModelFacts(5, False, True, 0, ()))
    record = evaluate(Net(), (X, Y), attack, eps=THREAT.eps)
    samples = choose_samples(resolve((X, Y)), None, None)
    with open_model(load(Net(), "toy", "linf"), samples) as opened:
        found = audit_opened(opened, Question(THREAT, 0), record=record, attacks=named, settings=SHORT)
    return record, found


def test_a_record_s_own_claim_is_under_audit():
    strong, found = of_record("apgd:steps=60")
    assert {one.name: one.outcome for one in found.checks if one.name in ("claim", "attacks", "sample-size")} == {
        "claim": "fine",
        "attacks": "fine",
        "sample-size": "undecided",  # for there are few
    }
    assert found.verdict == "undecided", found.reasons
    weak, found = of_record(RandomNoise(1))
    assert {"claim", "attacks"} <= {one.name for one in found.checks if one.outcome == "suspect"}
    gap = (weak.counts["ROBUST"] - strong.counts["ROBUST"]) / FEW
    assert check(found, "claim").value == pytest.approx(gap, abs=1 / FEW)


def test_an_attack_that_breaks_the_rules_makes_the_number_invalid():
    record = evaluate(Net(), (X, Y), toys.LeavesBall(), eps=0.02, audit=True)
    assert record.verdict == "invalid"
    assert any("UNKNOWN" in reason for reason in record.audit["reasons"])


def test_how_much_is_in_flight_changes_nothing(monkeypatch):
    at_once = seen(Net(), tile=8)
    monkeypatch.setattr("robustkit.engine.memory.MOST_IN_FLIGHT", 8)
    assert seen(Net(), tile=8).to_json() == at_once.to_json()


def test_an_audit_leaves_the_facts_of_the_run_alone():
    plain, audited = (evaluate(Net(), (X, Y), "fgsm", eps=0.02, audit=flag) for flag in (False, True))
    assert plain.verdict == "not audited"
    assert plain.job["id"] == audited.job["id"]
    for name, values in plain.samples.items():
        np.testing.assert_array_equal(values, audited.samples[name])


def test_threat_models_of_the_sweep_end_at_one_that_holds_every_image():
    found = audit(Changed(Net(), after=lambda z: 1e6 * z), (X, Y), norm="l2", eps=0.05, settings=SHORT)
    assert check(found, "eps-sweep").series.x[-1] == pytest.approx(4.0)  # the diagonal of 16 pixels


# Shares, by values by hand: of ten samples two are wrong, and one each is broken by each kind of attack


def by_hand(monkeypatch, record=None):
    """The checks of an audit whose own runs end as written down here."""
    chain = auditing.Chain.of(ModelFacts(5, False, True, 0, ("plain",)), SHORT, ())
    last = [group[-1].name for group in (chain.steps, chain.restarts, chain.stand_ins, chain.queries)]
    by = [chain.steps[0].name, *last, "", "", "", "", ""]
    main = records.record("BBBBBRRRWW", by=by, attacks=[named.name for named in chain.all])
    ran = {"noise": "RRRBRBRRWW", "fgsm": "BRRBRRRRWW"}  # breaks samples 3 and 5; 0 and 3, the first not standing

    def told(self, opened, attacks, eps):
        name = attacks[0].name
        if len(attacks) == len(chain.all):
            return main
        return records.record(ran.get(name, "BBBBBBBRWW"), attacks=[name], attack=name)

    monkeypatch.setattr(auditing._Audit, "_run", told)
    samples = choose_samples(resolve((X[:10], Y[:10])), None, None)
    with open_model(load(Net(), "toy", "linf"), samples) as opened:
        one = auditing._Audit(opened, Question(THREAT, 0), record, (), lambda event: None, SHORT)
        return {found.name: found for found in one._attacked(opened.subject, chain, {}, SHORT)}


def test_shares_are_of_all_samples_or_of_what_was_left(monkeypatch):
    found = by_hand(monkeypatch)
    assert found["step-convergence"].series.y == [0.7, 0.7, 0.6]
    for name in ("step-convergence", "restarts", "stand-in-gap"):
        assert found[name].value == pytest.approx(0.1), name
    assert found["queries"].value == pytest.approx(1 / 4)  # of what all before them left
    assert found["boundary"].value == 0
    assert list(found["stand-in-gap"].series.y) == [0.1]
    assert found["noise"].value == pytest.approx(2 / 5)  # of what gradient attacks left
    assert found["one-step"].value == pytest.approx(1 / 5)
    assert found["eps-sweep"].series.y[:2] == [0.7, 0.1]
    assert "clean accuracy 80.00 %" in found["sample"].text


def test_the_shares_of_a_record_are_of_all_samples_that_the_audit_looked_at(monkeypatch):
    claim = records.record("BRRRRRRRWW")  # sample 0 was broken before: what breaks it now is no news
    found = by_hand(monkeypatch, claim)
    assert found["claim"].value == pytest.approx(0.4)
    assert found["queries"].value == pytest.approx(1 / 4)
    assert found["noise"].value == pytest.approx(2 / 7)  # of what the record left
    assert found["one-step"].value == pytest.approx(1 / 7)


# Of randomised models


def test_the_audit_s_own_runs_are_voted_on_by_as_many_draws_as_the_run(monkeypatch):
    asked = []
    real = auditing.measure

    def spied(opened, request, execution):
        asked.append(request.draws)
        return real(opened, request, execution)

    monkeypatch.setattr(auditing, "measure", spied)
    monkeypatch.setattr(auditing, "RANDOMISED", SHORT)
    model = Changed(Net(), lambda x: x + 0.01 * torch.randn_like(x))
    model.randomised = True
    evaluate(model, (X[:6], Y[:6]), "fgsm", eps=0.02, draws=3, audit=True, doctor=False)
    assert set(asked) == {3}
    asked.clear()
    audit(model, (X[:6], Y[:6]), eps=0.02, settings=SHORT, draws=7)
    assert set(asked) == {7}
    with pytest.raises(UsageError, match="draws must be a whole number"):
        audit(model, (X[:6], Y[:6]), eps=0.02, draws=0)
