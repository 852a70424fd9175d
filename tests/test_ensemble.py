"""Ensembles as models: what they answer, what they offer the harness, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

import robustkit
from robustkit.errors import UsageError
from robustkit.models.ensembles import Ensemble
from robustkit.models.sources import load_model
from robustkit.models.sources.zoo.architectures import digits_cnn
from tests.toys import HardLabels, Linear, seeded

PAIR = "ensemble/(digits-cnn)+(digits-cnn-at)"


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=seeded(1))


@pytest.mark.parametrize("mean", ["logits", "probs", "vote"])
def test_an_ensemble_answers_the_mean_of_its_members(mean):
    x = images()
    module, card = load_model(f"{PAIR}:mean={mean}")
    alone = [load_model(name)[0](x) for name in ("digits-cnn", "digits-cnn-at")]
    logits, members = module.forward_with_members(x)
    assert torch.equal(members, torch.stack(alone))
    assert [torch.equal(m(x), a) for m, a in zip(module.members(), alone, strict=True)] == [True, True]
    assert torch.equal(module(x), logits)
    if mean == "logits":
        assert torch.allclose(logits, (alone[0] + alone[1]) / 2)
    elif mean == "probs":
        assert torch.allclose(logits.exp(), (alone[0].softmax(1) + alone[1].softmax(1)) / 2, atol=1e-6)
    else:
        assert torch.equal(logits.sum(1), torch.full((6,), 2.0))
        assert all(logits[i, a.argmax(1)[i]] >= 1 for a in alone for i in range(6))
    assert (card.source, card.classes, card.dataset, card.input_shape) == ("ensemble", 10, "digits", (1, 8, 8))
    assert len(card.sha256.split("; ")) == 2
    assert "digits-cnn, digits-cnn-at" in card.name
    assert not module.training


def test_mean_logits_is_what_a_bare_ensemble_is():
    x = images()
    assert torch.equal(load_model(PAIR)[0](x), load_model(f"{PAIR}:mean=logits")[0](x))


def test_log_mean_probability_is_finite_where_every_probability_underflows():
    sure = Ensemble([Linear(scale=1e4, seed=1), Linear(scale=1e4, seed=2)], "probs")
    x = torch.rand(8, 1, 4, 4, generator=seeded(1)).requires_grad_()
    logits = sure(x)
    assert torch.isfinite(logits).all()
    assert logits.min() < -1000
    assert torch.isfinite(torch.autograd.grad(logits.sum(), x)[0]).all()


@pytest.mark.parametrize("mean", ["logits", "probs", "vote"])
def test_an_ensemble_is_attacked_like_any_model(mean):
    attack = "square:queries=20" if mean == "vote" else "pgd:steps=1"
    record = robustkit.evaluate(f"{PAIR}:mean={mean}", "digits", attack, eps=0.1, n=40)
    assert (record.samples["status"] != "WRONG").mean() > 0.9
    assert set(record.samples["status"]) <= {"WRONG", "ROBUST", "BROKEN"}
    assert ("no-gradient" in [flag["kind"] for flag in record.flags]) == (mean == "vote")


def test_a_vote_declares_the_mean_of_the_logits_as_its_stand_in():
    module, _ = load_model(f"{PAIR}:mean=vote")
    x = images()
    assert torch.equal(module.surrogates()["mean-logits"](x), load_model(PAIR)[0](x))
    assert not module(x.requires_grad_()).requires_grad
    assert load_model(PAIR)[0].surrogates() == {}


def test_of_tied_classes_the_first_wins_a_vote():
    one, two = Linear(seed=1), Linear(seed=2)
    x = torch.rand(50, 1, 4, 4, generator=seeded(1))
    first, second = one(x).argmax(1), two(x).argmax(1)
    assert (first != second).any()
    assert torch.equal(Ensemble([one, two], "vote")(x).argmax(1), torch.minimum(first, second))


def test_randomness_goes_to_the_members():
    class Noisy(Linear):
        randomised = True

        def reseed(self, seed):
            self.seed = seed

    pair = Ensemble([Noisy(), Linear(), Noisy()])
    assert pair.randomised
    assert not Ensemble([Linear(), HardLabels(Linear())]).randomised
    pair.reseed(5)
    assert pair.members()[0].seed != pair.members()[2].seed


def test_members_may_be_of_any_source_and_nested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(digits_cnn().state_dict(), "net.safetensors")
    x = images()
    file = "./net.safetensors:arch=digits-cnn,mean=half"
    nested = load_model(f"ensemble/({file})+(ensemble/(digits-cnn)+(digits-cnn-at):mean=probs):mean=logits")[0]
    wanted = (load_model(file)[0](x) + load_model(f"{PAIR}:mean=probs")[0](x)) / 2
    assert torch.allclose(nested(x), wanted)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ensemble/(digits-cnn)", r"needs two models or more: ensemble/\(A\)\+\(B\)"),
        ("ensemble/(digits-cnn)+", "needs two models or more"),
        (f"{PAIR}:mean=imagenet", "mean must be one of logits, probs, vote, not 'imagenet'"),
        (f"{PAIR}:std=imagenet", "no option called 'std'"),
        (f"{PAIR}:men=vote", "no option called 'men'; did you mean mean"),
        ("ensemble/(digits-cnn)+(digits-cn)", "did you mean digits-cnn"),
    ],
)
def test_what_is_no_ensemble_says_why(spec, message):
    with pytest.raises(UsageError, match=message):
        load_model(spec)


def test_members_must_have_the_same_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_members_here.py").write_text(
        "from torch import nn\nfrom robustkit.api import ModelCard\n\n"
        "def make(classes: int):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n\n"
        "def told(classes: int):\n    return make(classes), ModelCard('told', classes=classes, input_shape=(3, 8, 8))\n"
    )
    told = "python/my_members_here.told:classes=7"
    with pytest.raises(UsageError, match=r"different classes \(digits-cnn: 10, .*told:classes=7: 7\)"):
        load_model(f"ensemble/(digits-cnn)+({told})")
    with pytest.raises(UsageError, match=r"different numbers of channels \(digits-cnn: 1, .*: 3\)"):
        load_model("ensemble/(digits-cnn)+(python/my_members_here.told:classes=10)")
    untold = "ensemble/(digits-cnn)+(python/my_members_here.make:classes=7)"
    with pytest.raises(UsageError, match="different numbers of classes: 7, 10"):
        robustkit.evaluate(untold, "digits", "pgd:steps=1", eps=0.1, n=4)
