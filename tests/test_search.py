"""The search over stand-ins and losses: it finds what leads on, each sample by itself, and says so in the record."""

import numpy as np
import pytest
import torch
from robustkit_attacks.adaptive import Adaptive
from robustkit_attacks.search import Search
from torch import nn

from benchmarks.masking_variations import wrong_signs
from benchmarks.masking_zoo import Around
from robustkit import evaluate
from robustkit.api import ModelFacts, ThreatModel
from robustkit.engine.plan import resolve_attacks
from robustkit.errors import UsageError
from robustkit.records.folder import load_run
from robustkit.testing import attack_batch
from tests import toys

SHAPE = (1, 4, 4)
X = 0.3 + 0.4 * torch.rand(24, *SHAPE, generator=toys.seeded(3))
NET = toys.Linear(SHAPE)
Y = NET(X - 0.5).argmax(1).detach()
THREAT = ThreatModel("linf", 0.2)
SHORT = Search(steps=4, most=6, rounds=1, long=8)


class Hidden(nn.Module):
    """Hard decisions, and two stand-ins: one is the network behind them, one another network."""

    def forward(self, x):
        return nn.functional.one_hot(NET(x - 0.5).argmax(1), 5).float() + 1e-3 * toys.Linear(SHAPE, seed=9)(x)

    def surrogates(self):
        return {"another": Shifted(toys.Linear(SHAPE, seed=7)), "true": Shifted(NET)}


class Shifted(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x - 0.5)


def test_the_stand_in_that_leads_on_is_found_though_the_model_hides():
    found = attack_batch(SHORT, Hidden(), X, Y, THREAT)
    bare = attack_batch(SHORT, Shifted(NET), X, Y, THREAT)
    assert bare.broken.double().mean() > 0.9
    assert torch.equal(found.broken, bare.broken)


def test_a_sample_s_result_does_not_depend_on_its_batch():
    whole = attack_batch(SHORT, Hidden(), X, Y, THREAT)
    some = torch.tensor([2, 3, 11])
    few = attack_batch(SHORT, Hidden(), X[some], Y[some], THREAT, indices=some)
    assert torch.equal(whole.verdicts.adv[some], few.verdicts.adv)
    assert torch.equal(whole.forwards[some], few.forwards)


def test_it_costs_at_most_what_it_says():
    sealed = attack_batch(SHORT, Hidden(), X, Y, ThreatModel("linf", 1e-3))  # nothing breaks
    forwards, backwards = SHORT.cost(5)
    assert not sealed.broken.any()
    assert int(sealed.forwards.max()) <= forwards
    assert int(sealed.backwards.max()) <= backwards


def test_the_images_it_is_lent_stay_as_they_were():
    kept = X.clone()
    attack_batch(SHORT, Hidden(), X, Y, THREAT)
    assert torch.equal(X, kept)


def test_settings_are_positive():
    with pytest.raises(UsageError, match="search: steps"):
        Search(steps=0)


def test_the_record_says_what_was_tried(tmp_path):
    made = evaluate(Hidden(), (X, Y), SHORT, eps=0.2, doctor=False, out=tmp_path)
    for record in (made, load_run(tmp_path)):
        said = record.attacks["log"]
        assert len(said) == len(X)
        broken = record.attacks["outcome"] == "broken"
        assert all("broke it in rung" in text for text in said[broken])
        assert any("true/" in text for text in said)
    plain = evaluate(Shifted(NET), (X, Y), "pgd:steps=2", eps=0.2, doctor=False)
    assert not np.char.str_len(plain.attacks["log"]).any()


# The adaptive suite, which is told of the harness's stand-ins

PLAIN = ModelFacts(5, False, True, 0, (), views=("smoothed", "smoothed over 2 eps"))


def names(facts, suite):
    return [name for name, *_ in resolve_attacks(suite, THREAT, facts)]


@pytest.mark.parametrize(("budget", "smoothed"), [("quick", 0), ("standard", 1), ("thorough", 1)])
def test_a_model_that_hides_nothing_is_spared_the_search(budget, smoothed):
    found = names(PLAIN, Adaptive(budget))
    assert sum("smoothed" in name for name in found) == smoothed
    assert not any(name.startswith("search") for name in found)
    assert any(name.startswith("search") for name in names(PLAIN, Adaptive(budget, search=True)))
    assert names(PLAIN, Adaptive(budget, only=("search",)))[0].startswith("search")


@pytest.mark.parametrize("more", [
    {"views": ("rewritten", *PLAIN.views, "features")}, {"surrogates": ("own",)}, {"misleading_gradient": 0.5},
])  # fmt: skip
def test_what_was_found_becomes_an_attack_each_and_calls_for_the_search(more):
    facts = PLAIN._replace(**more)
    found = names(facts, Adaptive("quick"))
    for view in facts.views:
        assert any(f"only={view},steps=50" in name for name in found)
    assert any(name.startswith("search") for name in found)


def test_a_sealed_backward_pass_is_gone_around_without_a_hand():
    model = Around(Shifted(NET), wrong_signs(1.0), sealed=True).eval()
    direct, found, bare = (
        evaluate(network, (X, Y), attack, eps=0.1, doctor=False).counts["BROKEN"]
        for network, attack in (
            (model, "apgd:steps=50"),
            (model, "adaptive:budget=quick,only=views"),
            (Shifted(NET), "apgd"),
        )
    )
    assert direct < found == bare
