"""Contextual fusion: the head against closed forms and independent solvers, the fused network, what is refused."""

import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from robustkit_defenses.contextual_fusion import (
    ContextFusion,
    ContextualFusion,
    Head,
    HeadPlan,
    fit_head,
    headless,
    load_head,
    save_head,
    train_fusion,
)
from robustkit_defenses.contextual_fusion.make import main
from robustkit_defenses.recipes.fusion import Fusion
from torch import nn

import robustkit
from robustkit.datasets import Pair
from robustkit.errors import UsageError
from robustkit.models.sources import normalized
from robustkit.training.data import batches, held
from robustkit.training.recipes import Schedule, Task, Training
from robustkit.training.run import Request, train
from tests import toys


class Net(nn.Module):
    """A classifier of 3×8×8 images whose features are 6 or so wide."""

    def __init__(self, seed, width=6, classes=5):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(seed * 100 + p.numel()))

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def pair(n=60, classes=4, seed=0):
    return Pair(torch.rand(n, 3, 8, 8, generator=toys.seeded(seed)), torch.arange(n) % classes, classes=classes)


def features(n=300, classes=4, widths=(5, 3), seed=0):
    """Features that tell something of the class, not all."""
    g, y = toys.seeded(seed), torch.arange(n) % classes
    means = [torch.randn(classes, width, generator=g) for width in widths]
    return (*(m[y] + torch.randn(n, m.shape[1], generator=g) for m in means), y)


@pytest.fixture
def fused():
    return train_fusion(Net(1), Net(2, width=4), pair())


@pytest.fixture
def head_file(fused, tmp_path):
    save_head(fused.head, tmp_path / "head.safetensors", {"name": "test"})
    return str(tmp_path / "head.safetensors")


def objective(head, f, b, y, plan):
    """What the joint head is to minimise, in float64."""
    w, bias = head.joint.weight.double(), head.joint.bias.double()
    penalties = [(plan.decay + a) * part.square().sum() for a, part in zip(plan.alpha, w.split(head.widths, 1))]  # noqa: B905
    return F.cross_entropy(torch.cat([f, b], 1).double() @ w.T + bias, y) + sum(penalties)


# ------------------------------------------------------------------ the head


@pytest.mark.parametrize(("classes", "alpha"), [(2, (0.0, 0.0)), (2, (0.3, 0.0)), (4, (0.0, 0.0)), (4, (0.2, 0.01))])
def test_the_head_is_where_the_gradient_of_its_convex_objective_vanishes(classes, alpha):
    f, b, y = features(classes=classes)
    plan = HeadPlan(alpha=alpha, decay=1e-3)
    head = fit_head(f, b, y, classes, plan=plan).double()
    weight, bias = torch.autograd.grad(objective(head, f, b, y, plan), [head.joint.weight, head.joint.bias])
    assert max(weight.abs().max(), bias.abs().max()) < 1e-6
    for layer, z in ((head.foreground, f), (head.background, b)):
        loss = F.cross_entropy(layer(z.double()), y) + plan.decay * layer.weight.square().sum()
        assert max(g.abs().max() for g in torch.autograd.grad(loss, [layer.weight, layer.bias])) < 1e-6


def test_two_separated_points_have_a_closed_form():
    # Features ±1 in one dimension, two classes: w = (−u, u)/2 with log(1+e^−u) + decay·u²/2 least: 1/(1+e^u) = decay·u.
    head = fit_head(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1), torch.tensor([0, 1]), 2, plan=HeadPlan(decay=0.1))
    head.requires_grad_(False)
    u = float(head.joint.weight[1, 0] - head.joint.weight[0, 0])
    assert 1 / (1 + torch.tensor(u).exp()) == pytest.approx(0.1 * u, rel=1e-4)
    assert head.joint.weight[:, 1].abs().max() < 1e-6
    assert head.joint.bias.abs().max() < 1e-6


def test_an_endless_penalty_on_the_foreground_leaves_the_background_alone():
    f, b, y = features()
    for alpha, gone, left, layer in (((1e9, 0.0), f, b, "background"), ((0.0, 1e9), b, f, "foreground")):
        head = fit_head(f, b, y, 4, plan=HeadPlan(alpha=alpha))
        alone = getattr(head, layer)(left)
        torch.testing.assert_close(head(f, b), alone, atol=1e-3, rtol=1e-3)
        assert torch.equal(head(f, b).argmax(1), alone.argmax(1))
        assert (head(f, b) - head(*(torch.zeros_like(z) if z is gone else z for z in (f, b)))).abs().max() < 1e-5


def test_a_larger_penalty_means_less_weight_on_that_branch():
    f, b, y = features()
    norms = [fit_head(f, b, y, 4, plan=HeadPlan(alpha=(a, 0.0))).joint.weight[:, :5].norm() for a in (0, 0.01, 0.1, 1)]
    assert all(after < 0.8 * before for before, after in pairwise(norms))


def test_dropout_moves_weight_to_the_branch_that_is_kept_and_fitting_again_gives_the_same_bits():
    f, b, y = features(n=200)
    plain = fit_head(f, b, y, 4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = (fit_head(f, b, y, 4, plan=HeadPlan(dropout=(0.8, 0.0))) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    other = fit_head(f, b, y, 4, plan=HeadPlan(dropout=(0.8, 0.0), seed=1))
    assert not torch.equal(one.joint.weight, other.joint.weight)
    assert one.joint.weight[:, :5].norm() < 0.7 * plain.joint.weight[:, :5].norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, b, y: (f[:-1], b, y, 4), "foreground features are finite"),
        (lambda f, b, y: (f, b[:, 0], y, 4), "background features are finite"),
        (lambda f, b, y: (f / 0, b, y, 4), "foreground features are finite"),
        (lambda f, b, y: (f, b, y, 3), "labels are int64 from 0 to 2, not 0 to 3"),
        (lambda f, b, y: (f, b, y - 1, 4), "not -1 to 2"),
        (lambda f, b, y: (f, b, y, 6), "no image of class 4"),
        (lambda f, b, y: (f, b, y * 0, 1), "no image of class 1"),
        (lambda f, b, y: (f.repeat(1, 700), b, y, 4), "14012 weights is too large to be solved for"),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        fit_head(*change(*features(n=40)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": (-1.0, 0.0)}, "alpha"),
        ({"alpha": (float("inf"), 0.0)}, "alpha"),
        ({"dropout": (1.0, 0.0)}, "dropout"),
        ({"decay": 0.0}, "decay"),
        ({"copies": 0}, "copies"),
    ],
)
def test_a_plan_that_has_no_optimum_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        HeadPlan(**settings)


def test_a_fit_that_stops_early_is_refused():
    with pytest.raises(UsageError, match="has not converged in 1 steps"):
        fit_head(*features(), 4, plan=HeadPlan(steps=1))


# ------------------------------------------------------------------ the fused network


def test_the_logits_are_a_linear_function_of_both_networks_own_features(fused):
    x, _ = pair(7).batch(range(7))
    f, b = ((net.conv(x).relu().mean((2, 3))) for net in (Net(1), Net(2, width=4)))
    joint, alone = fused.forward_with_members(x)
    torch.testing.assert_close(joint, fused.head.joint(torch.cat([f, b], 1)))
    torch.testing.assert_close(alone[0], fused.head.foreground(f))
    torch.testing.assert_close(alone[1], fused.head.background(b))
    assert torch.equal(fused(x), joint)


def test_gradients_flow_through_both_branches_and_add_up(fused):
    x = pair(3).batch(range(3))[0].requires_grad_(True)
    (grad,) = torch.autograd.grad(fused(x)[:, 1].sum(), x)
    f, b = fused.foreground(x), fused.background(x)
    w_f, w_b = fused.head.joint.weight[1].split(fused.head.widths)
    one, two = torch.autograd.grad((f @ w_f).sum(), x)[0], torch.autograd.grad((b @ w_b).sum(), x)[0]
    assert min(one.abs().max(), two.abs().max()) > 0
    torch.testing.assert_close(grad, one + two)


def test_members_and_stand_ins_are_the_branches_and_their_mean(fused):
    x, _ = pair(5).batch(range(5))
    _, alone = fused.forward_with_members(x)
    for module, expected in zip(fused.members(), alone, strict=True):
        assert torch.equal(module(x), expected)
    stand_ins = fused.surrogates()
    assert set(stand_ins) == {"foreground", "background", "mean"}
    torch.testing.assert_close(stand_ins["mean"](x), alone.mean(0))
    assert torch.equal(stand_ins["background"](x), alone[1])
    facts = robustkit.evaluate(fused, pair(8), "adaptive:only=surrogates+members,budget=quick", eps="8/255", n=4)
    assert len(facts.by_attack) == 6  # three stand-ins; the mean of the members and each of them


def test_dropout_is_for_training_only_and_the_frozen_branches_stay_in_eval_mode():
    fused = train_fusion(Net(1), Net(2), pair(), HeadPlan(dropout=(0.5, 0.0)))
    x, _ = pair(5).batch(range(5))
    assert torch.equal(fused(x), fused(x))
    fused.train()
    assert fused.head.training
    assert not any(m.training for part in (fused.foreground, fused.background) for m in part.modules())
    torch.manual_seed(0)
    assert not torch.equal(fused(x), fused(x))
    # The background's share is 0: what varies in training is the foreground's part alone.
    with torch.no_grad():
        fused.head.joint.weight[:, :6] = 0
    assert torch.equal(fused(x), fused(x))


def test_weights_ask_for_gradients_in_the_head_only_unless_thawed(fused):
    assert {name.partition(".")[0] for name, p in fused.named_parameters() if p.requires_grad} == {"head"}
    thawed = ContextFusion(headless(Net(1)), headless(Net(2, width=4)), fused.head, freeze=False)
    assert all(p.requires_grad for p in thawed.parameters())
    assert thawed.train().foreground.training


def test_a_sample_does_not_see_the_others(fused):
    x, _ = pair(16).batch(range(16))
    order = torch.randperm(16, generator=toys.seeded(3))
    torch.testing.assert_close(fused(x[order]), fused(x)[order])
    torch.testing.assert_close(fused(x[:1]), fused(x)[:1])


def test_the_callers_networks_are_left_as_they_were():
    net = Net(1).train()
    fused = train_fusion(net, Net(2), pair())
    assert net.training
    assert isinstance(net.fc, nn.Linear)
    assert all(p.requires_grad for p in net.parameters())
    assert not fused.training


def test_each_branch_normalises_and_resizes_by_itself():
    plain, other = train_fusion(Net(1), Net(2), pair()), normalized.normalized(Net(2), (0.4,), (0.2,))
    x, _ = pair(3).batch(range(3))
    fused = train_fusion(Net(1), other, pair())
    torch.testing.assert_close(fused.background(x), plain.background((x - 0.4) / 0.2))
    torch.testing.assert_close(fused.foreground(x), plain.foreground(x))


# ------------------------------------------------------------------ files and specs


def test_a_head_comes_back_from_its_file(fused, head_file):
    head = load_head(head_file)
    assert (head.widths, head.classes, head.input_shape) == ((6, 4), 4, (3, 8, 8))
    x, _ = pair(5).batch(range(5))
    again = ContextFusion(headless(Net(1)), headless(Net(2, width=4)), head)
    assert torch.equal(again(x), fused(x))


def background(width: int = 4, seed: int = 2):
    """What the specs below name."""
    return Net(seed, width)


BACKGROUND = "python/tests.test_fusion.background"


def test_a_spec_makes_each_variant(fused, head_file):
    x, _ = pair(5).batch(range(5))
    joint, alone = fused.forward_with_members(x)
    for variant, expected in (("joint", joint), ("foreground", alone[0]), ("background", alone[1])):
        module = ContextualFusion(BACKGROUND, head_file, variant).protect(Net(1))
        assert torch.equal(module(x), expected)
        assert not module.training
    record = robustkit.evaluate(
        Net(1), pair(8), "fgsm", eps="8/255", defense=f"contextual-fusion:background=({BACKGROUND}),head={head_file}"
    )
    assert record.job["defense"].startswith("contextual-fusion:background=")


@pytest.mark.parametrize(
    ("settings", "foreground", "message"),
    [
        ({"background": ""}, Net(1), "needs a second network and a head"),
        ({"head": ""}, Net(1), "needs a second network and a head"),
        ({"head": "./none.safetensors"}, Net(1), r"there is no file \./none\.safetensors"),
        ({"head": "scene"}, Net(1), "no bundled head called 'scene'; did you mean scenes"),
        ({"background": f"{BACKGROUND}:width=7"}, Net(1), "the background has 7 features, the head takes 4"),
        ({"background": f"{BACKGROUND}:seed=3"}, Net(1), "the background is not the network that the head was"),
        ({}, Net(4), "the foreground is not the network that the head was"),
        ({}, normalized.normalized(Net(1), (0.5,), (0.5,)), "the foreground is not the network"),
        ({}, nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), "has no linear layer"),
        ({}, nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "the foreground has 192 features, the head takes 6"),
        ({}, nn.Sequential(nn.Flatten(), nn.Linear(100, 9), nn.Linear(9, 4)), "does not take images of 3×8×8"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_image_is_seen(settings, foreground, message, head_file):
    with pytest.raises(UsageError, match=message):
        ContextualFusion(**{"background": BACKGROUND, "head": head_file, **settings}).protect(foreground)


def test_a_file_that_is_no_head_is_refused(fused, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"is no \.safetensors file"):
        load_head(str(bad))
    from safetensors.torch import save

    for metadata in ({}, {"card": "{}"}, {"card": "no"}, {"card": json.dumps({"schema": "other"})}):
        bad.write_bytes(save({"a": torch.zeros(1)}, metadata))
        with pytest.raises(UsageError, match="holds no head of contextual fusion"):
            load_head(str(bad))
    fused.head.classes = 7
    save_head(fused.head, bad, {})
    with pytest.raises(UsageError, match="the weights are not those of its card"):
        load_head(str(bad))


def test_data_of_another_size_or_number_of_classes_is_refused(fused):
    with pytest.raises(UsageError, match="fitted on images of 3×8×8, these are 3×9×9"):
        robustkit.evaluate(fused, Pair(torch.rand(4, 3, 9, 9), torch.arange(4)), "fgsm", eps="8/255")
    with pytest.raises(UsageError, match="4 outputs but the dataset has 6 classes"):
        robustkit.evaluate(fused, pair(12, classes=6), "fgsm", eps="8/255")
    with pytest.raises(UsageError, match="says for images of which shape"):
        ContextFusion(headless(Net(1)), headless(Net(2)), Head((6, 6), 4))
    with pytest.raises(UsageError, match="no images to fit a head on"):
        train_fusion(Net(1), Net(2), pair(), indices=[])


# ------------------------------------------------------------------ the recipe


def test_a_step_of_the_recipe_is_that_of_the_stated_loss_and_moves_the_head_alone():
    settings = Fusion(BACKGROUND, f"{BACKGROUND}:seed=3", alpha=(0.5, 0.25))
    fused = settings.build(Task(4, (3, 8, 8), background, robustkit.load_model))
    x, y = pair(12).batch(range(12))
    with torch.no_grad():
        fused.head.joint.weight.normal_(generator=toys.seeded(0))
    before = {key: value.clone() for key, value in fused.state_dict().items()}
    f, b = fused.foreground(x), fused.background(x)
    w = before["head.joint.weight"].clone().requires_grad_(True)
    loss = F.cross_entropy(F.linear(torch.cat([f, b], 1), w), y)
    loss = loss + 0.5 * w[:, :4].square().sum() + 0.25 * w[:, 4:].square().sum()
    (grad,) = torch.autograd.grad(loss, w)
    training = Training(fused.train(), [torch.optim.SGD(fused.head.parameters(), lr=0.1)])
    settings.step(training, next(batches(held(pair(12), torch.device("cpu")), Schedule(batch=12), 0, 0)))
    after = fused.state_dict()
    torch.testing.assert_close(after["head.joint.weight"], before["head.joint.weight"] - 0.1 * grad)
    assert {key.partition(".")[0] for key in after if not torch.equal(after[key], before[key])} == {"head"}


def test_the_recipe_draws_from_the_batch_and_needs_both_networks():
    settings, x = Fusion(BACKGROUND, BACKGROUND, dropout=(0.5, 0.5)), held(pair(12), torch.device("cpu"))
    ends = []
    for seed in (1, 2):
        fused = settings.build(Task(4, (3, 8, 8), background, robustkit.load_model)).train()
        torch.manual_seed(seed)
        settings.step(Training(fused, [torch.optim.SGD(fused.head.parameters(), lr=0.1)]),
                      next(batches(x, Schedule(batch=12), 0, 0)))  # fmt: skip
        ends.append(fused.head.joint.weight.detach())
    assert torch.equal(*ends)
    with pytest.raises(UsageError, match="fusion needs two trained networks"):
        Fusion(BACKGROUND).build(Task(4, (3, 8, 8), background, robustkit.load_model))
    for wrong in ({"alpha": (0.1,)}, {"dropout": (0.5, 1.0)}, {"alpha": (-1.0, 0.0)}):
        with pytest.raises(UsageError, match="fusion: "):
            Fusion(**wrong)


def test_a_trained_folder_evaluates_by_its_name(tmp_path):
    recipe = "fusion:foreground=scenes-foreground,background=scenes-background,alpha=0.001+0"
    request = Request(recipe, "pooled-cnn", "scenes:n=200", test="scenes:n=50", threads=1, check=50, check_robust=1,
                      schedule=Schedule(epochs=3, rate=0.05))  # fmt: skip
    card = train(request, tmp_path / "a")
    module, _ = robustkit.load_model(str(tmp_path / "a"))
    x, y = robustkit.load_dataset("scenes").batch(range(50))
    right = float((module(x).argmax(1) == y).double().mean())
    assert right == pytest.approx(card["clean_accuracy"])
    assert right > 0.9
    assert set(module.surrogates()) == {"foreground", "background", "mean"}


def test_the_bundled_head_fits_the_bundled_networks_and_has_the_accuracy_of_its_card():
    module = ContextualFusion("scenes-background", "scenes").protect(robustkit.load_model("scenes-foreground")[0])
    x, y = robustkit.load_dataset("scenes").batch(range(200))
    joint, alone = module.forward_with_members(x)
    shares = [float((z.argmax(1) == y).double().mean()) for z in (joint, *alone)]
    assert shares[0] > 0.98
    assert shares[1] > 0.98
    assert 0.8 < shares[2] < 0.97  # the background of one scene in ten is another class's


@pytest.mark.slow
def test_the_bundled_head_is_fitted_again_to_the_same_decisions(tmp_path):
    assert CliRunner().invoke(main, ["--folder", str(tmp_path)]).exit_code == 0
    torch.testing.assert_close(
        load_head(str(tmp_path / "scenes.safetensors")).state_dict(), load_head("scenes").state_dict(),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip
