"""Networks from files: programs (TorchScript, torch.export, ONNX) against the original, and the kit through weights."""

import hashlib
import io
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustkit
from benchmarks import kit
from robustkit.errors import UsageError
from robustkit.models.sources import exported, load_model
from tests import needs
from tests.toys import seeded

DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)
KIT = (
    "cifar10_cnn_a_adv", "cifar10_resnet20_std", "cifar10_resnet2b_adv2", "cifar10_vit_ibp_3_3_8", "mnist_lenet5_adv",
    "mnist_conv_small_std",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def network():
    """A network with a convolution, BatchNorm, pooling and a reshape; random statistics in the BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.GELU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


def images(n=7):
    return torch.rand(n, 3, 12, 12, generator=seeded(2))


def save(network, file, x=None, *, dynamic=True):
    """Export a network as torch does; `dynamic` batches."""
    x = images() if x is None else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats that torch is about to drop
        if file.suffix == ".pt2":
            program = torch.export.export(network, (x,), dynamic_shapes=DYNAMIC if dynamic else None)
            torch.export.save(program, file)
        elif file.suffix == ".onnx":
            shapes = DYNAMIC if dynamic else None
            torch.onnx.export(network, (x,), file, dynamo=True, dynamic_shapes=shapes, opset_version=18, verbose=False)
        else:
            how = {"script": torch.jit.script, "freeze": lambda net: torch.jit.freeze(torch.jit.script(net))}
            made = how.get(file.stem, lambda net: torch.jit.trace(net, x))(network)
            torch.jit.save(made, file)
    return file


@pytest.fixture(scope="module")
def programs(network, tmp_path_factory):
    """The network in each format."""
    pytest.importorskip("onnxscript")
    at = tmp_path_factory.mktemp("programs")
    return {name: save(network, at / name) for name in ("trace.pt", "script.pt", "freeze.ts", "net.pt2", "net.onnx")}


def gradient(module, x):
    x = x.clone().requires_grad_()
    logits = module(x)
    return torch.autograd.grad(logits.square().sum(), x)[0]


@pytest.mark.parametrize("name", ["trace.pt", "script.pt", "freeze.ts", "net.pt2", "net.onnx"])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_a_program_gives_the_logits_and_gradients_of_the_original(programs, network, name, n):
    module, card = load_model(str(programs[name]), trust=name.endswith("pt2"))
    x = images(n)
    assert torch.allclose(module(x), network(x), atol=1e-6)
    assert torch.allclose(gradient(module, x), gradient(network, x), atol=1e-6)
    assert not any(part.training for part in module.modules())
    assert card.name == name
    assert card.sha256 == hashlib.sha256(programs[name].read_bytes()).hexdigest()
    assert card.input_shape == ((3, 12, 12) if name.startswith("net.") else ())


@pytest.mark.parametrize("name", ["trace.pt", "freeze.ts", "net.pt2", "net.onnx"])
def test_a_program_is_evaluated_as_the_original_is(programs, network, name):
    x, y = images(7), network(images(7)).argmax(1)
    wanted = robustkit.evaluate(network, (x, y), "pgd:steps=2", eps=0.02)
    record = robustkit.evaluate(str(programs[name]), (x, y), "pgd:steps=2", eps=0.02, trust=True)
    assert record.samples["status"].tolist() == wanted.samples["status"].tolist()
    assert record.samples["status"].tolist().count("WRONG") == 0


def test_a_program_takes_normalisation_like_any_model(programs, network):
    module, card = load_model(f"{programs['trace.pt']}:mean=0.4/0.5/0.6,std=0.2/0.2/0.2")
    x = images()
    assert torch.allclose(module(x), network((x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.2), atol=1e-5)
    assert card.std == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("name", ["fixed.pt2", "fixed.onnx"])
def test_a_program_for_one_size_of_batch_says_how_to_export_it(network, folder, name):
    file = save(network, folder / name, images(4), dynamic=False)
    with pytest.raises(UsageError, match=r"for batches of exactly 4.*dynamic batch: .*export\(model, .*Dim\.DYNAMIC"):
        load_model(str(file), trust=True)


def test_a_program_needs_no_arch(programs):
    with pytest.raises(UsageError, match="is a TorchScript file, which holds its own network; leave out arch="):
        load_model(f"{programs['trace.pt']}:arch=digits-cnn")


def test_a_torch_export_file_is_not_opened_unless_trusted(programs, folder):
    """Its reader unpickles: a file with a payload would run it, so nothing is read."""
    payload = b"cbuiltins\nopen\n(Vhacked\nVw\ntR."  # open("hacked", "w"), run when it is unpickled
    assert pickle.loads(payload).close() is None
    (folder / "hacked").unlink()
    with zipfile.ZipFile(programs["net.pt2"]) as archive, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in archive.namelist():
            content = payload if name.endswith("sample_inputs/model.pt") else archive.read(name)
            evil.writestr(name, content)
    for name in ("evil.pt2", "renamed.pt"):
        (folder / "evil.pt2").rename(folder / name)
        with pytest.raises(UsageError, match=r"reading one can run any code in it; .* add --trust"):
            load_model(f"./{name}")
        assert not (folder / "hacked").exists()
        (folder / name).rename(folder / "evil.pt2")


def test_a_pickle_with_a_payload_does_not_run(folder):
    class Payload:
        def __reduce__(self):
            return open, ("hacked", "w")

    for zipped in (True, False):
        torch.save({"weight": Payload()}, "net.pt", _use_new_zipfile_serialization=zipped)
        for spec in ("./net.pt:arch=digits-cnn", "./net.pt"):
            with pytest.raises(UsageError):
                load_model(spec)
            assert not (folder / "hacked").exists()
    with pytest.raises(UsageError, match=r"holds more than weights.*add --trust"):
        load_model("./net.pt:arch=digits-cnn")


def scrambled(archive):
    """The zip archive with every file's content reversed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[::-1])
    return out.getvalue()


@pytest.mark.parametrize(("suffix", "kind"), [(".pt", "TorchScript"), (".pt2", "torch.export"), (".onnx", "ONNX")])
def test_a_damaged_program_says_so_in_one_line(programs, folder, suffix, kind):
    whole = next(file for name, file in programs.items() if name.endswith(suffix)).read_bytes()
    middle = len(whole) // 2
    # Cut in half; or whole on the outside, and wrong within.
    for content in (whole[:middle], scrambled(whole) if suffix != ".onnx" else b"\x08" + whole[middle:]):
        (folder / f"net{suffix}").write_bytes(content)
        with pytest.raises(UsageError, match=rf"^net\{suffix} ") as caught:
            load_model(f"./net{suffix}", trust=True)
        assert "\n" not in str(caught.value)
    if suffix != ".onnx":
        assert f"does not load as {kind}" in str(caught.value)


@pytest.mark.parametrize(("operator", "opset"), [("Mish", 18), ("Gelu", 20), ("Hardmax", 13)])
def test_an_onnx_operator_without_a_converter_is_named(folder, operator, opset):
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3, 4, 4]) for name in "xy"]
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "one", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]), "net.onnx")
    with pytest.raises(UsageError, match=r"net.onnx has an operator that cannot be converted: .*opset_version=18"):
        load_model("./net.onnx")


def test_reshapes_to_a_shape_with_a_zero_keep_their_meaning():
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("Reshape", ["x", shape], [shape + "y"], allowzero=1) for shape in ("full", "zero")]
    shapes = [onnx.numpy_helper.from_array(torch.tensor(shape).numpy(), name)
              for name, shape in (("full", [-1, 4]), ("zero", [0, 4]))]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "two", [], [], shapes)
    model = onnx.helper.make_model(graph)
    exported._settle_reshapes(model)
    assert [len(node.attribute) for node in model.graph.node] == [0, 1]


def test_a_missing_converter_is_named(programs, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(
        UsageError, match=r"needs 'onnx2torch', which is not installed: pip install 'robustkit-bench\[zoo\]'"
    ):
        load_model(str(programs["net.onnx"]))


def test_weights_saved_with_our_normalisation_around_them_fit_too():
    pytest.importorskip("torchvision")
    arch = "arch=(torchvision/squeezenet1_1:classes=4)"
    module, _ = load_model("torchvision/squeezenet1_1:weights=none,classes=4")
    x = torch.rand(1, 3, 32, 32, generator=seeded(1))
    for state in (module.state_dict(), module.network.state_dict()):
        save_file({key: value.contiguous() + 1e-3 for key, value in state.items()}, "net.safetensors")
        assert not torch.equal(load_model(f"./net.safetensors:{arch}")[0](x), module(x))
        torch.save(state, "net.pt")
        assert torch.equal(load_model(f"./net.pt:{arch}")[0](x), module(x))


def kit_spec(name):
    """A spec for one of the kit's networks through its own file of weights, and through our mean= and std=."""
    entry = kit.manifest()[name]
    mean, std = ("/".join(map(str, entry[key])) for key in ("mean", "std"))
    arch = f"(python/tests.test_files.kit_architecture:name={name})"
    return f"{(kit.ROOT / entry['file']).resolve()}:arch={arch},mean={mean},std={std}"


def kit_architecture(name: str):
    """The untrained architecture of one of the kit's networks, without its normalisation."""
    architecture = dict(kit.manifest()[name]["architecture"])
    return kit.FAMILIES[architecture.pop("family")](**architecture)


@needs.kit
@pytest.mark.parametrize("name", KIT)
def test_a_kit_network_through_a_file_has_its_measured_accuracy(name):
    entry = kit.manifest()[name]
    module, card = load_model(kit_spec(name))
    x, y = (kit.cifar10 if entry["dataset"] == "cifar10" else kit.mnist)(range(2000))
    with torch.no_grad():
        right = sum(int((module(x[i : i + 200]).argmax(1) == y[i : i + 200]).sum()) for i in range(0, 2000, 200))
    measured = next(fact["value"] for fact in entry["measured"] if fact["metric"] == "clean")
    assert 100 * right / 2000 == pytest.approx(measured, abs=0.3)
    assert card.mean == tuple(entry["mean"])
