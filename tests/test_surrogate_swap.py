"""Surrogate swap: where gradients are blocked, the declared stand-in shows the way."""

import pytest
import torch
from robustkit_attacks.pgd import PGD
from robustkit_attacks.surrogate_swap import SurrogateSwap
from torch import nn

from robustkit import evaluate
from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.testing import attack_batch, check_attack
from tests import toys

THREAT = ThreatModel("linf", 0.12)


class Blocked(nn.Module):
    """A linear model behind a step that lets no gradient, or a wrong one, through; honest about it or not."""

    def __init__(self, *, declares=True, lies=False):
        super().__init__()
        self.inner, self.declares, self.lies = linear(), declares, lies

    def surrogates(self):
        return {"other": linear(9), "smooth": self.inner} if self.declares else {}

    def forward(self, x):
        z = self.inner(x)
        return (z - 2 * (z - z.detach())) if self.lies else (z * 64).round() / 64


def linear(seed=1):
    layer = nn.Linear(48, 3)
    layer.weight.data = torch.randn(3, 48, generator=toys.seeded(seed))
    layer.bias.data = -0.5 * layer.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), layer).eval()


def images(n=20):
    return 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=toys.seeded(0))


class DeadMembers(nn.Module):
    """An ensemble of two whose members pass no gradient, and say nothing of it."""

    def members(self):
        return [toys.Detached(linear(1)), toys.Detached(linear(2))]

    def forward(self, x):
        return torch.stack([member(x) for member in self.members()]).mean(0)


def test_without_any_stand_in_to_follow_there_is_no_number():
    module, x = DeadMembers(), images()
    record = evaluate(module, (x, module(x).argmax(1)), SurrogateSwap(of="members", steps=5), eps=0.9)
    assert record.robust_accuracy is None


def test_a_model_that_misleads_gradients_falls_to_its_stand_in():
    module, x = Blocked(lies=True), images()
    y = module(x).argmax(1)
    direct = attack_batch(PGD(steps=20), module, x, y, THREAT)
    swapped = attack_batch(SurrogateSwap(steps=20, direct=0), module, x, y, THREAT)
    assert direct.broken.double().mean() < 0.3  # by the random start alone
    assert swapped.broken.double().mean() > 0.9
    assert not swapped.judge.reasons


def test_the_stand_in_can_be_named():
    module, x = Blocked(lies=True), images()
    y = module(x).argmax(1)
    named = attack_batch(SurrogateSwap(only="smooth", steps=20, direct=0), module, x, y, THREAT)
    wrong = attack_batch(SurrogateSwap(only="other", steps=20, direct=0), module, x, y, THREAT)
    assert named.broken.double().mean() > wrong.broken.double().mean() + 0.3
    with pytest.raises(UsageError, match="smooth"):
        attack_batch(SurrogateSwap(only="smoth"), module, x, y, THREAT)


def test_the_direct_part_starts_where_the_stand_in_led():
    far, x = Declaring(linear()), images()
    y = far(x).argmax(1)
    small = ThreatModel("linf", 0.06)
    without = attack_batch(SurrogateSwap(steps=10, direct=0), far, x, y, small)
    both = attack_batch(SurrogateSwap(steps=10, direct=20), far, x, y, small)
    assert without.broken.sum() < both.broken.sum()
    assert (both.verdicts.distance <= small.limit).all()


class Declaring(nn.Module):
    """A plain model that declares a stand-in of little use."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def surrogates(self):
        return {"other": linear(9)}

    def forward(self, x):
        return self.inner(x)


def test_a_model_without_stand_ins_is_its_own():
    module, x = linear(), images()
    y = module(x).argmax(1)
    assert attack_batch(SurrogateSwap(steps=20), module, x, y, THREAT).broken.double().mean() > 0.9


def test_no_gradient_of_the_model_itself_is_needed():
    module, x = Blocked(), images()
    y = module(x).argmax(1)
    assert attack_batch(SurrogateSwap(steps=20, direct=0), module, x, y, THREAT).broken.double().mean() > 0.9


def test_it_conforms():
    check_attack(SurrogateSwap(steps=15, direct=5))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"direct": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match="surrogate-swap"):
        SurrogateSwap(**settings)
