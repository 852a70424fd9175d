"""What every preset of the transfer attacks keeps: batches, the ball, zero gradients, its stated cost, its name."""

import pytest
import torch
from robustkit_attacks.transfer.attack import Transfer

from benchmarks import kit
from robustkit.api import ThreatModel
from robustkit.engine.plan import make_attack, name_of, resolve_attacks
from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws
from robustkit.testing import attack_batch
from tests import needs, toys
from tests.surrogates import PRESETS, Ensemble, conv_net, images, linear_pair, quick, run

LINF = ThreatModel("linf", 0.1)
SHAPE = (2, 4, 5)
X = images(3, SHAPE)
Y = torch.tensor([0, 2, 3])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_s_result_does_not_depend_on_its_batch(name, targeted):
    trio, attack = Ensemble(*(conv_net(seed) for seed in range(3))), make_attack(quick(name))
    x = images(13, (3, 10, 10))
    y = trio(x).argmax(1)
    target = (y + 1) % 5 if targeted else None
    whole = run(attack, trio, x, y, LINF, target=target)
    for rows in (torch.tensor([4]), torch.tensor([12, 0, 7, 5, 3])):
        chosen = None if target is None else target[rows]
        part = run(attack, trio, x[rows], y[rows], LINF, target=chosen, indices=rows)
        assert torch.equal(part.adv, whole.adv[rows])
    assert not torch.equal(whole.adv, x)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_break_a_linear_ensemble_inside_ball_and_box(name):
    # Smoothing over 15 pixels, or large turned strips, would leave nothing of a random direction of 6×6 pixels.
    smaller = {"ti": "ti:input=(ti:kernel=3)", "bsr": "bsr:steps=4,input=(bsr:copies=6,blocks=2,angle=6)"}
    pair, x = linear_pair((2, 6, 6)), images(24, (2, 6, 6))
    y, attack = pair(x).argmax(1), make_attack(smaller.get(name, quick(name)))
    for norm, eps in (("linf", 0.25), ("l2", 2.0)):
        if norm not in attack.norms:
            continue
        threat = ThreatModel(norm, eps)
        done = attack_batch(attack, pair, x, y, threat)
        assert not done.judge.reasons
        assert float(done.broken.double().mean()) >= 0.5
        aimed = attack_batch(attack, pair, x, y, ThreatModel(norm, 2 * eps), target=(y + 1) % 4)
        assert not aimed.judge.reasons
        assert float(aimed.broken.double().mean()) >= 0.5


class Sure(torch.nn.Module):
    """Saturated for even samples (zero gradient), constant for all: nothing to climb."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        value = x.flatten(1).sum(1)
        return torch.stack([1e5 + self.scale * value, 0 * value, 0 * value, -value * self.scale], 1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_zero_gradient_moves_nothing_and_makes_no_nan(name, scale, targeted):
    surely = Ensemble(Sure(scale), Sure(scale))
    y, target = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long) if targeted else None
    attack = make_attack(quick(name))
    done = run(attack, surely, X, y, LINF, target=target)
    assert torch.equal(done.adv, X)
    if "l2" in attack.norms:
        assert torch.equal(run(attack, surely, X, y, ThreatModel("l2", 1.0), target=target).adv, X)


class Calls(torch.nn.Module):
    """A member that counts its own forward and backward calls."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x):
        self.forwards += 1
        out = self.inner(x)
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, grad):
        self.backwards += 1


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_the_cost_that_an_attack_states_is_what_its_members_are_called(name, members):
    models = [Calls(toys.Linear(SHAPE, 4, seed=k)) for k in range(members)]
    attack = make_attack(quick(name))
    # In tiles of one a call of a member is one pass of one sample.
    done = run(attack, Ensemble(*models), X[:2], Y[:2], LINF, tile=1)
    expected = attack.gradients(members)
    assert sum(m.backwards for m in models) == 2 * expected
    assert done.backwards.tolist() == [expected] * 2
    forwards = sum(m.forwards for m in models) - members  # one more to count the classes
    assert (forwards // 2, expected) == attack.cost(4, members)


@pytest.mark.parametrize("name", PRESETS)
def test_a_budget_pays_for_as_many_steps_as_it_can(name):
    attack = make_attack(name)
    for members in (1, 2, 4):
        step = attack.gradients(members) // attack.steps
        for budget in (1, 100, 840, 2000):
            spent = make_attack(f"{name}:budget={budget}")
            used = spent.gradients(members)
            assert used == max(1, budget // step) * step
            assert used <= budget or spent.steps_for(members) == 1
            assert spent.cost(10, members)[1] == used


def test_a_budget_gives_each_method_the_same_member_gradients():
    pair, used = linear_pair(SHAPE), {}
    for name in ("mi", "svre", "mi-cwa", "mi-cse", "adaea", "smer"):
        used[name] = run(make_attack(f"{name}:budget=96"), pair, X, Y, LINF).backwards.tolist()
    assert used == dict.fromkeys(used, [96] * 3)


def test_a_budget_buys_more_steps_where_a_target_saves_the_reverse_step():
    """The code's settings take no step of SAM towards a target."""
    attack = make_attack("mi-cwa:settings=code,budget=40")
    pair, target = linear_pair(SHAPE), (Y + 1) % 4
    assert run(attack, pair, X, Y, LINF).backwards.tolist() == [40] * 3
    assert run(attack, pair, X, Y, LINF, target=target).backwards.tolist() == [40] * 3


# Names


def test_specs_and_names_round_trip():
    composed = make_attack("transfer:gradient=vmi,input=di+ti,ensemble=svre,steps=10,momentum=1.0")
    assert composed == Transfer("vmi", ("di", "ti"), "svre")
    assert name_of(composed) == "transfer:gradient=vmi,input=(di+ti),ensemble=svre"
    for text in (
        *PRESETS,
        "mi:steps=20,input=(di:prob=0.7)+ti,gradient=(vmi:samples=3)",
        "cwa:settings=code,beta_rel=0.1",
    ):
        made = make_attack(text)
        assert make_attack(name_of(made)) == made
    assert make_attack("mi:steps=20") == Transfer(steps=20)


def test_a_plus_after_a_setting_that_is_a_list_continues_it():
    def named(text):
        return [each.name for each in resolve_attacks(text, LINF, None)]

    assert named("transfer:gradient=vmi,input=di+ti,ensemble=svre") == [
        "transfer:gradient=vmi,input=(di+ti),ensemble=svre"
    ]
    assert named("mi:input=di+(ti:kernel=3)") == ["transfer:input=(di+ti:kernel=3)"]
    assert named("(transfer:input=di)+ti+pgd:steps=3+fgsm") == [
        "transfer:input=di",
        "transfer:input=ti",
        "pgd:steps=3",
        "fgsm",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "transfer:gradient=vni",
            "no part gradient called 'vni'; did you mean .*There are: mi, neighbours, ni, pgn, vmi",
        ),
        ("transfer:input=di+fgsm", "no part input called 'fgsm'.* There are: admix, bsr, di, si, sia, ssa, ti"),
        ("transfer:ensemble=x", "There are: adaea, logit, loss, probs, smer, svre"),
        ("mi:gradient=(vmi:sample=3)", "gradient=vmi: no option called 'sample'; did you mean samples"),
        ("mi:gradient=(vmi:samples=0)", "vmi: samples and radius must be positive"),
        ("mi:input=(ti:kernel=4)", "kernel is an odd number"),
        ("mi:stps=3", "mi: no option called 'stps'; did you mean steps"),
        ("mi:steps=0", "steps and step must be positive"),
        ("mi:budget=-1", "must not be negative"),
        ("svre:ensemble=(svre:rounds=0)", "rounds must be positive"),
    ],
)
def test_a_wrong_part_or_setting_is_refused_with_what_there_is(text, message):
    with pytest.raises(UsageError, match=message):
        make_attack(text)


def test_input_is_a_tuple_of_texts():
    with pytest.raises(UsageError, match="input is a tuple of parts"):
        Transfer(input="di")
    with pytest.raises(UsageError, match="gradient names a part"):
        Transfer(gradient=3)


# Real networks


@pytest.mark.slow
@needs.kit
def test_momentum_transfers_at_least_as_well_as_one_step_between_real_networks():
    pair = Ensemble(*(kit.model(f"cifar10_resnet{depth}_std") for depth in (20, 32)))
    victim = kit.model("cifar10_resnet56_std")
    x, y = kit.cifar10(range(64))
    right = victim(x).argmax(1) == y
    fooled = {}
    for name in ("fgsm", "mi:budget=20", "svre:budget=20", "mi-cwa:budget=20"):
        adv = run(make_attack(name), pair, x, y, ThreatModel("linf", 8 / 255), tile=32).adv
        fooled[name] = int(((victim(adv).argmax(1) != y) & right).sum())
    noisy = (x + 8 / 255 * (2 * SampleDraws((1, 1), torch.arange(64)).uniform(x.shape[1:]) - 1)).clamp(0, 1)
    noise = int(((victim(noisy).argmax(1) != y) & right).sum())
    assert fooled["mi:budget=20"] >= fooled["fgsm"] > noise, fooled
    assert all(count > noise for count in fooled.values()), fooled
