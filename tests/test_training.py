"""The training loop: what it promises of any recipe, and the folder it leaves."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from robustkit_defenses.layers import outputs_of
from torch import nn

from robustkit import plugins
from robustkit.cli import main
from robustkit.datasets import Pair, load_dataset
from robustkit.errors import UsageError
from robustkit.events import EpochDone, TrainingStarted
from robustkit.models.sources import load_model, trained, untrained
from robustkit.training import run
from robustkit.training.data import augmented, batches, held
from robustkit.training.folder import weights_bytes
from robustkit.training.loop import Checkpoint, Loop, Watch, rate
from robustkit.training.recipes import OneNetwork, Schedule, Task, Training
from robustkit.training.run import Request

CPU = torch.device("cpu")
RECIPES = {
    "standard": "standard",
    "at": "at:eps=0.1,steps=2",
    "fast-at": "fast-at:eps=0.1",
    "trades": "trades:eps=0.1,steps=2",
    "distillation": "distillation:teacher=digits-cnn",
    "conadv": "conadv:eps=0.1,staleness=2",
}
ARGUMENTS = ["train", "standard", "--arch", "digits-cnn", "--data", "digits", "--epochs", "2", "--threads", "1"]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10)
    )


def some(split: str, n: int) -> Pair:
    return Pair(*load_dataset(f"digits:split={split}").batch(range(n)), "some digits", 10)


@pytest.fixture(scope="module")
def data():
    return held(some("train", 96), CPU), held(some("test", 40), CPU)


def loop(data, recipe: str, **more) -> Loop:
    schedule = Schedule(epochs=2, batch=40, augment="crop-flip", rate=0.01)
    task = Task(10, (1, 8, 8), network, load_model)
    return Loop(trained.recipe(recipe), task, data[0], schedule, Watch(data[1], 0.1), seed=3, **more)


def test_every_recipe_in_the_table_is_tried_here():
    assert set(RECIPES) <= set(plugins.table("recipes"))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_training_stopped_after_any_batch_goes_on_to_the_same_bytes(data, recipe):
    whole, curves = loop(data, recipe).train()
    again, _ = loop(data, recipe).train()
    assert weights_bytes(again) == weights_bytes(whole)
    kept: list[Checkpoint] = []

    def keep(now: Checkpoint) -> None:  # as a file does: nothing of it changes later
        kept.append(torch.load(_bytes(dataclasses.asdict(now)), weights_only=True))

    loop(data, recipe, save=keep, save_every=-1.0).train()
    assert [(now["epoch"], now["batch"]) for now in kept] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    for now in kept:
        torch.rand(3)
        network, seen = loop(data, recipe).train(Checkpoint(**now))
        assert weights_bytes(network) == weights_bytes(whole)
        assert seen == curves


def _bytes(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_leaves_the_global_generator_alone_and_its_network_in_eval_mode(data, recipe):
    before = torch.random.get_rng_state()
    network, _ = loop(data, recipe).train()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(part.training for part in network.modules())


def test_another_seed_gives_other_weights(data):
    one, _ = loop(data, "standard").train()
    two, _ = dataclasses.replace(loop(data, "standard"), seed=4).train()
    assert weights_bytes(one) != weights_bytes(two)


def test_events_and_curves_tell_the_same(data):
    seen = []
    _, curves = loop(data, "trades:eps=0.1,steps=1", on_event=seen.append).train()
    done = [event for event in seen if isinstance(event, EpochDone)]
    assert [event.epoch for event in done] == [1, 2] == [row["epoch"] for row in curves]
    assert [event.losses["loss"] for event in done] == [row["loss"] for row in curves]
    for row in curves:
        assert row["loss"] == pytest.approx(row["natural"] + 6 * row["robust_loss"], rel=1e-5)
        assert 0 <= row["robust"] <= row["clean"] <= 1 or row["clean"] < 0.3


def test_a_training_that_diverges_says_so(data):
    wild = dataclasses.replace(loop(data, "standard"), schedule=Schedule(epochs=2, optimiser="sgd", rate=1e30))
    with pytest.raises(UsageError, match="training has diverged; take a lower rate"):
        wild.train()


@pytest.mark.parametrize("recipe", [*RECIPES.values(), "dverge:members=2,steps=1"], ids=[*RECIPES, "dverge"])
def test_bf16_trains_and_differs(data, recipe):
    one, _ = loop(data, recipe).train()
    two, _ = loop(data, recipe, bf16=True).train()
    assert weights_bytes(one) != weights_bytes(two)
    assert all(value.dtype != torch.bfloat16 for value in two.state_dict().values())


def test_under_autocast_a_pass_after_an_update_is_of_the_new_weights():
    layer = nn.Linear(4, 3)
    training = Training(layer, [torch.optim.SGD(layer.parameters(), lr=1.0)])
    x = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        training.update(layer(x).square().sum())
        after = layer(x)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(after, layer(x))


def test_rates_fall_as_the_shape_says():
    steps = Schedule(shape="steps", rate=1.0, milestones=(0.5, 0.75))
    assert [rate(steps, share) for share in (0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = Schedule(rate=1.0)
    assert [rate(cosine, share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    triangle = Schedule(shape="triangle", rate=1.0)
    assert [rate(triangle, share) for share in (0.2, 0.4, 0.7)] == pytest.approx([0.5, 1, 0.5])
    assert rate(triangle, 0) > 0
    assert rate(Schedule(shape="constant", rate=1.0), 0.9) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"momentum": 1.0}, {"milestones": (1.0,)}],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_images_are_held_exactly_as_they_come():
    floats = Pair(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]), classes=3)
    levels = Pair(torch.randint(0, 256, (5, 3, 4, 4)).to(torch.uint8), torch.arange(5), classes=5)
    for pair, dtype in ((floats, torch.float32), (levels, torch.uint8)):
        kept = held(pair, CPU)
        assert kept.x.dtype == dtype
        rows = torch.tensor([2, 0])
        assert torch.equal(kept.images(rows), pair.batch([2, 0])[0])
        assert torch.equal(kept.y, pair.y)
    other = Pair(levels.x, levels.y.flip(0), classes=5)
    assert held(levels, CPU).sha256 == held(levels, CPU).sha256 != held(other, CPU).sha256


def test_an_epoch_has_every_image_once_and_its_other_orders_are_others(data):
    schedule = Schedule(batch=40)
    seen = list(batches(data[0], schedule, 0, 0))
    assert [len(batch.y) for batch in seen] == [40, 40, 16]
    rows = torch.cat([batch.rows for batch in seen])
    assert sorted(rows.tolist()) == list(range(96))
    assert torch.equal(seen[1].x, data[0].images(seen[1].rows))
    later = next(batches(data[0], schedule, 0, 0, first=1))
    assert torch.equal(later.rows, seen[1].rows)
    assert torch.equal(later.draws.uniform((3,)), seen[1].draws.uniform((3,)))
    partners = torch.cat([batch.other(1).rows for batch in seen])
    assert sorted(partners.tolist()) == list(range(96))
    orders = [rows, partners, torch.cat([batch.other(2).rows for batch in seen])]
    orders += [torch.cat([batch.rows for batch in batches(data[0], schedule, *key)]) for key in ((0, 1), (1, 0))]
    assert len({tuple(order.tolist()) for order in orders}) == 5
    shared = {float(batch.epoch_draws.uniform((1,))) for batch in seen}
    assert len(shared) == 1


def test_augmented_images_are_shifted_and_mirrored_ones(data):
    x = torch.rand(64, 2, 16, 16) + 1  # no zeros of its own
    (batch,) = batches(held(Pair(torch.rand(64, 1, 4, 4), torch.arange(64)), CPU), Schedule(batch=64), 0, 0)
    moved = augmented(x, "crop-flip", batch.draws)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    kinds = set()
    for image, out in zip(padded, moved, strict=True):
        found = [
            (down, right, mirrored)
            for down in range(5)
            for right in range(5)
            for mirrored in (False, True)
            if torch.equal(out, _window(image, down, right, mirrored=mirrored))
        ]
        assert len(found) == 1
        kinds |= set(found)
    assert {kind[0] for kind in kinds} == {kind[1] for kind in kinds} == set(range(5))
    assert {kind[2] for kind in kinds} == {False, True}
    assert torch.equal(augmented(x, "none", batch.draws), x)


def _window(image, down, right, *, mirrored):
    window = image[:, down : down + 16, right : right + 16]
    return window.flip(2) if mirrored else window


def test_the_resnets_layers_have_names():
    net = untrained.architecture("cifar-resnet8:classes=7,shortcut=B").eval()
    x = torch.rand(2, 3, 32, 32)
    found, logits = outputs_of(net, ["bn1", "blocks.1.bn1", "blocks.1.sum", "fc"], x)
    assert torch.equal(found["fc"], logits)
    assert found["bn1"].shape == (2, 16, 32, 32)
    assert found["blocks.1.sum"].shape == (2, 32, 16, 16)
    assert found["blocks.1.sum"].min() < 0  # before the ReLU


def test_the_resnets_are_he_et_als():
    for depth, n in ((8, 1), (20, 3)):
        net = untrained.architecture(f"cifar-resnet{depth}")
        convolutions = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
        assert len(convolutions) + 1 == depth == 6 * n + 2
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == 269_722  # the paper says 0.27 million


def test_a_trained_folder_is_a_model(tmp_path):
    result = CliRunner().invoke(main, [*ARGUMENTS, "--out", str(tmp_path / "net")])
    assert result.exit_code == 0, result.output
    module, card = load_model(str(tmp_path / "net"))
    assert not module.training
    assert (card.dataset, card.classes, card.input_shape, card.source) == ("digits", 10, (1, 8, 8), "file")
    assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert {file.name for file in (tmp_path / "net").iterdir()} == {
        "card.json", "recipe.json", "curves.csv", "model.safetensors",
    }  # fmt: skip
    ran = CliRunner().invoke(
        main, ["eval", "--model", str(tmp_path / "net"), "--attack", "fgsm", "--eps", "0.1", "-n", "20",
               "--out", str(tmp_path / "run"), "--quiet"],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    again = CliRunner().invoke(main, [*ARGUMENTS, "--out", str(tmp_path / "net"), "--json"])
    card = json.loads((tmp_path / "net" / "card.json").read_text())
    assert card.items() <= json.loads(again.stdout).items()


def test_the_command_in_the_card_trains_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request("at:steps=1,eps=1/10", "digits-cnn", "digits", schedule=Schedule(epochs=1, shape="steps"),
                      seed=5, check=50, threads=1)  # fmt: skip
    card = run.train(request, Path("one"))
    words = card["command"].removesuffix("one").split()[1:]
    assert "--seed 5" in card["command"]
    assert CliRunner().invoke(main, [*words, "two"]).exit_code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


def test_a_folder_that_was_changed_or_is_not_finished_is_refused(tmp_path):
    request = Request("standard", "digits-cnn", "digits", schedule=Schedule(epochs=1))

    def stop(event) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(request, tmp_path / "net", on_event=stop)
    with pytest.raises(UsageError, match="not finished; run its command again"):
        load_model(str(tmp_path / "net"))
    run.train(request, tmp_path / "net")
    with pytest.raises(UsageError, match="takes no options, not arch"):
        load_model(f"{tmp_path}/net:arch=digits-cnn")
    with pytest.raises(UsageError, match="do not fit"):
        load_model(f"{tmp_path}/net/model.safetensors:arch=scenes-cnn")
    (tmp_path / "net" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match="is not the file of its card"):
        load_model(str(tmp_path / "net"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    request = Request("standard", "digits-cnn", "digits", schedule=Schedule(epochs=1))
    run.train(request, tmp_path / "net")
    before = (tmp_path / "net" / "model.safetensors").read_bytes()
    other = dataclasses.replace(request, seed=1)
    with pytest.raises(UsageError, match=r"another training .seed differs: 0 there, 1 asked"):
        run.train(other, tmp_path / "net")
    with pytest.raises(UsageError, match=r"another training .architecture differs: digits-cnn there"):
        run.train(dataclasses.replace(request, arch="python/tests.test_training.network"), tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == before
    run.train(other, tmp_path / "net", fresh=True)
    assert (tmp_path / "net" / "model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="holds no training of ours"):
            run.train(request, tmp_path / "mine", fresh=fresh)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is a file; --out wants a folder"):
        run.train(request, tmp_path / "mine" / "thesis.txt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "standart"}, "no recipe called 'standart'; did you mean standard"),
        ({"recipe": "timm/resnet18"}, "is no recipe"),
        ({"recipe": "standard:temperature=0"}, "temperature must be positive"),
        ({"recipe": "at:eps=8"}, "eps must be above 0 and at most 1"),
        ({"recipe": "at:steps=0"}, "steps must be at least 1"),
        ({"recipe": "at:epsilon=0.1"}, "no option called 'epsilon'; did you mean eps"),
        ({"recipe": "trades:beta=0"}, "beta must be positive"),
        ({"recipe": "fast-at:clean=-1"}, "clean is the weight"),
        ({"recipe": "conadv:staleness=-1"}, "staleness is a number of updates"),
        ({"recipe": "conadv:clean=0"}, "above 0 with dual_norm"),
        ({"recipe": "distillation"}, "needs a teacher"),
        ({"recipe": "distillation:teacher=digits-cnn,temperature=-1"}, "temperature must be positive"),
        ({"recipe": "distillation:teacher=python/tests.test_training.three_classes"}, "has 3 classes, the data 10"),
        ({"recipe": "distillation:teacher=python/tests.test_training.colour"}, "does not take the data's images"),
        ({"arch": "digits-cn"}, "no architecture called 'digits-cn'; did you mean digits-cnn"),
        ({"arch": "scenes-cnn"}, "does not take the data's images of 1×8×8"),
        ({"arch": "digits-cnn:classes=4"}, r"answers \(4,\) for an image; the data has 10 classes"),
        ({"data": "digitz"}, "no dataset called 'digitz'"),
        ({"data": "python/tests.test_training.images"}, "says nothing of test images"),
        ({"test": "digits:split=train"}, "are the training images"),
        ({"test": "scenes:n=5"}, r"images of \(3, 32, 32\)"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not there"),
        ({"arch": "pooled-cnn", "schedule": Schedule(batch=131)}, "leave a batch of one, on which pooled-cnn"),
        ({"arch": "pooled-cnn", "schedule": Schedule(batch=1)}, "in batches of 1 leave a batch of one"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, wrong, message):
    asked = {"recipe": "standard", "arch": "digits-cnn", "data": "digits", **wrong}
    with pytest.raises(UsageError, match=message):
        run.train(Request(**asked), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def three_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def colour() -> nn.Module:
    return nn.Conv2d(3, 10, 8)


def images() -> Pair:
    return some("train", 30)


def more_images() -> Pair:
    return some("test", 30)


class Pairs(nn.Module):
    """A result that is more than the architecture."""

    def __init__(self, networks) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return sum(network(x) for network in self.networks)


@dataclasses.dataclass(frozen=True)
class Two(OneNetwork):
    """Two networks, each with its own optimiser; the second learns from another order of the images."""

    rate: float = 1.0
    plain = False
    attacked_eps = 0.0

    def build(self, task):
        return Pairs([task.architecture() for _ in range(2)])

    def parts(self, network):
        return list(network.networks)

    def step(self, training, batch):
        for i, other in enumerate((batch, batch.other(1))):
            loss = nn.functional.cross_entropy(training.network.networks[i](other.x), other.y)
            training.update(loss, part=i)
        return {"loss": loss}


def test_a_recipe_of_the_users_may_train_several_networks_and_answer_more_than_the_architecture(tmp_path):
    request = Request("python/tests.test_training.Two:rate=2", "python/tests.test_training.network",
                      "python/tests.test_training.images", "python/tests.test_training.more_images",
                      schedule=Schedule(epochs=1))  # fmt: skip
    card = run.train(request, tmp_path / "net")
    assert card["built_by"] == "python/tests.test_training.Two:rate=2"
    module, _ = load_model(str(tmp_path / "net"), trust=True)
    assert len(module.networks) == 2
    one, two = (network.state_dict() for network in module.networks)
    assert not torch.equal(one["0.weight"], two["0.weight"])
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("key", "spec"), [
    ("architecture", "python/tests.test_training.leave_a_mark"),
    ("built_by", "fusion:foreground=digits-cnn,background=python/tests.test_training.leave_a_mark"),
    ("built_by", "distillation:teacher=(defended/(python/tests.test_training.leave_a_mark):by=jpeg)"),
])  # fmt: skip
def test_a_card_runs_no_code_that_is_not_trusted(tmp_path, key, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = b"never read"
    Path("model.safetensors").write_bytes(content)
    card = {"name": "net", "architecture": "digits-cnn", "classes": 10, "input_shape": [1, 8, 8],
            "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip
    Path("card.json").write_text(json.dumps({**card, key: spec}))
    with pytest.raises(UsageError, match=r"names code to run, python/tests\.test_training\.leave_a_mark.*add --trust"):
        load_model("./")
    assert not Path("mark").exists()
    if key == "architecture":
        with pytest.raises(UsageError, match=r"is no \.safetensors file"):
            load_model("./", trust=True)
        assert Path("mark").exists()


def leave_a_mark():
    Path("mark").touch()
    return network()


def test_the_recipe_in_the_documentation_trains(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    (tmp_path / "my_recipes.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    schedule = Schedule(epochs=1)
    run.train(Request("python/my_recipes.Noisy:sigma=0.2", "digits-cnn", "digits", schedule=schedule), Path("noisy"))
    assert load_model("./noisy")[1].classes == 10


def test_weights_of_libraries_start_from_the_seed():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    one, two = (untrained.fresh("timm/resnet10t:classes=4").state_dict() for _ in range(2))
    torch.manual_seed(0)
    again = untrained.fresh("timm/resnet10t:classes=4").state_dict()
    key = "network.fc.weight"
    assert torch.equal(one[key], again[key])
    assert not torch.equal(one[key], two[key])
    assert untrained.fitted("timm/resnet10t", 4, (1, 32, 32)) == "timm/resnet10t:classes=4,in_chans=1"


def test_the_recipes_can_be_listed_and_shown():
    listed = CliRunner().invoke(main, ["list", "recipes"])
    assert listed.exit_code == 0
    shown = CliRunner().invoke(main, ["show", "recipe", "trades"])
    assert "arXiv:1901.08573" in shown.output
    assert "beta" in shown.output
    for name in RECIPES:
        assert name in listed.output
        assert CliRunner().invoke(main, ["show", "recipe", name]).exit_code == 0
    helped = CliRunner().invoke(main, ["train", "--help"])
    assert "robustkit train at:eps=0.2,steps=10 --arch digits-cnn --data digits" in helped.output


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from robustkit.training.recipes import Schedule
from robustkit.training import folder, run
from robustkit.events import EpochDone

out, recipe, moment = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
whole, saves, texts = torch.save, [], folder.write_text

def save(state, part):
    saves.append(part)
    whole(state, part)
    if moment == "half a checkpoint" and len(saves) == 2:
        part.write_bytes(part.read_bytes()[:1000])
        die()

def write_text(path, text):
    if moment == "no card yet" and path.name == "card.json":
        die()
    texts(path, text)

def told(event):
    if moment == "before a checkpoint" and isinstance(event, EpochDone) and event.epoch == 2:
        die()

torch.save, folder.write_text = save, write_text
request = run.Request(recipe, "digits-cnn", "digits", schedule=Schedule(epochs=6), threads=1, device="cpu")
run.train(request, Path(out), on_event=told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["at:eps=0.1,steps=2", "conadv:eps=0.1"])
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path, recipe):
    def child(name: str, moment: str) -> int:
        words = [sys.executable, "-c", CHILD, str(tmp_path / name), recipe, moment]
        return subprocess.run(words, check=False).returncode

    assert child("whole", "never") == 0
    for moment in ("before a checkpoint", "half a checkpoint", "no card yet"):
        assert child("killed", moment) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "card.json").exists()
    assert child("killed", "never") == 0
    for file in ("model.safetensors", "curves.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"card.json", "recipe.json", "curves.csv", "model.safetensors"}


def test_started_says_what_was_done_before(tmp_path):
    request, seen = Request("standard", "digits-cnn", "digits", schedule=Schedule(epochs=2)), []

    def stop(event) -> None:
        seen.append(event)
        if isinstance(event, EpochDone) and len([e for e in seen if isinstance(e, EpochDone)]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(request, tmp_path / "net", on_event=stop)
    run.train(request, tmp_path / "net", on_event=seen.append)
    assert [event.done for event in seen if isinstance(event, TrainingStarted)] == [0, 1]
    assert [event.epoch for event in seen if isinstance(event, EpochDone)] == [1, 2, 2]
