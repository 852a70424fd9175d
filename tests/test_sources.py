import hashlib
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustkit
from benchmarks import kit
from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.sources import load_model
from robustkit.models.sources.python import import_callable
from robustkit.models.sources.zoo.architectures import digits_cnn
from tests import needs

ARCH = "arch=digits-cnn"


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """The state dict of a digits-cnn; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return digits_cnn().state_dict()


def same(module, weights):
    state = module.state_dict()
    return list(state) == list(weights) and all(torch.equal(state[key], weights[key]) for key in weights)


def test_a_safetensors_file_fills_the_network_that_arch_names(weights, tmp_path):
    save_file(weights, "net.safetensors")
    module, card = load_model(f"./net.safetensors:{ARCH}")
    assert same(module, weights)
    assert not module.training
    assert (card.name, card.source) == ("net.safetensors", "file")
    assert card.sha256 == hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert same(load_model(f"file/net.safetensors:{ARCH}")[0], weights)


@pytest.mark.parametrize("key", ["", "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_are_found_in_what_torch_saved(weights, key, prefix, zipped):
    saved = OrderedDict((prefix + name, value) for name, value in weights.items())
    checkpoint = {key: saved, "epoch": 3, "best": 0.9} if key else saved
    torch.save(checkpoint, "net.pt", _use_new_zipfile_serialization=zipped)
    assert same(load_model(f"./net.pt:{ARCH}")[0], weights)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.", "module.model.", "_orig_mod.module.", "module._orig_mod.", "ema.module.", "model._orig_mod.ema.",
        "classifier.net.", "_fsdp_wrapped_module.",
    ],
)  # fmt: skip
def test_what_wrappers_put_before_the_names_is_taken_off_in_any_order(weights, prefix):
    torch.save({prefix + name: value for name, value in weights.items()}, "net.pt")
    save_file({prefix + name: value for name, value in weights.items()}, "net.safetensors")
    assert same(load_model(f"./net.pt:{ARCH}")[0], weights)
    assert same(load_model(f"./net.safetensors:{ARCH}")[0], weights)


def test_a_wrapper_inside_a_network_is_taken_off_and_a_network_s_own_prefix_is_not(weights, tmp_path):
    inside = {name.replace(".", "._orig_mod.", 1): value for name, value in weights.items()}
    torch.save(inside, "net.pt")
    assert same(load_model(f"./net.pt:{ARCH}")[0], weights)
    (tmp_path / "my_wrapped_here.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.ModuleDict({'model': nn.Linear(2, 3)})\n"
    )
    own = {"model.weight": torch.ones(3, 2), "model.bias": torch.zeros(3)}
    torch.save({f"module.{name}": value for name, value in own.items()}, "net.pt")
    assert same(load_model("./net.pt:arch=python/my_wrapped_here.make")[0], own)


def test_the_versions_of_formats_that_torch_keeps_beside_a_state_dict_are_kept(weights, tmp_path):
    (tmp_path / "my_versions_here.py").write_text(
        "from torch import nn\n\nclass Layer(nn.Linear):\n    _version = 3\n\n"
        "    def _load_from_state_dict(self, state, prefix, metadata, *rest):\n"
        "        if metadata.get('version') != 3:\n            raise ValueError('which version?')\n"
        "        super()._load_from_state_dict(state, prefix, metadata, *rest)\n\n"
        "def make():\n    return Layer(2, 3)\n"
    )
    network = load_model("python/my_versions_here.make")[0]
    torch.save({"model": network.state_dict()}, "net.pt")
    assert same(load_model("./net.pt:arch=python/my_versions_here.make")[0], network.state_dict())
    save_file(network.state_dict(), "net.safetensors")
    with pytest.raises(UsageError, match=r"the weights do not fit \(which version\?\)"):
        load_model("./net.safetensors:arch=python/my_versions_here.make")


def test_a_torch_average_of_models_loads(weights):
    network = digits_cnn()
    network.load_state_dict(weights)
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    torch.save(average.state_dict(), "net.pt")
    assert same(load_model(f"./net.pt:{ARCH}")[0], weights)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "ema_state_dict"),
        ("model.", "ema_model."), ("", "model_ema.module."),
    ],
)  # fmt: skip
def test_of_two_sets_of_weights_it_is_said_which_was_taken(weights, raw, averaged):
    average = {name: value + 1 for name, value in weights.items()}
    if averaged.endswith("."):  # both in one state dict
        saved = {raw + n: v for n, v in weights.items()} | {averaged + n: v for n, v in average.items()}
    else:
        saved = {"epoch": 3, raw: weights, averaged: average}
    torch.save(saved, "net.pt")
    module, card = load_model(f"./net.pt:{ARCH}")
    assert same(module, weights)
    assert "those of the last step were taken, weights=ema takes their running average" in card.caution
    module, card = load_model(f"./net.pt:{ARCH},weights=ema")
    assert same(module, average)
    assert not card.caution
    module, card = load_model(f"./net.pt:{ARCH},weights=raw")
    assert same(module, weights)
    assert not card.caution
    record = robustkit.evaluate(f"./net.pt:{ARCH}", "digits", "fgsm", eps=0.1, n=20, doctor=False)
    assert "weights=ema" in next(flag["message"] for flag in record.flags if flag["kind"] == "weights")


def test_averaged_weights_alone_are_taken_and_none_that_are_not_there(weights):
    torch.save({"ema": weights, "epoch": 2}, "net.pt")
    module, card = load_model(f"./net.pt:{ARCH}")
    assert same(module, weights)
    assert not card.caution
    assert same(load_model(f"./net.pt:{ARCH},weights=ema")[0], weights)
    torch.save(weights, "net.pt")
    with pytest.raises(UsageError, match="nothing in the file is told to be the ema weights; leave out weights=ema"):
        load_model(f"./net.pt:{ARCH},weights=ema")
    with pytest.raises(UsageError, match="no set of weights called 'em'; did you mean ema"):
        load_model(f"./net.pt:{ARCH},weights=em")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.complex64, torch.bool])
def test_integers_are_no_weights_of_a_network_of_floats(weights, dtype):
    weights["0.weight"] = (100 * weights["0.weight"]).to(dtype)
    save_file(weights, "net.safetensors")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UsageError, match=rf"0\.weight is {kind} in the file and float32 in the network.*quantised export"
    ):
        load_model(f"./net.safetensors:{ARCH}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_load(weights, dtype):
    save_file({name: value.to(dtype) for name, value in weights.items()}, "net.safetensors")
    assert same(load_model(f"./net.safetensors:{ARCH}")[0], {n: v.to(dtype).float() for n, v in weights.items()})


def test_arch_may_be_a_callable_of_the_users(weights, tmp_path):
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "net.safetensors")
    (tmp_path / "my_architectures_here.py").write_text(
        "from torch import nn\n\ndef make(width: int) -> nn.Module:\n    return nn.Linear(3, width)\n"
    )
    module, _ = load_model("./net.safetensors:arch=(python/my_architectures_here.make:width=2)")
    assert module.weight.tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(UsageError, match=r"other shapes: weight is \(2, 3\) in the file, \(4, 3\) in the network"):
        load_model("./net.safetensors:arch=(python/my_architectures_here.make:width=4)")


def test_old_checkpoints_without_batch_counters_fit(weights, tmp_path):
    (tmp_path / "my_norms_here.py").write_text("from torch import nn\n\ndef make():\n    return nn.BatchNorm2d(2)\n")
    state = nn.BatchNorm2d(2).state_dict()
    torch.save({key: value for key, value in state.items() if key != "num_batches_tracked"}, "net.pt")
    load_model("./net.pt:arch=python/my_norms_here.make")
    torch.save({"weight": state["weight"]}, "less.pt")
    with pytest.raises(UsageError, match="missing: bias, running_mean, running_var"):
        load_model("./less.pt:arch=python/my_norms_here.make")


def test_weights_that_do_not_fit_are_named(weights):
    del weights["0.weight"], weights["0.bias"], weights["2.weight"], weights["2.bias"]
    save_file({**weights, "head.extra": torch.zeros(1)}, "net.safetensors")
    with pytest.raises(UsageError, match=r"missing: 0.weight, 0.bias, 2.weight and 1 more; unexpected: head.extra"):
        load_model(f"./net.safetensors:{ARCH}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n<!DOCTYPE html><html>", r"is an HTML page \(a failed download\?\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        (b"hello world", "begins with b'hello wo', which no file saved by torch does"),
        (bytes(range(256)), "begins with .*, which no file saved by torch does"),
        (b"\x80\x02 nothing", r"is no checkpoint that torch can read \(cut short\?\)"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_what_it_is(weights, tmp_path, content, message):
    for name in ("net.pt", "net.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            load_model(f"./{name}:{ARCH}")
        assert "\n" not in str(caught.value)


def test_a_broken_safetensors_file_is_refused(weights, tmp_path):
    save_file(weights, "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    for content in (whole[:1000], b"hello world", b"\x80\x02"):
        (tmp_path / "net.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=r"is no \.safetensors file"):
            load_model(f"./net.safetensors:{ARCH}")


def test_a_cut_checkpoint_is_refused(weights, tmp_path):
    torch.save(weights, "net.pt")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"is a zip archive that was cut short"):
        load_model(f"./net.pt:{ARCH}")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickled_network_is_loaded_only_if_trusted(weights, zipped):
    network = digits_cnn()
    network.load_state_dict(weights)
    torch.save(network, "net.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match=r"holds more than weights: it needs torch\.nn\.modules\..*add --trust"):
        load_model(f"./net.pt:{ARCH}")
    with pytest.raises(UsageError, match=r"holds more than weights: .*add --trust.*say of which network"):
        load_model("./net.pt")
    assert same(load_model(f"./net.pt:{ARCH}", trust=True)[0], weights)
    assert same(load_model("./net.pt", trust=True)[0], weights)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.zeros(2), "holds an object of type Tensor; save model.state_dict"),
        ({"epoch": 1, "loss": 0.2}, "holds a dict of epoch, loss, which is no state dict"),
        ({}, "holds a dict of nothing"),
        ({"state_dict": {}}, "holds a dict of nothing"),
    ],
)
def test_a_checkpoint_without_weights_is_refused(weights, saved, message):
    torch.save(saved, "net.pt")
    with pytest.raises(UsageError, match=message):
        load_model(f"./net.pt:{ARCH}")


def test_a_file_spec_needs_a_file_and_an_arch(weights, tmp_path):
    save_file(weights, "net.safetensors")
    for spec, message in (
        ("./absent.pt", "there is no file absent.pt"),
        (f"{tmp_path}:{ARCH}", "is a folder"),
        ("./net.safetensors", r"say of which network: ./net.safetensors:arch=python.*digits-cnn"),
        ("./net.safetensors:arc=digits-cnn", "no option called 'arc'; did you mean arch"),
        ("./net.safetensors:arch=digits-cn", "no zoo network called 'digits-cn'; did you mean digits-cnn"),
        ("net.safetensors", r"to load the file, write ./net.safetensors:arch="),
    ):
        with pytest.raises(UsageError, match=message):
            load_model(spec)


def test_an_unknown_source_says_which_there_are():
    with pytest.raises(UsageError, match="no model source called 'pyton'; did you mean python"):
        load_model("pyton/a.b")


MODULE = """
from torch import nn

from robustkit.api import ModelCard

NUMBER = 3

def make(width: int = 2, bias: bool = True, kind=None, rate: "float | None" = None):
    assert kind is None or isinstance(kind, str)
    module = nn.Linear(3, width, bias=bias)
    module.rate = rate
    return module

def with_card():
    return nn.Identity(), ModelCard("mine", classes=5)

def anything(**settings):
    made = nn.Sequential(*[nn.ReLU() for _ in settings])
    made.settings = settings
    return made

def plain(width=2, rate=0.5, bias=True, kind="a", size=None, *, also: int = 1):
    made = nn.Linear(3, width)
    made.settings = (width, rate, bias, kind, size, also)
    return made

class Silent(nn.Linear):
    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        self.train(False)

def silent():
    return Silent(3, 2)

def wrong():
    return "a network"
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, with a name of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_networks_here.py").write_text(MODULE)
    return "python/my_networks_here"


def test_a_callable_in_the_current_folder_makes_a_network(module):
    made, card = load_model(f"{module}.make:width=4,bias=no,rate=1/4,kind=8")
    assert made.out_features == 4
    assert made.bias is None
    assert made.rate == 0.25
    assert not made.training
    assert card == ModelCard("my_networks_here.make", "python")
    assert load_model(f"{module}.with_card")[1].classes == 5
    assert len(load_model(f"{module}.anything:a=1,b=2")[0]) == 2


def test_an_option_without_annotation_has_the_type_of_its_default(module):
    made, _ = load_model(f"{module}.plain:width=5,rate=1/4,bias=false,kind=7,size=8,also=3")
    assert made.settings == (5, 0.25, False, "7", "8", 3)
    assert made.out_features == 5
    with pytest.raises(UsageError, match="width must be a whole number, not 'wide'"):
        load_model(f"{module}.plain:width=wide")


def test_what_reads_as_a_number_is_one_for_a_callable_that_takes_anything(module):
    made, _ = load_model(f"{module}.anything:a=1,b=2.5,c=true,d=none,e=1e-3,f=relu")
    assert made.settings == {"a": 1, "b": 2.5, "c": True, "d": None, "e": 1e-3, "f": "relu"}
    assert [type(value) for value in made.settings.values()] == [int, float, bool, type(None), float, str]


def test_a_network_of_torchvision_by_its_function_takes_its_number_of_classes():
    pytest.importorskip("torchvision")
    assert load_model("python/torchvision.models.resnet18:num_classes=5")[0].fc.out_features == 5


def test_a_network_whose_eval_returns_nothing_loads(module, tmp_path):
    network = load_model(f"{module}.silent")[0]
    assert (type(network).__name__, network.training) == ("Silent", False)
    torch.save(network.state_dict(), "net.pt")
    assert type(load_model(f"./net.pt:arch={module}.silent")[0]).__name__ == "Silent"
    assert type(load_model(f"{module}.silent:mean=0.5,std=0.5")[0].network).__name__ == "Silent"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (".mak", "no callable of my_networks_here called 'mak'; did you mean make"),
        (".NUMBER", "my_networks_here.NUMBER is an object of type int, which cannot be called"),
        (".wrong", r"returned an object of type str; it must return an nn.Module"),
        (".make:widht=3", "model my_networks_here.make: no option called 'widht'; did you mean width"),
        (".make:width=wide", "width must be a whole number, not 'wide'"),
        ("", "'python/my_networks_here' is a module: name the callable in it, python/my_networks_here."),
        ("/make", "is no callable's name"),
        ("s.make", "no module called 'my_networks_heres' for my_networks_heres.make"),
    ],
)
def test_a_callable_that_cannot_be_used_says_why(module, rest, message):
    with pytest.raises(UsageError, match=message):
        load_model(module + rest)


def test_a_module_that_does_not_import_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_broken_here.py").write_text("def make(:\n")
    (tmp_path / "my_needy_here.py").write_text("import surely_not_installed\n")
    with pytest.raises(UsageError, match="my_broken_here does not import: SyntaxError"):
        load_model("python/my_broken_here.make")
    with pytest.raises(UsageError, match=r"my_needy_here needs a module that is not installed: .*surely_not_installed"):
        load_model("python/my_needy_here.make")


def test_importing_leaves_the_import_path_as_it_was(module, monkeypatch):
    import sys

    before = list(sys.path)
    import_callable("my_networks_here.make")
    assert sys.path == before


@needs.kit
@pytest.mark.parametrize("name", ["cifar10_cnn_a_adv", "mnist_lenet5_adv"])
def test_a_kit_network_loads_as_a_model_spec_and_has_its_measured_accuracy(name):
    entry = kit.manifest()[name]
    module, card = load_model(f"python/benchmarks.kit.model:name={name}")
    x, y = (kit.cifar10 if entry["dataset"] == "cifar10" else kit.mnist)(range(2000))
    assert card.source == "python"
    assert clean(module, x, y) == next(fact["value"] for fact in entry["measured"] if fact["metric"] == "clean")


@needs.kit
@pytest.mark.slow
@pytest.mark.parametrize("name", kit.manifest() if (kit.ROOT / "manifest.json").is_file() else [])
def test_every_kit_network_has_its_measured_accuracy(name):
    entry = kit.manifest()[name]
    x, y = (kit.cifar10 if entry["dataset"] == "cifar10" else kit.mnist)(range(2000))
    assert clean(kit.model(name), x, y) == next(f["value"] for f in entry["measured"] if f["metric"] == "clean")


@torch.no_grad()
def clean(module, x, y):
    right = sum(int((module(x[i : i + 200]).argmax(1) == y[i : i + 200]).sum()) for i in range(0, len(y), 200))
    return 100 * right / len(y)
