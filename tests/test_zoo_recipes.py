"""The bundled ensembles (DVERGE, a network's own probes, fusions): their cards, and what an attack sees of them."""

import json
from dataclasses import replace

import pytest
import torch

from robustkit.datasets import load_dataset
from robustkit.models.sources import load_model
from robustkit.models.sources.zoo import FOLDER
from robustkit.training.loop import accuracy
from robustkit.training.recipes import Schedule
from tools.zoo.requests import REQUESTS, make_trained

NAMES = [
    "digits-dverge",
    "scenes-dverge",
    "digits-self-ensemble",
    "scenes-self-ensemble",
    "digits-fusion",
    "scenes-fusion",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_accuracy_of_its_card_and_is_what_was_asked_for(name):
    module, card = load_model(name)
    written = json.loads((FOLDER / f"{name}.json").read_text())
    assert not module.training
    assert (FOLDER / f"{name}.safetensors").stat().st_size == written["bytes"] <= 500_000
    assert written["licence"] == "Apache-2.0"
    assert written["command"] == f"python -m tools.zoo.make {name}"
    asked, settings = REQUESTS[name], written["recipe"]
    assert written["built_by"] == settings["recipe"]
    for key in ("epochs", "batch", "rate"):
        assert settings["schedule"][key] == getattr(asked.schedule, key)
    assert (settings["seed"], settings["threads"], settings["device"]) == (0, 1, "cpu")
    assert card.dataset == asked.data.partition(":")[0]
    n = 300
    x, y = load_dataset(asked.test or asked.data).batch(range(n))
    torch.manual_seed(0)
    # A self-ensemble answers by its noise; its accuracy on one draw is within 0.06 of that on another.
    assert accuracy(module, x, y) == pytest.approx(written["clean_accuracy"], abs=0.06)


@pytest.mark.parametrize(("name", "members", "randomised"), [
    ("digits-dverge", 3, False), ("scenes-dverge", 3, False), ("digits-self-ensemble", 4, True),
    ("scenes-self-ensemble", 6, True),
])  # fmt: skip
def test_an_attack_sees_the_members(name, members, randomised):
    module, card = load_model(name)
    assert len(module.members()) == members
    assert bool(module.randomised) is randomised
    logits, each = module.forward_with_members(torch.rand(2, *card.input_shape))
    assert each.shape == (members, 2, 10)
    if not randomised:
        assert torch.allclose(logits, each.softmax(-1).mean(0).log(), atol=1e-5)
    else:
        assert "mean-logits" in module.surrogates()


@pytest.mark.parametrize(("name", "foreground", "background"), [
    ("digits-fusion", "digits-cnn", "digits-teacher"), ("scenes-fusion", "scenes-foreground", "scenes-background"),
])  # fmt: skip
def test_a_fusion_holds_the_two_networks_of_its_recipe_as_they_are(name, foreground, background):
    fused, _ = load_model(name)
    for branch, spec in ((fused.foreground, foreground), (fused.background, background)):
        alone = load_model(spec)[0].state_dict()
        assert branch.state_dict()
        assert all(torch.equal(alone[key], weight) for key, weight in branch.state_dict().items())
    assert len(fused.members()) == 2
    assert list(fused.surrogates()) == ["foreground", "background", "mean"]


def test_making_one_twice_gives_the_same_bytes(tmp_path):
    request = replace(REQUESTS["digits-dverge"], recipe="dverge:steps=1,members=2", schedule=Schedule(1, 512))
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        make_trained("digits-dverge", folder, request, lambda event: None, folder / "work")
    for file in ("digits-dverge.json", "digits-dverge.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    written = json.loads((tmp_path / "a" / "digits-dverge.json").read_text())
    assert written["command"].endswith("--epochs 1")
