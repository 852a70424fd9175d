"""The recipe DVERGE: the order of its work, its layer, its losses, and the ensemble that comes out."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from robustkit_defenses.recipes import dverge as recipe
from robustkit_defenses.recipes.dverge import Dverge, dverge_at
from torch import nn

import robustkit
from robustkit.cli import main
from robustkit.datasets import load_dataset
from robustkit.errors import UsageError
from robustkit.models.sources import load_model
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from robustkit.training.data import batches, held
from robustkit.training.recipes import Schedule, Task, Training
from robustkit.training.run import Request, train

FAST = {"data": "digits", "threads": 1, "check": 50, "check_robust": 1}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return held(load_dataset("digits:split=train"), CPU)


def task(build=ARCHITECTURES["digits-cnn"], load=load_model):
    return Task(10, (1, 8, 8), build, load)


def training(settings, of):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = settings.build(of)
    return Training(network, [torch.optim.SGD(part.parameters(), lr=0.01) for part in settings.parts(network)])


def some_batches(data, epoch=0, count=2):
    found = batches(data, Schedule(batch=32), 0, epoch)
    return [next(found) for _ in range(count)]


def norms_and_images():
    """A network with BatchNorm, for images of 1×8×8."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def test_the_layer_is_drawn_once_an_epoch_and_is_the_same_for_all_members(data, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "distilled", lambda net, x, target, tap, settings: seen.append(tap) or x)
    settings = Dverge(members=3)
    under_way = training(settings, task())
    drawn = []
    for epoch in range(6):
        seen.clear()
        for batch in some_batches(data, epoch):
            settings.step(under_way, batch)
        assert len(seen) == 6
        assert len(set(seen)) == 1
        drawn.append(str(seen[0]))
    assert len(set(drawn)) > 1
    assert set(drawn) <= {"activation 1", "activation 2", "activation 3", "output"}
    assert [under_way.network.layer(u) for u in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)] == [0, 0, 1, 2, 3, 3]


def test_every_member_is_distilled_before_any_is_updated_and_learns_from_all_others(data, monkeypatch):
    log = []
    settings = Dverge(members=3)
    under_way = training(settings, task())
    members = list(under_way.network.networks)

    def distilled(net, x, target, tap, how):
        log.append(("distil", members.index(net)))
        assert how == recipe.Distillation()
        assert not torch.equal(x, target)
        return x + 0.001 * (1 + members.index(net))

    monkeypatch.setattr(recipe, "distilled", distilled)
    update = Training.update
    monkeypatch.setattr(
        Training,
        "update",
        lambda self, loss, part=0: log.append(("update", part, float(loss.detach()))) or update(self, loss, part),
    )
    (batch,) = some_batches(data, count=1)
    with torch.no_grad():
        each = [[float(F.cross_entropy(net(batch.x + 0.001 * (1 + j)), batch.y)) for j in range(3)] for net in members]
    told = settings.step(under_way, batch)
    assert log[:3] == [("distil", 0), ("distil", 1), ("distil", 2)]
    assert [entry[:2] for entry in log[3:]] == [("update", 0), ("update", 1), ("update", 2)]
    for i, (*_, loss) in enumerate(log[3:]):
        assert loss == pytest.approx(sum(each[i][j] for j in range(3) if j != i), rel=1e-5)
    assert float(told["loss"]) == pytest.approx(sum(entry[2] for entry in log[3:]) / 3, rel=1e-5)


def test_plain_epochs_come_first_and_learn_the_images_themselves(data, monkeypatch):
    monkeypatch.setattr(recipe, "distilled", lambda *_: pytest.fail("distilled in a plain epoch"))
    settings = Dverge(members=2, plain_epochs=1)
    under_way = training(settings, task())
    (batch,) = some_batches(data, count=1)
    with torch.no_grad():
        want = [float(F.cross_entropy(net(batch.x), batch.y)) for net in under_way.network.networks]
    assert float(settings.step(under_way, batch)["loss"]) == pytest.approx(sum(want) / 2, rel=1e-6)


def test_batchnorm_sees_the_training_only_unless_faithful(data):
    tracked = {}
    for faithful in (False, True):
        settings = Dverge(members=3, faithful=faithful, layers=("1",), steps=4)
        under_way = training(settings, task(norms_and_images))
        (batch,) = some_batches(data, count=1)
        settings.step(under_way, batch)
        tracked[faithful] = [int(net[1].num_batches_tracked) for net in under_way.network.networks]
    assert tracked == {False: [2, 2, 2], True: [7, 7, 7]}  # two others; and the target, and four steps


def test_with_adversarial_training_a_member_also_learns_its_own_adversarials(data, monkeypatch):
    assert dverge_at() == Dverge(at_eps=8 / 255, at_steps=10, at_step=2 / 255, coefficient=1.0)
    assert (dverge_at().attacked_eps, Dverge().attacked_eps) == (8 / 255, 0.0)
    asked = []

    def pgd(net, x, **how):
        assert float(how["start"].abs().max()) <= 0.1
        asked.append((net, how["eps"], how["steps"], how["step_size"], float(how["start"].sum())))
        return x + 0.01

    monkeypatch.setattr(recipe, "pgd", pgd)
    monkeypatch.setattr(recipe, "distilled", lambda net, x, *_: x)
    settings = Dverge(members=2, at_eps=0.1, coefficient=0.5)
    under_way = training(settings, task())
    (batch,) = some_batches(data, count=1)
    with torch.no_grad():
        each = [
            [float(F.cross_entropy(net(x), batch.y)) for x in (batch.x, batch.x + 0.01)]
            for net in under_way.network.networks
        ]
    loss = float(settings.step(under_way, batch)["loss"])
    assert loss == pytest.approx(sum(0.5 * apart + own for apart, own in each) / 2, rel=1e-5)
    assert [entry[0] for entry in asked] == list(under_way.network.networks)
    assert {entry[1:4] for entry in asked} == {(0.1, 10, 2 / 255)}
    assert asked[0][4] != asked[1][4]  # each from a start of its own


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"members": 1}, "members=1: each learns from the others; it takes two or more"),
        ({"members": 3, "init": ("./a", "./b")}, "init names 2 models for 3 members"),
        ({"at_eps": -0.1}, "must not be negative"),
        ({"coefficient": -1.0}, "coefficient must not be negative"),
        ({"eps": 8.0}, "dverge: eps is a share"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        Dverge(**settings)


def test_what_the_task_cannot_give_is_refused():
    with pytest.raises(UsageError, match="no layer called 'conv9'"):
        Dverge(layers=("conv9",)).build(task())
    with pytest.raises(UsageError, match="no activation such as a ReLU"):
        Dverge().build(task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    schedule = Schedule(epochs=1, batch=256)
    cards = [
        train(Request("dverge:members=2,steps=2", "digits-cnn", schedule=schedule, seed=seed, **FAST), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    shas = [card["sha256"] for card in cards]
    assert shas[0] == shas[1] != shas[2]


def test_from_plain_members_to_a_folder_that_evaluates_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schedule = Schedule(epochs=3, batch=128)
    for seed in (0, 1):
        train(Request("standard", "digits-cnn", schedule=schedule, seed=seed, **FAST), tmp_path / f"plain-{seed}")
    init = "dverge:members=2,steps=2,init=(./plain-0)+(./plain-1)"
    begun = recipe.Dverge(members=2, init=("./plain-0", "./plain-1")).build(task())
    for i, net in enumerate(begun.networks):
        plain = load_model(f"./plain-{i}")[0].state_dict()
        assert all(torch.equal(value, plain[key]) for key, value in net.state_dict().items())
        assert all(parameter.requires_grad for parameter in net.parameters())
    train(Request(init, "digits-cnn", schedule=Schedule(epochs=1, batch=256, rate=1e-3), **FAST), tmp_path / "dverge")
    shutil.rmtree(tmp_path / "plain-0")  # the trained folder stands alone
    module, card = load_model("./dverge")
    assert not module.training
    assert card.classes == 10
    x, y = load_dataset("digits").batch(range(8))
    logits, members = module.forward_with_members(x)
    assert members.shape == (2, 8, 10)
    assert torch.allclose(logits, members.softmax(-1).mean(0).log(), atol=1e-5)
    record = robustkit.evaluate("./dverge", (x, y), "mora:steps=2,targets=0", eps=0.05)
    assert record.robust_accuracy is not None
    done = CliRunner().invoke(
        main, ["eval", "--model", "./dverge", "--attack", "fgsm", "--eps", "0.1", "-n", "8", "--quiet", "--json", "-"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["summary"]["robust_accuracy"]["n"] == 8
    with pytest.raises(UsageError, match="plain-0"):
        recipe.Dverge(members=2, init=("./plain-0", "./plain-1")).build(task())


def test_mora_sees_the_members(tmp_path):
    from robustkit.models.examination import examine

    train(
        Request("dverge:members=3,steps=1", "digits-cnn", schedule=Schedule(epochs=1, batch=512), **FAST),
        tmp_path / "d",
    )
    x, y = load_dataset("digits").batch(range(4))
    subject = examine(
        load_model(str(tmp_path / "d"))[0],
        x,
        y,
        classes=10,
        outputs="logits",
        tile=None,
        seed=0,
        device=CPU,
        input_shape=(),
    )
    assert subject.facts.members == 3
