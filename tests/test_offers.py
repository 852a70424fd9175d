"""What a model may offer besides logits: that it refuses, forgets, mixes, purifies, or takes several passes."""

from dataclasses import dataclass

import pytest
import torch
from robustkit_attacks.accepted import Accepted
from torch import nn

from robustkit import evaluate
from robustkit.api import ModelFacts, ThreatModel
from robustkit.audit.probes import contract
from robustkit.audit.probes.asking import Look
from robustkit.audit.rules import Limits
from robustkit.models import capabilities
from robustkit.models.cost import cost_of
from robustkit.models.examination import examine
from robustkit.models.views import Views
from robustkit.models.wrapping import Prepared
from robustkit.records.folder import load_run
from robustkit.testing import attack_batch, pretended
from tests import toys
from tests.toys import Lazy

SHAPE = (1, 4, 4)
X = 0.3 + 0.4 * torch.rand(32, *SHAPE, generator=toys.seeded(3))
NET = toys.Linear(SHAPE, shift=0.0)


class Net(nn.Module):
    def forward(self, x):
        return NET(x - 0.5)


Y = Net()(X).argmax(1).detach()


def network(model, tile=8):
    data = (X, model(X).argmax(1).detach())
    subject = examine(
        model.eval(), *data, classes=None, outputs="logits", tile=tile, seed=0, device=torch.device("cpu")
    )
    return subject.reference


def asked(model, attack, **more):
    return evaluate(model, (X, Y), attack, **{"eps": 0.2, "doctor": False, **more})


# Refusing


class Refuses(Net):
    """Refuses what `score` says of images."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def rejects(self, x):
        return self.score(x)


def moved(x):
    """Above zero for images that are none of X."""
    return torch.cdist(x.flatten(1), X.flatten(1)).amin(1) - 1e-3


def test_a_perturbed_image_that_is_refused_is_no_mistake_and_a_clean_one_is(tmp_path):
    careful = asked(Refuses(moved), "pgd", out=tmp_path)
    assert float(careful.clean_accuracy) == float(careful.robust_accuracy) == 1
    bare = asked(Net(), "pgd")
    assert bare.counts["BROKEN"] > 20
    for record in (careful, load_run(tmp_path)):
        told = record.to_json()["summary"]["rejection"]
        assert told["clean_refused"]["value"] == 0
        assert told["plain_clean"]["value"] == 1
        assert told["plain_robust"]["value"] == float(bare.robust_accuracy)
        assert "robust accuracy without refusing" in record.summary()
    shy = asked(Refuses(lambda x: x[:, 0, 0, 0] * 0 + 1), "pgd")
    assert shy.counts["WRONG"] == len(X)
    assert float(shy.rejection["clean_refused"]) == float(shy.rejection["plain_clean"]) == 1
    assert bare.rejection is None


def test_an_image_that_must_be_wrong_and_accepted_is_found_by_steps_on_both():
    class Guarded(Net):  # refused unless the first pixel is as it was, to a tenth of the ball
        def rejects(self, x):
            return (x[:, 0, 0, 0] - X[self.place(x), 0, 0, 0]).abs() - 0.02

        def place(self, x):
            return torch.cdist(x.detach().flatten(1), X.flatten(1)).argmin(1)

    plain, careful = (
        asked(Guarded(), attack).counts["BROKEN"] for attack in ("pgd:steps=50,loss=margin", Accepted(50))
    )
    bare = asked(Net(), "pgd:steps=50,loss=margin").counts["BROKEN"]
    assert plain < 8
    assert careful > bare - 6
    assert attack_batch(Accepted(10), Guarded(), X, Y, ThreatModel("l2", 1e-3)).broken.sum() == 0


def test_a_step_in_front_hands_on_what_the_network_refuses():
    model = Prepared(nn.Identity(), Refuses(lambda x: x[:, 0, 0, 0] - 0.5))
    assert torch.equal(capabilities.rejects(model, X), X[:, 0, 0, 0] - 0.5)
    assert capabilities.rejects(Prepared(nn.Identity(), Net()), X) is None
    assert asked(model, "fgsm").rejection is not None
    assert asked(Prepared(nn.Identity(), Net()), "fgsm").rejection is None


# Forgetting


class Keeps(Net):
    """Answers as for the first image it was ever asked, but for those that are far from it."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        for image in x.detach():
            if all((image - old).abs().amax() > 0.5 for old in self.kept):
                self.kept.append(image.clone())
        z = super().forward(x)
        return z + 1e-2 * len(self.kept) * torch.arange(5.0)


class Forgets(Keeps):
    def reset(self):
        self.kept.clear()


def test_a_state_is_forgotten_before_each_call_where_that_is_offered():
    assert asked(Forgets(), "pgd:steps=5", tile=1).counts == asked(Forgets(), "pgd:steps=5", tile=1).counts
    seen = {}
    for kind in (Keeps, Forgets):
        model = kind()
        look = Look(network(model, tile=1), X, torch.arange(len(X)), 0)
        seen[kind] = contract.judge(contract.measure(look), Limits())[0].outcome
    assert seen[Forgets] == "fine"


# Mixing


class Mixture(nn.Module):
    """One of two networks a call, with these chances."""

    randomised = True

    def __init__(self, chances=(0.7, 0.3)):
        super().__init__()
        self.networks, self.chances = nn.ModuleList([Net(), toys.Wrapped(toys.Linear(SHAPE, seed=4))]), chances

    def forward(self, x):
        return self.networks[int(torch.rand(()) > self.chances[0])](x)

    def members(self):
        return list(self.networks)

    def weights(self):
        return self.chances


@dataclass(frozen=True)
class Shifts(Lazy):
    """Every image a little darker or brighter."""

    by: float = 0.1

    def __call__(self, case):
        return case.threat.project(case.x, case.x + self.by)


def test_the_expected_accuracy_of_a_mixture_is_exact(tmp_path):
    made = asked(Mixture(), [Shifts(by=0.1), Shifts(by=-0.15)], draws=5, out=tmp_path)
    candidates = (X, X + 0.1, X - 0.15)
    right = torch.stack([
        sum(w * (net(x).argmax(1) == Y).double() for w, net in zip((0.7, 0.3), Mixture().networks, strict=True))
        for x in candidates
    ])  # fmt: skip
    wrong_clean = torch.tensor([status == "WRONG" for status in made.samples["status"]])
    least = torch.where(wrong_clean, right[0], right.amin(0))
    for record in (made, load_run(tmp_path)):
        assert float(record.expected_accuracy) == pytest.approx(float(least.mean()))
        assert float(record.any_draw_accuracy) == pytest.approx(float((least > 1 - 1e-9).double().mean()))
        assert "expected, by the members' weights" in record.summary()
    broken = torch.tensor([status == "BROKEN" for status in made.samples["status"]])
    assert torch.equal(broken, ~wrong_clean & (right[1:].amin(0) <= 0.5))


def mixed(*chances, alike=False):
    """A mixture of linear networks that can move."""
    made = Mixture(chances)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        each = [nn.Sequential(nn.Flatten(), nn.Linear(16, 5)) for _ in chances]
    made.networks = nn.ModuleList([each[0]] * len(each) if alike else each)
    return made.requires_grad_(False)


def test_a_mixture_is_judged_on_a_device_without_float64_as_on_the_cpu():
    labels = mixed(0.7, 0.3).networks[0](X).argmax(1)

    def judged(device):
        attacks = [Shifts(by=0.2), Shifts(by=-0.2)]
        return evaluate(mixed(0.7, 0.3).to(device), (X, labels), attacks, eps=0.2, draws=5, doctor=False, device=device)

    here = judged("cpu")
    with pretended("mps"):
        there = judged("mps")
    assert list(there.samples["status"]) == list(here.samples["status"])
    assert float(there.expected_accuracy) == pytest.approx(float(here.expected_accuracy))
    assert there.any_draw_accuracy == here.any_draw_accuracy
    assert there.worst_case_accuracy == here.worst_case_accuracy


def test_weights_whose_sum_is_rounded_make_nobody_wrong():
    chances = (0.7, 0.2, 0.1)
    assert sum(chances) < 1
    model = mixed(*chances, alike=True)
    labels = model.networks[0](X).argmax(1)
    made = evaluate(model, (X, labels), Shifts(by=0.0), eps=0.2, draws=3, doctor=False)
    assert float(made.worst_case_accuracy) == 1


def test_weights_that_are_none_are_no_capability():
    for chances in ((0.7, 0.7), (1.0,), (-0.5, 1.5)):
        assert capabilities.weights(Mixture(chances)) == []
    assert asked(Mixture((0.7, 0.7)), "fgsm", draws=3).expected_accuracy is None


# Cost, and purification


class Inner(nn.Module):
    """Two gradient steps of its own before it answers."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        for _ in range(2):
            at = x.detach().requires_grad_(True)
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(self.network(at).logsumexp(1).sum(), at)
            x = x - 0.01 * grad.sign()
        return self.network(x)


class Says(Inner):
    def cost(self):
        return 8, 12


def test_passes_inside_are_counted_in_passes_of_the_network_inside():
    found = cost_of(network(Inner()), X, 5)
    assert 4 <= found.answering <= 8  # two forwards and backwards, and one forward
    assert found.gradient > found.answering
    assert "compare with that network at equal cost" in found.message
    assert cost_of(network(Says()), X, 5) == (8, 12)
    assert cost_of(network(Net()), X, 5) is None
    plain = cost_of(network(Prepared(nn.Identity(), Inner().network)), X, 5)
    assert plain.answering == 1
    assert not plain.message
    record = evaluate(Inner(), (X, Inner()(X).argmax(1)), "fgsm", eps=0.1, doctor=False)
    assert [flag["kind"] for flag in record.flags if flag["kind"] == "cost"] == ["cost"]


class Purifier(nn.Module):
    """Rounds in two steps, without a gradient."""

    def purify(self, x):
        first = (x * 64).round() / 64
        return [x, first, (first * 32).round() / 32]

    def classify(self, x):
        return NET(x - 0.5)

    def forward(self, x):
        return self.classify(self.purify(x)[-1])


def test_what_purifies_is_attacked_over_all_its_steps():
    model = Purifier()
    facts = ModelFacts(5, False, False, 0, ())
    found = Views(network(model), X, facts, ThreatModel("linf", 0.1)).found()
    view = found["purified"]
    steps = [model.classify(one) for one in model.purify(X)]
    assert torch.allclose(view(X), sum(steps) / 3)
    x = X.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(view(x)[:, 0].sum(), x)
    assert torch.allclose(grad.flatten(1), NET.weight[0].detach().expand(len(X), -1))
    assert capabilities.purify(Net(), X) == []
