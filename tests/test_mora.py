"""MORA: its weights against autograd, its modes, and the contract."""

import pytest
import torch
from robustkit_attacks import mora
from robustkit_attacks.mora import MORA
from torch import nn

from robustkit import evaluate
from robustkit.api import Case, Outputs, ThreatModel
from robustkit.errors import UsageError
from robustkit.testing import attack_batch, check_attack
from tests import toys

LINF = ThreatModel("linf", 0.1)


class Ensemble(nn.Module):
    """Three small networks whose logits, probabilities or votes are joined."""

    def __init__(self, join="logits", scale=1.0):
        super().__init__()
        self.join, self.scale = join, scale
        self.networks = nn.ModuleList(self.network(seed) for seed in (1, 2, 3))

    def network(self, seed):
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 5))
        for p in module.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(seed * 1000 + p.numel())) * 0.4
        return module

    def members(self):
        return list(self.networks)

    def surrogates(self):
        return {"mean": Ensemble("logits", self.scale).eval()} if self.join == "vote" else {}

    def forward_with_members(self, x):
        members = torch.stack([network(x) * self.scale for network in self.networks])
        if self.join == "logits":
            return members.mean(0), members
        if self.join == "probs":
            return members.softmax(-1).mean(0).clamp_min(1e-30).log(), members
        return nn.functional.one_hot(members.argmax(-1), 5).sum(0).float(), members

    def forward(self, x):
        return self.forward_with_members(x)[0]


def images(n):
    return torch.rand(n, 3, 4, 4, generator=toys.seeded(0))


@pytest.mark.parametrize("aimed", [False, True])
def test_the_weight_of_a_member_is_the_gradient_of_the_ensembles_decision(aimed):
    members = 3 * torch.randn(4, 6, 5, generator=toys.seeded(7))
    y = members.mean(0).argmax(1)
    logits = members.softmax(-1).mean(0).log()
    m = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    aim = (y + 2) % 5 if aimed else None
    m = m if aim is None else aim
    z = (0.2 * mora.calmed(members)).requires_grad_(True)
    mean = z.softmax(-1).mean(0)
    decides = (mean.gather(1, m[:, None]).log() - mean.gather(1, y[:, None]).log()).sum()
    (grad,) = torch.autograd.grad(decides, z)
    expected = 4 * grad.gather(2, m[None, :, None].expand(4, -1, 1))[..., 0]
    expected[members.argmax(-1) != y] = 0
    done = members.argmax(-1) != y
    found = mora.weights(logits, members, y, aim, torch.full((6,), 0.2), done, faithful=False)
    assert (found > 0).sum() > 10
    torch.testing.assert_close(found, expected)


def test_where_the_mean_of_the_logits_decides_all_members_weigh_alike():
    members = torch.randn(3, 6, 5, generator=toys.seeded(7))
    y = torch.arange(6) % 5
    found = mora.weights(members.mean(0), members, y, None, torch.zeros(6), members.argmax(-1) != y, faithful=False)
    torch.testing.assert_close(found, found[:1].expand(3, -1))


def test_a_confident_member_is_scaled_to_a_lead_of_ten():
    members = torch.tensor([[[100.0, 0.0, -5.0]], [[3.0, 2.0, 1.0]]])
    torch.testing.assert_close(mora.calmed(members), members / 10)
    torch.testing.assert_close(mora.calmed(members[1:]), members[1:])


@pytest.mark.parametrize("join", ["logits", "probs", "vote"])
def test_how_members_are_joined_is_found_out(join):
    module, x = Ensemble(join), images(9)
    sharpness = {"logits": 0.0, "probs": 0.2, "vote": 0.8}[join]
    assert mora.sharpness_of(Outputs(*module.forward_with_members(x))).tolist() == pytest.approx([sharpness] * 9)
    assert mora.sharpness_of(Outputs(module(x))).tolist() == [0] * 9


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("join", ["logits", "probs", "vote"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_every_kind_of_ensemble(norm, join, faithful):
    module, x = Ensemble(join).eval(), images(24)
    y, eps = module(x).argmax(1), {"linf": 0.2, "l2": 1.5}[norm]
    record = evaluate(module, (x, y), MORA(steps=20, targets=4, faithful=faithful), norm=norm, eps=eps)
    assert float(record.clean_accuracy) == 1
    assert float(record.robust_accuracy) < 0.1


def test_the_result_of_a_row_does_not_depend_on_the_others():
    module, x = Ensemble("probs"), images(9)
    y = module(x).argmax(1)
    attack = MORA(steps=6, mixes=(0.5,), targets=1)
    together = attack_batch(attack, module, x, y, LINF, tile=4)
    assert 0 < together.broken.sum() < len(x)
    for some in [torch.tensor([2]), torch.tensor([7, 1, 3])]:
        apart = attack_batch(attack, module, x[some], y[some], LINF, indices=some, tile=4)
        assert torch.equal(apart.verdicts.adv, together.verdicts.adv[some])


def test_how_a_sample_s_members_are_joined_is_told_by_that_sample():
    sure = torch.tensor([40.0, 0.0, 0.0]).expand(3, 1, 3)  # all saturated: mean probabilities or votes, who knows
    split = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[2.5, 0.0, 0.0]]])
    members = torch.cat([sure, split], 1)
    outputs = Outputs(100 * members.median(0).values, members)
    apart = [mora.sharpness_of(Outputs(outputs.logits[i : i + 1], members[:, i : i + 1])) for i in range(2)]
    assert torch.equal(torch.cat(apart), mora.sharpness_of(outputs))
    assert apart[0] != apart[1]


def test_a_member_that_decides_a_third_class_still_counts_where_a_class_is_wanted():
    members = torch.tensor([[[3.0, 1.0, 0.0]], [[0.0, 3.0, 1.0]], [[0.0, 1.0, 3.0]]])
    case = attack_case(members)
    outputs = Outputs(members.softmax(-1).mean(0).log(), members)
    leaves = members.clone().requires_grad_(True)
    loss = MORA(mixes=(1.0,), mode="probs")._loss(
        case, case.target, mora._Mixture(torch.ones(1), torch.full((1,), 0.2))
    )
    loss(outputs._replace(members=leaves)).sum().backward()
    moved = leaves.grad.abs().sum((1, 2))
    assert (moved[:2] > 0).all()
    assert moved[2] == 0  # it decides for the target


def attack_case(members):
    """A case of one image of class 0 whose target is class 2; only labels are asked of it."""
    x = torch.rand(1, 3, 4, 4)
    return Case(None, x, torch.tensor([0]), torch.tensor([2]), LINF, None, None, torch.arange(1))


def test_without_mixes_a_targeted_evaluation_still_attacks():
    module, x = Ensemble("probs").eval(), images(24)
    y = module(x).argmax(1)
    record = evaluate(module, (x, y), MORA(steps=20, mixes=(), targets=9), eps=0.9, target=int(y[0] + 1) % 5)
    assert float(record.robust_accuracy) < 0.1


def test_very_large_logits_leave_it_a_direction():
    module, x = Ensemble("probs", scale=300.0), images(24)
    y = module(x).argmax(1)
    result = attack_batch(MORA(steps=20, targets=4), module, x, y, ThreatModel("linf", 0.2))
    assert result.broken.double().mean() > 0.9


def test_a_target_is_reached():
    module, x = Ensemble("probs"), images(12)
    target = (module(x).argmax(1) + 1) % 5
    result = attack_batch(MORA(steps=30), module, x, module(x).argmax(1), ThreatModel("linf", 0.5), target=target)
    assert result.broken.all()


@pytest.mark.parametrize("faithful", [False, True])
def test_it_conforms_on_a_single_model(faithful):
    check_attack(MORA(steps=12, mixes=(0.5,), targets=2, faithful=faithful))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"mixes": (), "targets": 0}, {"mixes": (1.5,)}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match="mora"):
        MORA(**settings)
