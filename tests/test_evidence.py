"""What every run says of its own attacks: masked toys are flagged without an audit, honest networks are not."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import kit
from benchmarks.masking_zoo import FlipsGradients, rounded, temperature
from robustkit import evaluate
from robustkit.cli import main
from robustkit.errors import NoGradientError
from robustkit.models.evidence import FLAT, Climb
from robustkit.records import evidence
from robustkit.records.folder import load_run
from robustkit.records.run import INSUFFICIENT
from tests import toys
from tests.needs import kit as needs_kit
from tests.records import record

SHAPE = (1, 4, 4)
X = torch.rand(40, *SHAPE, generator=toys.seeded(5))


class Net(nn.Module):
    """A linear model, between something done to images and something done to logits."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.inner, self.before, self.after = toys.Linear(SHAPE), before, after

    def forward(self, x):
        return self.after(self.inner(self.before(x) - 0.5))


Y = Net()(X).argmax(1).detach()


def run(model, attack, **more):
    return evaluate(model, (X, Y), attack, **{"eps": 0.05, "doctor": False, **more})


def kinds(found):
    return {flag["kind"] for flag in found.flags}


def message(found, kind=evidence.MASKED):
    (text,) = [flag["message"] for flag in found.flags if flag["kind"] == kind]
    return text


# What is counted on the way


def test_a_gradient_is_flat_if_it_is_zero_or_tiny_or_no_number_and_counts_while_the_sample_stands():
    climb = Climb(torch.zeros(5, dtype=torch.int64), None)
    grad = torch.zeros(5, 1, 1, 2)
    grad[0], grad[1, 0, 0, 1], grad[2, 0, 0, 0], grad[3] = 1.0, -FLAT, torch.nan, FLAT / 2
    logits = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]])  # the last is misclassified: its loss may be flat
    climb.saw(torch.arange(5), logits, grad, torch.tensor([0.5, 0.5, 0.5, 0.5, 9.0]))
    climb.saw(torch.tensor([3, 0]), logits[:2], torch.ones(2, 1, 1, 2), torch.tensor([0.75, 1.0]))
    assert climb.asked.tolist() == [2, 1, 1, 2, 0]
    assert climb.flat.tolist() == [0, 0, 1, 1, 0]
    assert climb.share[:4].tolist() == [0, 0, 1, 0.5]
    assert climb.share[4].isnan()
    assert climb.first[:4].tolist() == [0.5] * 4
    assert climb.last[:4].tolist() == [1.0, 0.5, 0.5, 0.75]
    assert climb.first[4].isnan()


def test_several_losses_are_several_gradients_and_a_target_decides_what_stands():
    climb = Climb(torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2]))
    logits = torch.tensor([[0.0, 1.0, 0.0]] * 2)  # the first has reached its target
    climb.saw(torch.arange(2), logits, torch.zeros(3, 2, 1, 1, 1), torch.zeros(3, 2))
    assert climb.asked.tolist() == climb.flat.tolist() == [0, 3]
    assert climb.first.isnan().all()


def test_what_an_attack_met_is_stored_and_read_again(tmp_path):
    made = run(Net(after=lambda z: 1e4 * z), "fgsm+pgd:steps=3", out=tmp_path)
    for found in (made, load_run(tmp_path)):
        rows = found.attacks
        stood = rows["outcome"] == "survived"
        assert stood.sum() > 60
        assert (rows["flat"][stood] == 1).all()
        np.testing.assert_array_equal(rows["first_loss"][stood], rows["last_loss"][stood])
    honest = run(Net(), "pgd:steps=3+square:queries=5", eps=0.005).attacks
    gradients = (honest["attack"] == "pgd:steps=3") & (honest["outcome"] == "survived")
    assert gradients.sum() > 30
    assert (honest["flat"][gradients] == 0).all()
    assert (honest["last_loss"] > honest["first_loss"])[gradients].all()
    assert np.isnan(honest["flat"][honest["attack"] == "square:queries=5"]).all()


# What it means: small records with values by hand


def of(letters, attacks, rows, **more):
    """A record whose attack rows are (index, attack, outcome, backwards, flat, first loss, last loss, decision)."""
    found = record(letters, attacks=attacks, attack="+".join(attacks), **more)
    names = ("index", "attack", "outcome", "backwards", "flat", "first_loss", "last_loss", "prediction")
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    return dataclasses.replace(found, attacks=columns, samples={**found.samples, "margin": np.full(len(letters), 3.0)})


def climbed(index, *, name="pgd", outcome="survived", steps=20, flat=0.0, first=1.0, last=2.0):
    return (index, name, outcome, steps, flat, first, last, 1)


def counts(found):
    return [(sign.k, sign.n) for sign in evidence.signs(found)]


@pytest.mark.parametrize(("blind", "speaks"), [(0, False), (2, False), (3, True)])
def test_a_few_of_many_accuse_nobody(blind, speaks):
    rows = [climbed(i, flat=float(i < blind)) for i in range(32)]
    assert counts(of("R" * 32, ["pgd"], rows)) == ([(blind, 32)] if speaks else [])


def test_only_what_stands_counts_and_only_if_no_attack_saw_anything():
    rows = [climbed(i, flat=1.0, outcome="broken" if i == 0 else "survived") for i in range(8)]
    assert counts(of("BRRRRRRR", ["pgd"], rows, by=["pgd", *[""] * 7])) == [(7, 7)]
    seeing = [climbed(i, name="dlr") for i in range(1, 8)]
    assert counts(of("BRRRRRRR", ["pgd", "dlr"], rows + seeing, by=["pgd", *[""] * 7])) == []
    assert counts(of("BRRRRRRR", ["pgd", "dlr"], rows + seeing[:2], by=["pgd", *[""] * 7])) == [(5, 7)]


def test_a_loss_that_did_not_move_is_one_sign_but_a_single_gradient_moves_none():
    still = {"first": 2.302585, "last": 2.302585}
    found = of("RRRR", ["pgd"], [climbed(i, **still) for i in range(4)])
    assert counts(found) == [(4, 4)]
    assert "the loss did not move" in evidence.signs(found)[0].text
    assert counts(of("RRRR", ["fgsm"], [climbed(i, name="fgsm", steps=1, **still) for i in range(4)])) == []
    moved = {**still, "last": 2.3026}
    assert counts(of("RRRR", ["pgd"], [climbed(i, **moved) for i in range(4)])) == []


def test_half_of_the_gradients_zero_is_the_limit():
    assert counts(of("RRRR", ["pgd"], [climbed(i, flat=0.5) for i in range(4)])) == [(4, 4)]
    assert counts(of("RRRR", ["pgd"], [climbed(i, flat=0.45) for i in range(4)])) == []


@pytest.mark.parametrize(("broke", "steps", "speaks"), [(5, 20, True), (4, 20, False), (5, 19, False)])
def test_queries_that_break_what_gradients_left_are_a_sign_unless_these_hardly_tried(broke, steps, speaks):
    nan = np.nan
    left = [climbed(i, steps=steps) for i in range(20)] + [climbed(20, outcome="broken")]
    queried = [(i, "square", "broken" if i < broke else "survived", 0, nan, nan, nan, 1) for i in range(20)]
    by = ["square"] * broke + [""] * (20 - broke) + ["pgd"]
    found = of("B" * broke + "R" * (20 - broke) + "B", ["pgd", "square"], left + queried, by=by)
    assert counts(found) == ([(broke, 20)] if speaks else [])


def test_records_from_before_these_facts_say_nothing():
    found = record("RRRR")
    assert evidence.signs(found) == []
    assert evidence.not_attacked(found) == 0


def test_what_no_candidate_was_judged_of_stands_unattacked():
    nan = np.nan
    rows = [(0, "pgd", "survived", 0, 1.0, nan, nan, -1), (1, "pgd", "survived", 0, 1.0, nan, nan, -1),
            (1, "square", "survived", 0, nan, nan, nan, 1)]  # fmt: skip
    assert evidence.not_attacked(of("RRW", ["pgd", "square"], rows)) == 1


# Whole runs

MASKED = {
    "÷ 1e-3": lambda z: z / 1e-3,
    "× 1e4": lambda z: 1e4 * z,
    "× 1e30": lambda z: 1e30 * z,
    "× 1e-30": lambda z: 1e-30 * z,  # the cross-entropy is a constant
}


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
@pytest.mark.parametrize("after", MASKED.values(), ids=MASKED)
def test_logits_of_a_scale_that_starves_the_cross_entropy_are_flagged(after, attack):
    plain, masked = run(Net(), attack), run(Net(after=after), attack)
    assert evidence.MASKED not in kinds(plain)
    if masked.counts["ROBUST"] > plain.counts["ROBUST"] + 2:
        assert "try apgd:loss=dlr or adaptive" in message(masked)
        assert f"note: {message(masked)}" in masked.summary()


def test_the_flag_names_what_was_seen_and_the_attack_it_names_tells_more():
    model = Net(after=lambda z: 1e4 * z)
    hidden = run(model, "apgd")
    stand = hidden.counts["ROBUST"]
    assert f"on {stand} of {stand} samples that stand gradients were zero, for the logits are" in message(hidden)
    told = run(model, "apgd:loss=dlr")
    assert told.counts["ROBUST"] == run(Net(), "apgd:loss=dlr").counts["ROBUST"] < stand - 10
    assert evidence.MASKED not in kinds(told)


BLOCKED = {
    "hard labels": toys.HardLabels(Net()),
    "detached": toys.Detached(Net()),
    "quantised": Net(rounded(9)),
    "saturated softmax": Net(after=lambda z: temperature(100 * z)),
}


@pytest.mark.parametrize("model", BLOCKED.values(), ids=BLOCKED)
def test_no_gradient_is_a_finding_and_no_violation(model):
    found = run(model, "pgd")
    assert not found.unknown
    assert not found.errors
    assert found.robust_accuracy is None
    stand = found.counts["ROBUST"]
    assert stand > 25
    said = message(found, INSUFFICIENT)
    assert f"pgd could not run: {stand} of 40 samples stand unattacked; try square or adaptive" in said
    assert found.why_no_robust_accuracy == said
    queried = run(model, "pgd+square:queries=50")  # which is then all there is, and is said to be
    assert queried.robust_accuracy is not None
    assert "gradients were zero" in message(queried)


def test_a_softmax_that_saturates_here_and_there_only_is_flagged():
    assert "gradients were zero" in message(run(Net(after=lambda z: temperature(10 * z)), "pgd"))


def test_another_library_s_gradient_attack_meets_the_same_finding():
    pytest.importorskip("torchattacks")
    found = run(toys.Detached(Net()), "torchattacks/PGD:steps=2")
    assert not found.errors
    assert "could not run" in message(found, INSUFFICIENT)
    rows = run(Net(after=lambda z: 1e4 * z), "torchattacks/PGD:steps=2").attacks
    assert (rows["flat"][rows["outcome"] == "survived"] == 1).all()


def test_an_attack_that_asks_for_a_gradient_in_vain_may_go_on_without():
    class Retreats(toys._Settings):
        def __call__(self, case):
            with pytest.raises(NoGradientError):
                case.oracle.gradient(case.x, lambda o: o.logits.sum(1))
            return case.threat.sample(case.x, case.draws)

    assert run(toys.Detached(Net()), Retreats()).robust_accuracy is not None


def test_the_command_says_it_and_establishes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked.py").write_text(
        "from robustkit import load_model\nfrom torch import nn\n"
        "class Rounds(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = load_model('digits-cnn')[0]\n"
        "    def forward(self, x):\n        return self.net((x * 3).round() / 3)\n"
    )
    command = ["eval", "--model", "python/blocked.Rounds", "--dataset", "digits", "--attack", "fgsm", "--eps", "0.1"]
    done = CliRunner().invoke(main, [*command, "-n", "8", "--out", "r"])
    assert done.exit_code == 3, done.output
    assert "not established" in done.stdout
    assert "try square or adaptive" in done.stdout


def test_steps_that_lead_the_wrong_way_are_seen():
    found = run(Net(FlipsGradients.apply), "apgd")
    assert "a step against the gradient of the margin does not lower the margin" in message(found)


class Sealed(nn.Module):
    """Decisions of a network that is no sub-module, with the wrong gradient; it may declare the network."""

    def __init__(self, declares):
        super().__init__()
        self.hidden, self.declares = [Net()], declares

    def forward(self, x):
        return self.hidden[0](FlipsGradients.apply(x))

    def surrogates(self):
        return {"plain": self.hidden[0]} if self.declares else {}


@pytest.mark.parametrize("declares", [True, False])
def test_a_step_on_a_declared_stand_in_is_tried_where_attacks_broke_nothing(declares):
    found = run(Sealed(declares), "pgd")
    assert ("one step along the gradient of its stand-in plain breaks" in message(found)) == declares


def test_a_stand_in_without_gradient_is_told_from_a_model_without_one():
    class Misdeclares(Net):
        def surrogates(self):
            return {"dead": toys.Detached(Net())}

    said = message(run(Misdeclares(), "surrogate-swap:only=dead"), INSUFFICIENT)
    assert "no gradient flows through its stand-ins" in said
    assert "try apgd:loss=dlr or adaptive" in said


def test_noise_is_tried_where_an_attack_broke_nothing():
    assert "random noise breaks" in message(run(Net(), toys.Lazy(), eps=0.3))
    assert evidence.MASKED not in kinds(run(Net(), toys.Lazy(), eps=1e-4))


def test_a_targeted_run_is_held_to_its_target():
    assert evidence.MASKED not in kinds(run(Net(), "pgd", target=1))
    assert "does not lower the margin" in message(run(Net(FlipsGradients.apply), "pgd", target=1, eps=0.02))


def test_looking_changes_no_fact():
    model = Net(after=lambda z: 1e4 * z)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (run(model, "pgd:steps=3") for _ in range(2))
    assert one.to_json()["flags"] == two.to_json()["flags"]
    assert one.attacks["backwards"].max() == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Networks

HONEST = ["digits-cnn", "digits-cnn-at", "digits-trades", "digits-dverge", "digits-fusion"]
SATURATED = ["digits-distillation", "digits-teacher"]  # both trained at a high temperature


@pytest.mark.parametrize("attack", ["fgsm", "pgd:steps=10"])
@pytest.mark.parametrize("name", HONEST + SATURATED)
def test_bundled_networks_are_flagged_if_and_only_if_their_logits_are_saturated(name, attack):
    found = evaluate(name, "digits", attack, eps=0.15, n=64, doctor=False)
    assert (evidence.MASKED in kinds(found)) == (name in SATURATED)


def test_a_declared_backward_pass_is_no_mask():
    found = evaluate("digits-cnn", "digits", "pgd:steps=10", defense="bit-depth:bits=4", eps=0.1, n=64, doctor=False)
    assert evidence.MASKED not in kinds(found)


@pytest.mark.slow
@needs_kit
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
@pytest.mark.parametrize("name", sorted(kit.manifest()) if needs_kit.args[0] is False else [])
def test_no_honest_network_of_the_kit_is_flagged(name, attack):
    cifar = name.startswith("cifar10")
    data = (kit.cifar10 if cifar else kit.mnist)(range(64))
    found = evaluate(kit.model(name), data, attack, eps=2 / 255 if cifar else 0.1, doctor=False)
    assert not kinds(found) & {evidence.MASKED, INSUFFICIENT}


@pytest.mark.parametrize(("goal", "broke", "left", "speaks"), [
    ("minimal", 6, 20, True), ("minimal", 2, 64, False), ("minimal", 12, 12, False), ("bounded", 20, 20, False),
])  # fmt: skip
def test_a_walk_along_the_boundary_that_breaks_a_share_of_what_gradients_left_is_a_sign(goal, broke, left, speaks):
    rows = [climbed(i) for i in range(left)]
    rows += [climbed(i, name="fab", outcome="broken" if i < broke else "survived") for i in range(left)]
    found = of("B" * broke + "R" * (left - broke), ["pgd", "fab"], rows, by=["fab"] * broke + [""] * (left - broke))
    found = dataclasses.replace(found, goals={"pgd": "bounded", "fab": goal})
    signs = evidence.signs(found)
    assert bool(signs) == speaks
    if speaks:
        assert f"broke {broke} of {left} samples that gradient attacks left" in signs[0].text


@pytest.mark.slow
@needs_kit
def test_apgd_that_a_walk_along_the_boundary_puts_to_shame_is_flagged():
    data = kit.mnist(range(200))
    found = evaluate(kit.model("mnist_lenet5_adv"), data, "apgd+fab:minimise=false", norm="l2", eps=1.5, doctor=False)
    assert "walk along the boundary" in message(found)
