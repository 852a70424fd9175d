import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from robustkit.datasets import load_dataset
from robustkit.errors import UsageError
from robustkit.models.sources import load_model, trained
from robustkit.models.sources.zoo import FOLDER, Zoo
from robustkit.training.loop import accuracy
from tools.zoo.first import Plan, pgd, train
from tools.zoo.make import PLANS, main, make
from tools.zoo.requests import MEASURED, REQUESTS

NAMES = ["digits-cnn", "digits-cnn-at"]
SCENES = ["scenes-background", "scenes-foreground"]


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return data.batch(range(len(data)))


def robust(module, digits, eps):
    x, y = digits
    return accuracy(module, pgd(module, x, y, eps, 40, torch.Generator().manual_seed(0)), y)


def test_the_zoo_lists_its_networks():
    assert sorted(PLANS) == NAMES + SCENES
    assert set(PLANS) <= set(Zoo().names()) <= {*PLANS, *REQUESTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_network_has_the_accuracy_of_its_card(name, digits):
    module, card = load_model(name)
    written = json.loads((FOLDER / f"{name}.json").read_text())
    assert not module.training
    assert (card.dataset, card.classes, card.input_shape, card.source) == ("digits", 10, (1, 8, 8), "zoo")
    assert card.sha256 == written["sha256"]
    assert accuracy(module, *digits) == pytest.approx(written["clean_accuracy"], abs=0.003)
    assert written["clean_accuracy"] >= 0.98
    assert (FOLDER / f"{name}.safetensors").stat().st_size == written["bytes"] <= 500_000
    assert written["recipe"]["epochs"] == PLANS[name].epochs


@pytest.mark.parametrize("name", SCENES)
def test_a_scenes_network_has_the_accuracy_of_its_card_and_knows_its_own_part_of_an_image(name):
    module, card = load_model(name)
    written = json.loads((FOLDER / f"{name}.json").read_text())
    assert (card.classes, card.input_shape, card.source) == (10, (3, 32, 32), "zoo")
    x, y = load_dataset(card.dataset).batch(range(200))
    assert accuracy(module, x, y) == pytest.approx(written["clean_accuracy"], abs=0.02)
    assert (FOLDER / f"{name}.safetensors").stat().st_size == written["bytes"] <= 250_000
    part, other = ("shape", "context") if name == "scenes-foreground" else ("context", "shape")
    x, y = load_dataset(f"scenes:context=0.1,label={part}").batch(range(300))
    assert accuracy(module, x, y) > 0.95
    assert accuracy(module, *load_dataset(f"scenes:context=0.1,label={other}").batch(range(300))) < 0.25


TRAINED = [name for name in Zoo().names() if name in REQUESTS]
MOST = {"cifar10-resnet8": 1_000_000, "cifar10-resnet8-at": 1_000_000}


@pytest.mark.parametrize("name", TRAINED)
def test_a_network_that_a_recipe_trained_is_what_its_card_says(name):
    module, card = load_model(name)
    written = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    request = REQUESTS[name]
    assert written["recipe"]["schedule"]["epochs"] == request.schedule.epochs
    assert written["recipe"]["recipe"] == trained.recipe_text(request.recipe)
    assert (FOLDER / f"{name}.safetensors").stat().st_size == written["bytes"] <= MOST.get(name, 500_000)
    assert module(torch.zeros(2, *card.input_shape)).shape == (2, card.classes) == (2, 10)
    if name in MEASURED:
        robust = written["robust"]
        assert (robust["eps"], robust["n"], robust["tile"]) == MEASURED[name]
        assert robust["low"] <= robust["value"] <= robust["high"]
    if card.dataset != "cifar10":
        test = load_dataset(written["recipe"]["test"])
        n = min(written["clean_n"], 300)
        x, y = test.batch(range(n))
        exact = 0 if n == written["clean_n"] else 0.08
        assert accuracy(module, x, y) == pytest.approx(written["clean_accuracy"], abs=exact + 0.003)


def test_the_adversarially_trained_network_is_robust_where_the_standard_one_is_not(digits):
    eps = PLANS["digits-cnn-at"].eps
    assert 0.6 < robust(load_model("digits-cnn-at")[0], digits, eps) < 0.8
    assert robust(load_model("digits-cnn")[0], digits, eps) < 0.05


def test_an_unknown_name_or_an_option_is_refused():
    with pytest.raises(UsageError, match="no zoo network called 'digits-cn'; did you mean digits-cnn"):
        load_model("digits-cn")
    with pytest.raises(UsageError, match="digits-cnn takes no options, not width"):
        load_model("zoo/digits-cnn:width=3")


def test_weights_that_are_not_the_cards_are_refused(tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(FOLDER / f"digits-cnn{suffix}", tmp_path)
    Zoo(tmp_path).load("digits-cnn", {})
    file = tmp_path / "digits-cnn.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"digits-cnn\.safetensors is not the file of its card"):
        Zoo(tmp_path).load("digits-cnn", {})
    file.unlink()
    with pytest.raises(UsageError, match="is not the file of its card"):
        Zoo(tmp_path).load("digits-cnn", {})


def test_training_twice_gives_the_same_bytes_whatever_the_global_generator(tmp_path):
    seen = []
    for folder, seed in ((tmp_path / "a", 1), (tmp_path / "b", 2)):
        folder.mkdir()
        torch.manual_seed(seed)
        make("digits-cnn-at", folder, Plan(epochs=1, steps=2, eps=0.1), seen.append)
    for suffix in (".json", ".safetensors"):
        file = f"digits-cnn-at{suffix}"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert [event.epoch for event in seen] == [1, 1]
    assert seen[0] == seen[1]
    assert json.loads((tmp_path / "a" / "digits-cnn-at.json").read_text())["command"].endswith("--epochs 1")


def test_training_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    train(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), load_dataset("digits"),
          Plan(epochs=1, eps=0.1, steps=1), lambda event: None)  # fmt: skip
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_command_trains_and_writes(tmp_path):
    result = CliRunner().invoke(main, ["digits-cnn", "--epochs", "1", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1/1 loss ")
    module, _ = Zoo(tmp_path).load("digits-cnn", {})
    assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_training_images_stay_in_the_ball_and_the_box(eps, digits):
    x, y = digits
    adv = pgd(load_model("digits-cnn")[0], x, y, eps, 5, torch.Generator().manual_seed(0))
    assert (adv - x).abs().max() <= eps + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1
