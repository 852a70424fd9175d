"""transformers' image classifiers, from folders that the tests make."""

import json
import shutil
import sys

import pytest
import torch

from robustkit.errors import UsageError
from robustkit.models.sources import load_model
from tests.toys import seeded

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 32, "patch_size": 8}  # fmt: skip


def vit(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, num_labels=classes)).eval()


@pytest.fixture
def save(tmp_path):
    """Save a network and an image processor in a folder, without transformers' progress bars."""
    from robustkit.models.sources.hf import quiet

    def to(network=None, processor=None, folder="model"):
        at = tmp_path / folder
        with quiet():
            (network or vit()).save_pretrained(at)
            if processor is not None:
                processor.save_pretrained(at)
        return at

    return to


PROCESSORS = {
    "half": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "imagenet": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406],
                                       "image_std": [0.229, 0.224, 0.225]}),
    "no normalisation": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    "levels 0 to 255": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_rescale": False}),
    "crop": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "BGR": ("MobileViTImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "padded": ("MobileViTImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": {"height": 32, "width": 32}}),
    "normalised twice": ("EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_prepared_as_the_image_processor_does(save, kind):
    name, settings = PROCESSORS[kind]
    processor = getattr(transformers, name)(**settings)
    folder = save(vit(), processor)
    module, card = load_model(f"hf/{folder}")
    levels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    processor.do_resize = processor.do_center_crop = False  # the size is the user's to decide, by resize=
    seen = processor(images=list(levels), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(module(levels.float() / 255), vit()(pixel_values=seen).logits, rtol=1e-3, atol=2e-4)
    assert (card.source, card.classes, card.input_shape) == ("hf", 5, (3, 32, 32))
    assert len(card.mean) == len(card.std) == 3
    assert len(card.sha256) == 64
    assert not module.training


def test_a_relative_folder_and_an_image_processor_that_is_not_there(save, monkeypatch, tmp_path):
    save()
    monkeypatch.chdir(tmp_path)
    module, card = load_model("hf/./model")
    assert card.mean == ()
    assert "go in as they are" in card.notes
    x = torch.rand(2, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        assert torch.equal(module(x), vit()(pixel_values=x).logits)
    assert load_model("hf/model:mean=half")[1].mean == (0.5,)


def test_a_model_in_half_precision_is_loaded_in_full(save):
    folder = save(vit().half())
    assert {p.dtype for p in load_model(f"hf/{folder}")[0].parameters()} == {torch.float32}


def test_images_of_another_size_are_refused_and_resize_is_offered(save):
    import robustkit

    folder = save(vit(), transformers.ViTImageProcessor(size={"height": 32, "width": 32}))
    x, y = torch.rand(4, 3, 40, 40, generator=seeded(1)), torch.tensor([0, 1, 2, 3])
    with pytest.raises(UsageError, match=r"made for 3×32×32 \(its card\): resize=32 in its spec"):
        robustkit.evaluate(f"hf/{folder}", (x, y), "pgd:steps=1", eps=0.1)
    record = robustkit.evaluate(f"hf/{folder}:resize=32", (x, y), "pgd:steps=1", eps=0.1)
    assert record.n == 4


def test_a_model_without_a_trained_classifier_is_refused(save):
    folder = save(transformers.ViTModel(transformers.ViTConfig(**TINY)))
    with pytest.raises(UsageError, match=r"no trained weights for classifier\.bias, classifier\.weight, .*chance"):
        load_model(f"hf/{folder}")
    config = json.loads((save(vit(), folder="other") / "config.json").read_text())
    labels = {str(i): f"LABEL_{i}" for i in range(7)}
    (folder.parent / "other" / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    with pytest.raises(UsageError, match=r"no trained weights for .*classifier"):
        load_model(f"hf/{folder.parent / 'other'}")


def test_pickled_weights_are_loaded_only_if_trusted(save):
    folder = save()
    (folder / "model.safetensors").unlink()
    torch.save(vit().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"model\.safetensors.*pickles, which can run code; .*add --trust"):
        load_model(f"hf/{folder}")
    x = torch.rand(2, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        assert torch.equal(load_model(f"hf/{folder}", trust=True)[0](x), vit()(pixel_values=x).logits)


def test_code_of_a_repository_is_run_only_if_trusted(save, tmp_path):
    folder = save()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config",
                                                    "AutoModelForImageClassification": "theirs.Net"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w').close()\n")
    with pytest.raises(UsageError, match=r"needs code of its repository's; .*add --trust"):
        load_model(f"hf/{folder}")
    assert not (tmp_path / "hacked").exists()


def test_a_name_of_the_hub_needs_the_network_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"hf/microsoft/resnet-50-that-nobody-has: .*Without network, give a folder"):
        load_model("hf/microsoft/resnet-50-that-nobody-has")


@pytest.mark.parametrize("spec", ["hf/resnet", "hf/./absent", "hf/a/b/c"])
def test_a_name_that_is_none_says_how_to_write_one(spec):
    with pytest.raises(UsageError, match=r"no such folder; write hf/ORG/NAME or hf/\./FOLDER"):
        load_model(spec)


def test_a_broken_folder_says_so(save):
    folder = save()
    shutil.copy(folder / "config.json", folder / "model.safetensors")
    with pytest.raises(UsageError, match="hf/") as caught:
        load_model(f"hf/{folder}")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no option called 'revison'; did you mean revision"):
        load_model(f"hf/{folder}:revison=main")


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "robustkit.models.sources.hf", raising=False)
    with pytest.raises(
        UsageError, match=r"needs 'transformers', which is not installed: pip install 'robustkit-bench\[zoo\]'"
    ):
        load_model("hf/microsoft/resnet-50")


def test_loading_leaves_the_librarys_settings_and_prints_nothing(save, capsys):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(f"hf/{save()}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capsys.readouterr() == ("", "")
