"""The files of RobustBench's networks: fetched, checked before they are unpickled, and loaded where they fit."""

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

if not importlib.util.find_spec("robustbench"):  # importorskip would import it, which is what fails
    pytest.skip("needs robustbench: pip install 'robustkit-bench[zoo]'", allow_module_level=True)

from robustkit import evaluate, load_model
from robustkit.cli import main
from robustkit.datasets import Pair
from robustkit.errors import UsageError
from robustkit.models.sources.robustbench import library, weights
from robustkit.models.sources.trust import trusted
from robustkit.records.folder import load_run
from tests.server import Server, start
from tests.test_checkpoint import Payload
from tests.test_robustbench import find, logits

SMALL = "Modas2021PRIMEResNet18:dataset=cifar10"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBUSTKIT_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def drive(home, monkeypatch):
    """Google Drive as a local server: a file lies at /DRIVE-ID."""
    server = Server()
    running = start(server)
    monkeypatch.setattr(weights, "DRIVE", (server.url + "/{}",))
    yield server
    server.stopped.set()
    running.shutdown()
    running.server_close()


def saved(thing, zipped=True):
    stream = io.BytesIO()
    torch.save(thing, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def small(seed):
    """The small network with other weights than random ones have, and its entry."""
    torch.manual_seed(seed)
    entry = find("Modas2021PRIMEResNet18")
    return entry, library.construct(entry).eval()


def test_a_checkpoint_with_prefixes_is_loaded_from_drive_and_kept(drive, home):
    entry, network = small(1)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state["module.mu"] = torch.full((1, 3, 1, 1), 0.25)
    drive.put(f"/{entry.drive[0]}", saved({"state_dict": state, "epoch": 3}))
    module, card = load_model(f"robustbench/{SMALL}")
    network.mu.fill_(0.25)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(logits(module, x), logits(network, x))
    assert card.mean == (0.25, 0.25, 0.25)
    file = home / "models/robustbench/cifar10/corruptions/Modas2021PRIMEResNet18.pt"
    assert card.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(drive.asked) == 1
    load_model(f"robustbench/{SMALL}")
    assert len(drive.asked) == 1


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>", b""])
def test_a_page_instead_of_the_file_is_refused_and_not_kept(drive, home, body):
    entry = find("Modas2021PRIMEResNet18")
    drive.put(f"/{entry.drive[0]}", body, kind="text/html" if body else "application/octet-stream")
    with pytest.raises(UsageError, match=r"Put the file by hand at .*Modas2021PRIMEResNet18\.pt") as caught:
        load_model(f"robustbench/{SMALL}")
    assert f"https://drive.google.com/file/d/{entry.drive[0]}/view" in str(caught.value)
    assert not list((home / "models").rglob("*.pt*"))


@pytest.mark.parametrize(
    ("zipped", "said"),
    [(True, "zip archive that was cut short.*by hand at"), (False, "cut short.*it was removed.*by hand at")],
)
def test_a_truncated_file_is_refused_and_not_kept_and_the_next_download_works(drive, home, zipped, said):
    """A zip shows by its end that it was cut, before anything is unpickled; the older format only when it is read."""
    entry, network = small(2)
    whole = saved(network.state_dict(), zipped)
    drive.put(f"/{entry.drive[0]}", whole[: len(whole) // 2], length=False)
    with pytest.raises(UsageError, match=said):
        load_model(f"robustbench/{SMALL}")
    assert not list((home / "models").rglob("*.pt*"))
    drive.put(f"/{entry.drive[0]}", whole)
    module, _ = load_model(f"robustbench/{SMALL}")
    assert torch.equal(module.conv1.weight, network.conv1.weight)


def test_an_html_page_put_there_by_hand_is_refused(drive, home):
    file = home / "models/robustbench/cifar10/corruptions/Modas2021PRIMEResNet18.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>sign in</html>")
    with pytest.raises(UsageError, match="HTML page"):
        load_model(f"robustbench/{SMALL}")


def test_a_pickle_with_a_payload_is_refused_without_trust(tmp_path):
    _, network = small(3)
    mark, file = tmp_path / "ran", tmp_path / "net.pt"
    torch.save({"state_dict": network.state_dict(), "extra": Payload(mark)}, file)
    with pytest.raises(UsageError, match=r"holds more than weights: it needs \S*exec.*--trust"):
        load_model(f"robustbench/{SMALL},path={file}")
    assert not mark.exists()
    module, _ = load_model(f"robustbench/{SMALL},path={file}", trust=True)
    assert mark.exists()
    assert torch.equal(module.conv1.weight, network.conv1.weight)
    assert not trusted()


def test_trust_is_an_option_of_the_command_line_and_of_evaluate(tmp_path, monkeypatch):
    """A run refuses the same file that it evaluates with --trust; the network then is the one in the file."""
    monkeypatch.chdir(tmp_path)
    _, network = small(6)
    mark = tmp_path / "ran"
    torch.save({"state_dict": network.state_dict(), "extra": Payload(mark)}, "net.pt")
    x = torch.rand(2, 3, 32, 32)
    y = logits(network, x).argmax(1)
    np.savez("images.npz", x=x.numpy(), y=y.numpy())
    model = f"robustbench/{SMALL},path=net.pt"
    asked = ["eval", "--model", model, "--dataset", "./images.npz", "--attack", "fgsm", "--quiet", "--tile", "2"]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 2
    assert "--trust" in refused.stderr
    assert not mark.exists()
    done = CliRunner().invoke(main, [*asked, "--trust", "--out", "run"])
    assert done.exit_code == 0, done.stderr
    assert mark.exists()
    assert "WRONG" not in load_run(Path("run")).samples["status"].tolist()  # it is the network of the file
    with pytest.raises(UsageError, match="--trust"):
        evaluate(model, (x, y), "fgsm")


def test_an_evaluation_decides_between_networks_of_one_name():
    """A name of two data sets: the evaluation's says which, and the labels fit its classes."""
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([3, 99])
    record = evaluate("robustbench/Hendrycks2020AugMix_WRN:weights=random", Pair(x, y, "cifar100", 100), "fgsm", tile=2)
    assert record.n == 2
    with pytest.raises(UsageError, match="several networks"):
        evaluate("robustbench/Hendrycks2020AugMix_WRN:weights=random", Pair(x, y, "mine", 100), "fgsm")


def test_a_whole_network_in_a_pickle_is_loaded_when_trusted(tmp_path):
    _, network = small(4)
    file = tmp_path / "net.pt"
    torch.save(network, file)
    with pytest.raises(UsageError, match="Modas2021PRIMEResNet18"):
        load_model(f"robustbench/{SMALL},path={file}")
    module, _ = load_model(f"robustbench/{SMALL},path={file}", trust=True)
    assert torch.equal(module.conv1.weight, network.conv1.weight)


def test_weights_must_fit(tmp_path):
    entry, network = small(5)
    state = network.state_dict()
    for changed, said in (
        ({k: v for k, v in state.items() if k != "conv1.weight"}, r"missing: conv1\.weight"),
        ({**state, "more": torch.ones(1)}, "unexpected: more"),
        ({**state, "conv1.weight": torch.ones(1)}, r"of another shape: conv1\.weight"),
        ({k: v for k, v in state.items() if k != "mu"}, "missing: mu"),  # robustbench is strict here
        ({"model.conv1.weight": torch.ones(1), "conv1.weight": torch.ones(1)}, "two weights"),
        ({"a": 1}, "a dict of a, not a state dict"),
        (torch.ones(1), "Tensor, not a state dict"),
    ):
        with pytest.raises(UsageError, match=said):
            weights.fill(network, entry, [changed])


def test_only_the_normalisation_may_be_missing_and_that_is_told(tmp_path):
    """Where robustbench is not strict, it would load a network without any weights; we do not."""
    torch.manual_seed(0)
    entry = find("Hendrycks2020AugMix_WRN")
    network = library.construct(entry)
    state = {f"module.{k}": v for k, v in network.state_dict().items() if k not in ("mu", "sigma")}
    file = tmp_path / "net.pt"
    torch.save({"state_dict": {**state, "module.scores": torch.ones(1)}}, file)
    module, card = load_model(f"robustbench/{entry.name}:dataset=cifar10,path={file}")
    assert torch.equal(module.conv1.weight, network.conv1.weight)
    assert "not in the file, as the architecture has them: mu, sigma" in card.notes
    assert "in the file and not used: scores" in card.notes
    assert card.mean == (0.5, 0.5, 0.5)
    for left in ({}, {"module.fc.bias": state["module.fc.bias"]}):
        with pytest.raises(UsageError, match=r"state dict|missing"):
            weights.fill(network, entry, [left])


def test_the_last_of_two_states_is_taken(tmp_path):
    torch.manual_seed(0)
    entry = find("Andriushchenko2020Understanding")
    network = library.construct(entry)
    best = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    weights.fill(other := library.construct(entry), entry, [{"best": best, "last": network.state_dict()}])
    assert torch.equal(other.conv1.weight, network.conv1.weight)


def test_imagenet_networks_stand_behind_their_normaliser():
    torch.manual_seed(0)
    entry = find("Salman2020Do_R18", "imagenet")
    network = library.construct(entry)
    state = {f"module.model.{k}": v for k, v in network.model.state_dict().items()}
    other = library.construct(entry)
    told = weights.fill(other, entry, [{"state_dict": state}])
    assert "normalize.mean, normalize.std" in told[0]
    assert torch.equal(other.model.conv1.weight, network.model.conv1.weight)


def test_timm_hosted_networks_are_fetched_from_where_they_are_registered():
    for name, dataset, host in (
        ("Debenedetti2022Light_XCiT-S12", "cifar10", "https://github.com/RobustBench/"),
        ("Tian2022Deeper_DeiT-B", "imagenet", "https://github.com/RobustBench/"),
        ("AlexNet", "imagenet", "https://download.pytorch.org/"),
        ("Standard_R50", "imagenet", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    ):
        (remote,) = weights.remotes(find(name, dataset))
        assert remote.urls[0].startswith(host)
    hosted = [entry for entry in library.entries() if entry.hosted]
    assert len(hosted) == 12
    assert all(remote.urls for entry in library.entries() for remote in weights.remotes(entry))


def test_a_timm_hosted_network_is_loaded(tmp_path):
    torch.manual_seed(0)
    entry = find("Debenedetti2022Light_XCiT-S12")
    network = library.construct(entry)
    file = tmp_path / "net.pt"
    torch.save({"model": network.model.state_dict()}, file)
    module, card = load_model(f"robustbench/{entry.name}:dataset=cifar10,path={file}")
    assert torch.equal(module.model.head.weight, network.model.head.weight)
    assert "normalize.mean" in card.notes


class Mixed(nn.Module):
    """The skeleton of Bai2023Improving."""

    def __init__(self):
        super().__init__()
        self.comp_model = nn.Module()
        self.comp_model.models = nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 2)])
        self.comp_model.policy_net = nn.Linear(4, 1)
        self.comp_model.bn = nn.BatchNorm1d(1, affine=False)


class Nuts(nn.Module):
    """The skeleton of Bai2024MixedNUTS."""

    def __init__(self):
        super().__init__()
        self.std_model, self.rob_model = nn.Linear(2, 2), nn.Linear(3, 2)


class Deck(nn.Module):
    """The skeleton of the other ensembles."""

    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList([nn.Linear(2, 2) for _ in range(6)])


def prefixed(module):
    return {f"module.{name}": value for name, value in module.state_dict().items()}


def test_each_file_of_an_ensemble_goes_to_its_member():
    for entry, kind, files in (
        (
            find("Bai2023Improving_edm", "cifar100"),
            Mixed,
            lambda m: [
                prefixed(m.comp_model.models[0]),
                {"state_dict": prefixed(m.comp_model.models[1])},
                {"model": m.comp_model.policy_net.state_dict(), "bn": m.comp_model.bn.state_dict()},
            ],
        ),
        (find("Bai2024MixedNUTS"), Nuts, lambda m: [prefixed(m.std_model), prefixed(m.rob_model)]),
        (find("Diffenderfer2021Winning_LRR_CARD_Deck"), Deck, lambda m: [prefixed(one) for one in m.models]),
    ):
        given, made = kind(), kind()
        weights.fill(made, entry, files(given))
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), given.parameters(), strict=True)), entry.name
        with pytest.raises(UsageError, match="files of weights, not 1"):
            weights.fill(made, entry, files(given)[:1])
        places = [remote.place for remote in weights.remotes(entry)]
        assert len(set(places)) == len(entry.drive) == len(files(given))
        assert all(place.endswith(f".pt_m{i}.pt") for i, place in enumerate(places))
    with pytest.raises(UsageError, match="'model' and 'bn'"):
        weights.fill(Mixed(), find("Bai2023Improving_edm"), [{"w": torch.ones(1)}] * 3)


def test_the_error_for_an_ensemble_names_the_member():
    entry = find("Bai2024MixedNUTS")
    given = Nuts()
    with pytest.raises(UsageError, match=r"rob_model: the weights do not fit.*missing: bias"):
        weights.fill(Nuts(), entry, [given.std_model.state_dict(), {"weight": torch.zeros(2, 3)}])
