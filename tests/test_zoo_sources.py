"""timm's and torchvision's classifiers as models: that they run, with whose weights, and what is refused.

The breadth tests make networks without weights: shapes are computed, numbers are not (torch's "meta" device).
"""

import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file
from torch.overrides import TorchFunctionMode

import robustkit
from robustkit import cli
from robustkit.errors import UsageError
from robustkit.models import sources
from robustkit.models.sources import load_model
from tests.server import Server, start
from tests.toys import seeded

torchvision = pytest.importorskip("torchvision")
pytest.importorskip("timm")
load_model("timm/test_vit:pretrained=false")  # imports timm where its deprecated calls are expected

import timm  # noqa: E402


def images(n, *shape):
    return torch.rand(n, *shape, generator=seeded(2))


def slow_but(names, quick):
    """The names as parameters of a test, of which only the `quick` run every time."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Each at the smallest images that it takes, or nearly.
BACKBONES = {
    "ConViT": ("timm/convit_tiny:pretrained=false,classes=10,image_size=32", 32),
    "VoVNet": ("timm/ese_vovnet19b_slim:pretrained=false,classes=10", 32),
    "Inception-v4": ("timm/inception_v4:pretrained=false,classes=10", 75),
    "Inception-ResNet-v2": ("timm/inception_resnet_v2:pretrained=false,classes=10", 75),
    "ViT": ("timm/vit_tiny_patch16_224:pretrained=false,classes=10,image_size=32", 32),
    "Swin": ("timm/swin_tiny_patch4_window7_224:pretrained=false,classes=10,image_size=56", 56),
    "ConvNeXt": ("timm/convnext_atto:pretrained=false,classes=10", 32),
    "ResNet": ("timm/resnet18:pretrained=false,classes=10", 32),
    "DenseNet-201": ("timm/densenet201:pretrained=false,classes=10", 32),
    # 100 million weights behind the convolutions, hashed, copied and compared: slow at any size of image.
    "VGG-19": ("timm/vgg19:pretrained=false,classes=10", 32),
    "ResNeXt-50": ("timm/resnext50_32x4d:pretrained=false,classes=10", 32),
    "T2T-ViT": ("python/tests.test_zoo_sources.t2t_vit", 32),
    "torchvision's ResNet": ("torchvision/resnet18:weights=none,classes=10", 32),
    "torchvision's Inception v3": ("torchvision/inception_v3:weights=none,classes=10", 75),
    "torchvision's GoogLeNet": ("torchvision/googlenet:weights=none,classes=10", 32),
}


def t2t_vit():
    """A small T2T-ViT of vit-pytorch, which timm, torchvision and transformers do not have."""
    t2t = pytest.importorskip("vit_pytorch.t2t")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return t2t.T2TViT(image_size=32, num_classes=10, dim=32, depth=2, heads=2, mlp_dim=32,
                          t2t_layers=((3, 2), (3, 2), (3, 2)))  # fmt: skip


@pytest.mark.parametrize("name", slow_but(BACKBONES, set(BACKBONES) - {"VGG-19"}))
def test_a_backbone_is_evaluated(name):
    spec, size = BACKBONES[name]
    module, _ = load_model(spec)
    x = images(2, 3, size, size)
    with torch.no_grad():
        y = module(x).argmax(1)
    record = robustkit.evaluate(module, (x, y), "pgd:steps=1", eps=8 / 255, tile=2)
    assert set(record.samples["status"]) <= {"ROBUST", "BROKEN"}
    assert record.attacks["backwards"].min() >= 1
    assert "no-gradient" not in [flag["kind"] for flag in record.flags]


class Weightless(TorchFunctionMode):
    """What is made without a device and is large has no numbers in it; what is computed in a constructor has."""

    large = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.large:
            kwargs["device"] = kwargs.get("device") or "meta"
        return func(*args, **kwargs)


def shape_of_logits(spec):
    with Weightless():
        module, card = load_model(spec)
    module.to("meta")
    with torch.no_grad():
        return tuple(module(torch.empty(2, *card.input_shape, device="meta")).shape)


CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
FAMILIES = {torchvision.models.get_model_builder(name).__module__: name for name in reversed(CLASSIFIERS)}


@pytest.mark.parametrize("name", slow_but(CLASSIFIERS, FAMILIES.values()))
def test_every_torchvision_classifier_is_made_and_answers(name):
    assert shape_of_logits(f"torchvision/{name}:weights=none") == (2, 1000)


# One architecture or two of every family of timm that is quick to make (all but Sequencer and EfficientViT).
TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 botnet50ts_256 caformer_b36 cait_m36_384 coat_lite_medium
coatnet_0_224 coatnet_0_rw_224 convit_small convmixer_1024_20_ks9_p14 convmixer_1536_20 convnext_atto
convnext_atto_ols crossvit_15_240 cs3darknet_focus_l cs3darknet_focus_m davit_base_fl deit3_base_patch16_384
densenet121 dla102x dm_nfnet_f0 dpn107 eca_resnet33ts eca_vovnet39b ecaresnet101d edgenext_base
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_b0_g16_evos efficientvit_m1
ese_vovnet19b_dw eva02_base_patch14_448 eva_large_patch14_336 fastvit_mci0 fbnetv3_b focalnet_base_srf
gcvit_base ghostnet_050 ghostnet_100 gmixer_12_224 gmixer_24_224 hardcorenas_a hardcorenas_b hgnet_base
hgnet_small hiera_base_224 hieradet_small hrnet_w18_small inception_next_small inception_resnet_v2 inception_v3
inception_v4 legacy_seresnet101 legacy_xception levit_128 levit_128s mobilevit_s mobilevit_xs mvitv2_base
nasnetalarge nest_base_jx nextvit_base pit_b_224 pit_b_distilled_224 pnasnet5large pvt_v2_b0 pvt_v2_b1
rdnet_base regnetv_040 repghostnet_058 repvit_m0_9 repvit_m1 res2net101d resnest14d resnetv2_101d rexnet_100
rexnet_130 samvit_base_patch16 samvit_base_patch16_224 selecsls42 selecsls42b skresnet18 skresnet34
swin_base_patch4_window7_224 swinv2_base_window12to16_192to256 swinv2_cr_base_384 tiny_vit_11m_224
tnt_b_patch16_224 tresnet_m twins_pcpvt_base vgg11 vgg11_bn visformer_small visformer_tiny vit_base_mci_224
vit_relpos_base_patch16_224 vit_relpos_base_patch16_cls_224 vitamin_base_224 volo_d1_224 xception41 xception41p
xcit_large_24_p16_384
""".split()  # noqa: SIM905 (a hundred quotes say no more)


@pytest.mark.parametrize("name", slow_but(TIMM, TIMM[::3]))
def test_timm_architectures_of_every_family_are_made_and_answer(name):
    assert shape_of_logits(f"timm/{name}:pretrained=false,classes=7") == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_architectures_of_every_family_answer_with_numbers(name):
    module, card = load_model(f"timm/{name}:pretrained=false,classes=7")
    with torch.no_grad():
        logits = module(images(1, *card.input_shape))
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()


# Which weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of our own, and an empty cache."""
    server = Server()
    running = start(server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUSTKIT_OFFLINE", raising=False)
    yield server
    server.stopped.set()
    running.shutdown()
    running.server_close()


TAGGED = "test_vit.r160_in1k"


def trained():
    """A timm network with weights that are not those of an untrained one."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return timm.create_model("test_vit", pretrained=False).eval()


def test_timm_weights_come_from_the_hub_checked_and_normalise_by_their_own_mean(hub):
    content = save(trained().state_dict())
    hub.put(f"/timm/{TAGGED}/resolve/main/model.safetensors", content)
    x = images(2, 3, 160, 160)
    for spec in (f"timm/{TAGGED}", "timm/test_vit", "timm/test_vit:pretrained=true,classes=1000"):
        module, card = load_model(spec)
        with torch.no_grad():
            assert torch.allclose(module(x), trained()((x - 0.5) / 0.5), atol=1e-5)
        assert (card.mean, card.std, card.input_shape, card.classes) == ((0.5,) * 3, (0.5,) * 3, (3, 160, 160), 1000)
        assert card.dataset == "imagenet"
        assert len(card.sha256) == 64
    assert len([path for path, _ in hub.asked if path.endswith("safetensors")]) == 1
    assert "state_dict" not in module.network.pretrained_cfg


@pytest.mark.parametrize("answer", ["<html>no such thing</html>", "{}", None])
def test_weights_that_cannot_be_had_say_so_and_what_else_there_is(hub, answer, monkeypatch, tmp_path):
    if answer is None:
        monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    elif answer == "{}":
        hub.put(f"/timm/{TAGGED}/resolve/main/model.safetensors", b"{}")
    message = r"is no \.safetensors file" if answer == "{}" else "timm/test_vit: cannot get .*or say pretrained=false"
    with pytest.raises(UsageError, match=message):
        load_model("timm/test_vit")
    load_model("timm/test_vit:pretrained=false")


def test_a_torchvision_download_that_is_not_there_says_what_else_there_is(hub, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"torchvision/resnet18: cannot get .*or say weights=none"):
        load_model("torchvision/resnet18")


def test_a_torchvision_file_that_was_not_published_is_refused(hub, tmp_path):
    file = tmp_path / "cache/models/torchvision/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match="is not what torchvision published: its sha256 must begin with f37072fd"):
        load_model("torchvision/resnet18")


def old_densenet_names(weights):
    """DenseNet's weights as torchvision's files name them; those files are older than the counters of BatchNorm."""
    if any("denselayer" in key for key in weights):
        weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    for key in list(weights):
        for part in ("norm", "conv"):
            for i in "12":
                if f".{part}{i}." in key and "denselayer" in key:
                    weights[key.replace(f".{part}{i}.", f".{part}.{i}.")] = weights.pop(key)
    return weights


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 75), ("densenet121", 32), ("mnasnet0_5", 32)])
def test_torchvision_weights_give_what_torchvisions_own_builder_gives(name, size, monkeypatch, tmp_path):
    from robustkit.models.sources import torchvision_models

    module, _ = load_model(f"torchvision/{name}:weights=none")
    weights = module.network.state_dict()
    for key, value in weights.items():
        if value.is_floating_point():
            value += 0.01 * torch.rand(value.shape, generator=seeded(len(key)))
    torch.save(old_densenet_names(weights), tmp_path / "net.pth")
    read = torch.load(tmp_path / "net.pth", weights_only=True)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **how: read)
    monkeypatch.setattr(torchvision_models, "_fetched", lambda name, weights: tmp_path / "net.pth")
    theirs = torchvision.models.get_model(name, weights="DEFAULT").eval()
    module, card = load_model(f"torchvision/{name}")
    x = images(2, 3, size, size)
    seen = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        assert torch.allclose(module(x), theirs(seen), rtol=1e-4, atol=1e-5)
    assert (card.dataset, card.classes, card.mean) == ("imagenet", 1000, (0.485, 0.456, 0.406))


def test_torchvision_weights_decide_on_the_size_of_a_vision_transformer(monkeypatch):
    from robustkit.models.sources import torchvision_models

    asked = {}

    def made(name, seed, **arguments):
        asked.update(arguments)
        raise UsageError("made")

    monkeypatch.setattr(torchvision_models, "_made", made)
    with pytest.raises(UsageError, match="made"):
        load_model("torchvision/vit_b_16:weights=IMAGENET1K_SWAG_E2E_V1")
    assert asked == {"num_classes": 1000, "image_size": 384}
    assert torchvision_models.Torchvision().card("vit_b_16", {}).input_shape == (3, 224, 224)
    card = torchvision_models.Torchvision().card("vit_b_16", {"weights": "IMAGENET1K_SWAG_E2E_V1"})
    assert card.input_shape == (3, 384, 384)


# Options


def test_untrained_networks_are_always_the_same_and_leave_the_generators_alone():
    x = images(1, 3, 32, 32)
    for spec in ("timm/resnet18:pretrained=false,classes=3", "torchvision/resnet18:weights=none,classes=3"):
        state = torch.get_rng_state()
        first, card = load_model(spec)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        with torch.no_grad():
            assert torch.equal(first(x), load_model(spec)[0](x))
        assert "untrained" in card.notes
        assert card.classes == 3


def test_timm_options_reach_the_network():
    module, card = load_model("timm/test_vit:pretrained=false,classes=4,in_chans=1,image_size=32")
    assert module(images(2, 1, 32, 32)).shape == (2, 4)
    assert (card.input_shape, card.mean, card.std) == ((1, 32, 32), (0.5,), (0.5,))
    module, card = load_model("timm/resnet18:pretrained=false,image_size=64")
    assert card.input_shape == (3, 64, 64)
    # Of this one timm notes no image size: nothing is claimed.
    assert sources.plugins.load("sources", "timm")().card("vit_betwixt_patch16_gap_256", {}).input_shape == ()


def test_a_checkpoint_of_the_users_fills_a_timm_network(tmp_path):
    save_file(trained().state_dict(), tmp_path / "net.safetensors")
    x = images(1, 3, 160, 160)
    with torch.no_grad():
        wanted = trained()((x - 0.5) / 0.5)
        for spec in (f"timm/test_vit:checkpoint={tmp_path}/net.safetensors",
                     f"{tmp_path}/net.safetensors:arch=timm/test_vit"):  # fmt: skip
            module, card = load_model(spec)
            assert torch.allclose(module(x), wanted, atol=1e-5)
            assert len(card.sha256) == 64
    with pytest.raises(UsageError, match=r"other shapes: head.weight is \(1000, .*\(7, "):
        load_model(f"timm/test_vit:checkpoint={tmp_path}/net.safetensors,classes=7")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm/resnet18:classes=10", "pretrained weights have 1000 classes, so classes=10 would be an untrained head"),
        ("timm/resnet18:pretrained=true,checkpoint=a.pt", "exclude each other"),
        ("timm/vovnet39a:pretrained=true", "has no weights for vovnet39a; say pretrained=false"),
        ("timm/resnet18:clases=10", "no option called 'clases'; did you mean classes"),
        ("timm/resnet18.a9_in1k", "no set of timm's weights called 'resnet18.a9_in1k'; did you mean resnet18.a"),
        ("timm/resnet_18", "no timm architecture called 'resnet_18'; did you mean resnet"),
        ("timm/resnet18:pretrained=false,classes=many", "classes must be a whole number"),
        ("timm/test_vit:pretrained=false,image_size=0", "image_size must be at least 1, not 0"),
        ("torchvision/resnet18:weights=none,classes=-1", "classes must be at least 1, not -1"),
        ("timm/sam2_hiera_tiny:pretrained=false", "gives features, no classes; give pretrained=false,classes=N"),
        ("torchvision/resnet_18", "no torchvision classifier called 'resnet_18'; did you mean resnet18"),
        ("torchvision/resnet18:weights=V2", "no set of weights called 'V2'.* There are: DEFAULT, IMAGENET1K_V1, none"),
        ("torchvision/resnet18:classes=10", "the weights have 1000 classes, so classes=10 would be an untrained head"),
        ("torchvision/resnet18:pretrained=no", "no option called 'pretrained'"),
    ],
)
def test_what_cannot_be_loaded_says_why(spec, message):
    with pytest.raises(UsageError, match=message):
        load_model(spec)


def test_images_of_another_size_are_not_resized_silently():
    x, y = images(2, 3, 40, 40), torch.tensor([0, 1])
    spec = "timm/test_vit:pretrained=false,classes=10"
    with pytest.raises(UsageError, match=r"made for 3×160×160 \(its card\): resize=160 in its spec"):
        robustkit.evaluate(spec, (x, y), "pgd:steps=1", eps=0.1, tile=2)
    record = robustkit.evaluate(f"{spec},resize=160", (x, y), "pgd:steps=1", eps=0.1, tile=2)
    assert record.n == 2
    with pytest.raises(UsageError, match="labels go up to 11 but the model has 10 outputs"):
        robustkit.evaluate(f"{spec},resize=160", (x, y + 10), "pgd:steps=1", eps=0.1, tile=2)


# Lists


def test_a_list_of_models_imports_no_other_source(monkeypatch):
    loaded = []
    real = sources.plugins.load
    monkeypatch.setattr(sources.plugins, "load", lambda kind, name: loaded.append(name) or real(kind, name))
    rows = dict(sources.listing())
    assert loaded == ["zoo"]
    assert rows["timm/…"].endswith("(pip install 'robustkit-bench[zoo]'; list models --source timm)")
    assert {"digits-cnn", "torchvision/…", "hf/…", "ensemble/…", "file/…"} <= set(rows)


def test_a_source_lists_its_names_without_making_a_model(monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)
    found = CliRunner().invoke(cli.main, ["list", "models", "convit_tiny", "--source", "timm"])
    assert [line.split()[0] for line in found.output.splitlines()] == ["timm/convit_tiny", "timm/convit_tiny.fb_in1k"]
    rows = dict(sources.listing("torchvision"))
    assert len(rows) == 80
    assert "imagenet" in rows["torchvision/resnet50"]
    assert list(dict(sources.listing("hf"))) == ["hf/…"]
    with pytest.raises(UsageError, match="no model source called 'tim'; did you mean timm"):
        sources.listing("tim")


@pytest.mark.parametrize(("package", "module"), [("timm", "timm_models"), ("torchvision", "torchvision_models")])
def test_a_missing_package_is_named(package, module, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"robustkit.models.sources.{module}", raising=False)
    text = rf"needs '{package}', which is not installed: pip install 'robustkit-bench\[zoo\]'"
    with pytest.raises(UsageError, match=text):
        load_model(f"{package}/resnet18")
