"""Each recipe against what its paper says: closed forms, and loops written out here."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from robustkit_defenses.recipes.dual_norm import DualNorm, choose, dual, single
from torch import nn

from robustkit.datasets import Pair, load_dataset
from robustkit.models.sources import load_model, trained
from robustkit.training.adversarial import pgd, summed_cross_entropy, uniform_start
from robustkit.training.data import batches, held
from robustkit.training.folder import weights_bytes
from robustkit.training.loop import Loop, Watch, optimiser, rate
from robustkit.training.recipes import Schedule, Task

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=2, batch=32, optimiser="sgd", rate=0.05)
SEED = 3


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


@pytest.fixture(scope="module")
def data():
    return [held(Pair(*load_dataset(f"digits:split={split}").batch(range(96)), split, 10), CPU)
            for split in ("train", "test")]  # fmt: skip


def task(architecture=network) -> Task:
    return Task(10, (1, 8, 8), architecture, load_model)


def trained_by(recipe: str, data, architecture=network, schedule=SCHEDULE):
    return Loop(trained.recipe(recipe), task(architecture), data[0], schedule, Watch(data[1], 0.1, 1, 1), SEED).train()


def by_hand(data, step, architecture=network):
    """The loop written out: `step(network, batch)` gives the loss to go down."""
    schedule = SCHEDULE
    torch.manual_seed(SEED)
    net = architecture()
    descent = optimiser(net, schedule)
    for epoch in range(schedule.epochs):
        for batch in batches(data[0], schedule, SEED, epoch):
            for group in descent.param_groups:
                group["lr"] = rate(schedule, (epoch + batch.number / 3) / schedule.epochs)
            net.train()
            loss = step(net, batch)
            descent.zero_grad()
            loss.backward()
            descent.step()
    return net


def one_step(net, batch, eps):
    net.eval()
    x = (batch.x + eps * (2 * batch.draws.uniform(batch.x.shape[1:]) - 1)).clamp(batch.x - eps, batch.x + eps)
    x = x.clamp(0, 1).requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(net(x), batch.y, reduction="sum"), x)
    adv = x.detach() + 1.25 * eps * grad.sign()
    net.train()
    return adv.clamp((batch.x - eps).clamp_min(0), (batch.x + eps).clamp_max(1))


def same(one: nn.Module, two: nn.Module) -> bool:
    return weights_bytes(one.eval()) == weights_bytes(two.eval())


def test_pgd_finds_the_optimum_of_a_linear_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x, y = torch.rand(50, 1, 4, 4), torch.randint(0, 2, (50,))
    weight = net[1].weight.detach()
    towards = (weight[1 - y] - weight[y]).view_as(x)
    best = (x + 0.1 * towards.sign()).clamp(0, 1)
    adv = pgd(net, x, eps=0.1, steps=5, step_size=0.05, loss=summed_cross_entropy(y))
    assert torch.allclose(adv, best)
    assert net[1].weight.grad is None


@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_training_images_stay_in_the_ball_and_the_box_and_raise_the_loss(data, eps):
    (batch,) = batches(data[0], Schedule(batch=96), 0, 0)
    net = load_model("digits-cnn")[0]
    start = uniform_start(batch.x, eps, batch.draws)
    assert start.abs().max() <= eps
    adv = pgd(net, batch.x, eps=eps, steps=5, step_size=eps / 2, loss=summed_cross_entropy(batch.y), start=start)
    assert (adv - batch.x).abs().max() <= eps + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1
    loss = summed_cross_entropy(batch.y)
    assert loss(net(adv)) > loss(net((batch.x + start).clamp(0, 1))) > 0


def test_standard_is_the_loop_written_out(data):
    by_recipe, _ = trained_by("standard:temperature=4", data)
    assert same(by_recipe, by_hand(data, lambda net, batch: F.cross_entropy(net(batch.x) / 4, batch.y)))


def test_fast_at_is_the_loop_written_out_and_pgd_of_one_step(data):
    by_recipe, _ = trained_by("fast-at:eps=0.1", data)
    assert same(by_recipe, by_hand(data, lambda net, b: F.cross_entropy(net(one_step(net, b, 0.1)), b.y)))
    assert same(by_recipe, trained_by("at:eps=0.1,steps=1,step_size=0.125", data)[0])
    assert not same(by_recipe, trained_by("fast-at:eps=0.1,clean=1", data)[0])


def test_adversarial_training_makes_its_images_on_the_network_of_the_moment(data):
    def step(net, batch):
        net.eval()
        adv = pgd(net, batch.x, eps=0.1, steps=3, step_size=0.25 / 3, loss=summed_cross_entropy(batch.y),
                  start=0.1 * (2 * batch.draws.uniform((1, 8, 8)) - 1))  # fmt: skip
        net.train()
        return F.cross_entropy(net(adv), batch.y)

    assert same(trained_by("at:eps=0.1,steps=3", data)[0], by_hand(data, step))


def test_trades_goes_down_its_papers_loss(data):
    def step(net, batch):
        net.eval()
        with torch.no_grad():
            p = net(batch.x).softmax(1)
        x = (batch.x + 1e-3 * batch.draws.normal((1, 8, 8))).clamp(
            (batch.x - 0.1).clamp_min(0), (batch.x + 0.1).clamp_max(1)
        )
        for _ in range(2):
            x.requires_grad_(True)
            (grad,) = torch.autograd.grad((p * (p.log() - net(x).log_softmax(1))).sum(), x)
            x = (x.detach() + 0.125 * grad.sign()).clamp((batch.x - 0.1).clamp_min(0), (batch.x + 0.1).clamp_max(1))
        net.train()
        logits, moved = net(batch.x), net(x)
        p = logits.softmax(1)
        divergence = (p * (p.log() - moved.log_softmax(1))).sum(1).mean()
        return F.cross_entropy(logits, batch.y) + 3 * divergence

    mine = by_hand(data, step).state_dict()
    for key, value in trained_by("trades:eps=0.1,steps=2,beta=3", data)[0].state_dict().items():
        assert torch.allclose(value.double(), mine[key].double(), rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize("hard", [0, 0.25])
def test_distillation_goes_down_its_loss(data, hard):
    teacher = load_model("digits-cnn")[0]

    def step(net, batch):
        with torch.no_grad():
            p = (teacher(batch.x) / 5).softmax(1)
        logits = net(batch.x)
        log_q = (logits / 5).log_softmax(1)
        if not hard:
            return -(p * log_q).sum(1).mean()
        soft = (p * (p.log() - log_q)).sum(1).mean()
        return (1 - hard) * 25 * soft + hard * F.cross_entropy(logits, batch.y)

    mine = by_hand(data, step).state_dict()
    found, _ = trained_by(f"distillation:teacher=digits-cnn,temperature=5,hard={hard}", data)
    for key, value in found.state_dict().items():
        assert torch.allclose(value.double(), mine[key].double(), rtol=1e-3, atol=1e-4), key


def test_a_student_that_is_its_teacher_has_nothing_to_learn(data):
    def teacher() -> nn.Module:
        return load_model("digits-cnn")[0]

    start = teacher().state_dict()
    schedule = dataclasses.replace(SCHEDULE, weight_decay=0.0)
    student, _ = trained_by("distillation:teacher=digits-cnn,temperature=3", data, teacher, schedule)
    for key, value in student.state_dict().items():
        assert torch.allclose(value, start[key], atol=1e-6), key
    other, _ = trained_by("standard", data, teacher, schedule)
    assert any(not torch.allclose(value, start[key], atol=1e-4) for key, value in other.state_dict().items())


def test_the_teacher_is_not_trained(data):
    recipe = trained.recipe("distillation:teacher=digits-cnn")
    kept = []
    Loop(recipe, task(), data[0], SCHEDULE, Watch(data[1], 0.1, 1, 1), SEED, save=kept.append).train()
    teacher = load_model("digits-cnn")[0].state_dict()
    for key, value in teacher.items():
        assert torch.equal(kept[-1].network[f"teacher.{key}"], value)


@pytest.mark.parametrize("clean", [0, 1])
def test_concurrent_training_without_staleness_is_one_step_adversarial_training(data, clean):
    stale, curves = trained_by(f"conadv:eps=0.1,staleness=0,dual_norm=false,clean={clean}", data)
    fast, others = trained_by(f"fast-at:eps=0.1,clean={clean}", data)
    assert same(stale, fast)
    assert curves == others


@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_concurrent_training_uses_the_weights_of_so_many_updates_ago(data, staleness):
    past: list[nn.Module] = []

    def step(net, batch):
        past.append(copy.deepcopy(net))
        adv = one_step(past[max(0, len(past) - 1 - staleness)], batch, 0.1)
        return F.cross_entropy(net(adv), batch.y) + F.cross_entropy(net(batch.x), batch.y)

    found, _ = trained_by(f"conadv:eps=0.1,staleness={staleness},dual_norm=false", data)
    assert same(found, by_hand(data, step))
    assert not same(found, trained_by("conadv:eps=0.1,staleness=0,dual_norm=false", data)[0])


def test_concurrent_training_with_two_sets_of_statistics(data):
    def step(net, batch):
        choose(net, adversarial=True)
        adv = one_step(net, batch, 0.1)
        adversarial = F.cross_entropy(net(adv), batch.y)
        choose(net, adversarial=False)
        return adversarial + F.cross_entropy(net(batch.x), batch.y)

    found, _ = trained_by("conadv:eps=0.1,staleness=0", data)
    by_loop = by_hand(data, step, lambda: dual(network()))
    assert same(found, single(by_loop))
    assert not torch.equal(by_loop[1].clean.running_mean, by_loop[1].other.running_mean)


def test_two_sets_of_statistics_do_not_mix():
    net = dual(network())
    assert isinstance(net[1], DualNorm)
    before = copy.deepcopy(net[1].clean.state_dict())
    choose(net, adversarial=True)
    net.train()(torch.rand(8, 1, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in net[1].clean.state_dict().items())
    assert not torch.equal(before["running_mean"], net[1].other.running_mean)
    choose(net, adversarial=False)
    plain = single(net).eval()
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(plain(x), net.eval()(x))
    assert not any(isinstance(part, DualNorm) for part in plain.modules())
    assert set(plain.state_dict()) == set(network().state_dict())
