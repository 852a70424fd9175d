"""The recipe self-ensemble: the network first, then its probes, then CrossMax over both."""

import copy

import pytest
import torch
import torch.nn.functional as F
from robustkit_defenses.recipes.self_ensemble import SelfEnsemble
from torch import nn

import robustkit
from robustkit.datasets import load_dataset
from robustkit.errors import UsageError
from robustkit.models.sources import load_model
from robustkit.models.sources.normalized import normalized
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from robustkit.training.data import batches, held
from robustkit.training.recipes import Schedule, Task, Training
from robustkit.training.run import Request, train

FAST = {"data": "digits", "threads": 1, "check": 20, "check_robust": 1}
SMALL = {"noise": 0.1, "jitter": 1}


@pytest.fixture(scope="module")
def data():
    return held(load_dataset("digits:split=train"), torch.device("cpu"))


def normed():
    """A network with BatchNorm, for images of 1×8×8."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def training(settings, architecture=normed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = settings.build(Task(10, (1, 8, 8), architecture, load_model))
    network.train()
    return Training(network, [torch.optim.Adam(part.parameters(), lr=0.01) for part in settings.parts(network)])


def a_batch(data, epoch=0):
    return next(batches(data, Schedule(batch=32), 0, epoch))


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def normalised():
    """The same behind a mean and std for each of three channels, as sources of libraries put them."""
    network = normed()
    network[0] = nn.Conv2d(3, 4, 3, stride=2, bias=False)
    return normalized(network, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_what_normalises_three_channels_normalises_each_copy_of_them():
    with torch.random.fork_rng():
        network = SelfEnsemble(**SMALL).build(Task(10, (3, 8, 8), normalised, load_model))
    step = network.backbone.step
    assert step.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3] * 3)
    assert step.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4] * 3)
    assert SelfEnsemble(**SMALL).result(network)(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_an_architecture_that_does_not_take_the_stack_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = normed(), normed()

        def forward(self, x):
            return self.first(x) + self.again(x)

    with pytest.raises(UsageError, match="still does not take stacked images of 3 channels"):
        training(SelfEnsemble(**SMALL), Two)


def test_the_first_convolution_takes_all_copies_and_every_relu_has_a_probe():
    network = training(SelfEnsemble(**SMALL)).network
    assert network.stack.settings.resolutions == (8, 4, 2)
    first = network.backbone[0]
    assert (first.in_channels, first.out_channels, first.kernel_size, first.stride) == (3, 4, (3, 3), (2, 2))
    assert first.bias is None
    assert network.layers == ("2", "4")
    assert [probe.norm.num_features for probe in network.probes] == [4 * 9, 6 * 4]
    pooled = training(SelfEnsemble(layers=("4", "2"), pool=1, resolutions=(8, 4), **SMALL)).network
    assert pooled.layers == ("2", "4")  # in the order of a pass
    assert [probe.norm.num_features for probe in pooled.probes] == [4, 6]
    assert pooled.backbone[0].in_channels == 2


def test_what_it_cannot_build_is_refused():
    with pytest.raises(UsageError, match="2 layers and the network make too few members for k=4"):
        training(SelfEnsemble(k=4))
    with pytest.raises(UsageError, match="has no plain convolution"):
        training(SelfEnsemble(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU()))
    with pytest.raises(UsageError, match="no layer called 'conv9'"):
        training(SelfEnsemble(layers=("2", "conv9"), k=2))
    for wrong in ({"k": 0}, {"pool": -1}, {"backbone_epochs": -1}, {"noise": -0.1}):
        with pytest.raises(UsageError):
            SelfEnsemble(**wrong)


def test_the_network_learns_first_and_then_only_its_probes(data):
    settings = SelfEnsemble(backbone_epochs=1, **SMALL)
    under_way = training(settings)
    network = under_way.network
    before = state(network.backbone), state(network.probes)
    settings.step(under_way, a_batch(data, epoch=0))
    between = state(network.backbone), state(network.probes)
    assert same(before[1], between[1])
    assert not torch.equal(before[0]["0.weight"], between[0]["0.weight"])
    assert not torch.equal(before[0]["1.running_mean"], between[0]["1.running_mean"])
    settings.step(under_way, a_batch(data, epoch=1))
    assert same(between[0], state(network.backbone))  # its BatchNorm's statistics too
    assert network.backbone[1].training  # its mode is put back
    after = state(network.probes)
    assert not any(torch.equal(between[1][key], after[key]) for key in after if "weight" in key)


def test_a_step_moves_each_probe_as_if_it_were_alone(data):
    settings = SelfEnsemble(backbone_epochs=0, **SMALL)
    under_way, (batch,) = training(settings), [a_batch(data)]
    network = under_way.network
    alone = copy.deepcopy(network.probes)
    features = {}
    for name, module in network.backbone.named_children():
        module.register_forward_hook(
            lambda m, i, output, name=name: features.__setitem__(name, output.detach().clone())
        )
    loss = float(settings.step(under_way, batch)["loss"])
    losses = []
    for probe, layer in zip(alone, network.layers, strict=True):
        optimiser = torch.optim.Adam(probe.parameters(), lr=0.01)
        own = F.cross_entropy(probe(features[layer]), batch.y)
        own.backward()
        optimiser.step()
        losses.append(float(own.detach()))
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for key, value in alone.state_dict().items():
        assert torch.allclose(value, network.probes.state_dict()[key], atol=1e-6), key


def test_a_step_depends_on_no_global_generator_and_leaves_it_alone(data):
    settings, ends = SelfEnsemble(**SMALL), []
    for seed in (1, 2):
        under_way = training(settings)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        settings.step(under_way, a_batch(data))
        assert torch.equal(before, torch.random.get_rng_state())
        ends.append(state(under_way.network))
    assert same(*ends)


def test_the_result_is_crossmax_over_probes_and_network_behind_the_stack():
    settings = SelfEnsemble(**SMALL)
    network = training(settings).network
    module = settings.result(network).eval()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert module.randomised
    torch.manual_seed(0)
    logits, members = module.forward_with_members(x)
    assert members.shape == (3, 5, 10)
    torch.manual_seed(0)
    assert torch.equal(members[2], network.backbone.eval()(network.stack(x)))
    z = members - members.amax(2, keepdim=True)
    z = z - z.amax(0, keepdim=True)
    assert torch.equal(logits, z.sort(dim=0, descending=True).values[2])
    assert (logits <= 0).all()


def test_a_trained_folder_evaluates_by_its_name_as_a_randomised_ensemble(tmp_path):
    assert ARCHITECTURES["digits-cnn"]()[1].__class__ is nn.ReLU
    schedule = Schedule(epochs=2, batch=512)
    cards = [
        train(
            Request("self-ensemble:backbone_epochs=1,jitter=1", "digits-cnn", schedule=schedule, **FAST),
            tmp_path / name,
        )
        for name in ("a", "b")
    ]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    module, _ = load_model(str(tmp_path / "a"))
    assert module.randomised
    assert len(module.members()) == 4
    assert {"mean-logits", "early", "member-1"} <= set(module.surrogates())
    x, y = load_dataset("digits").batch(range(4))
    record = robustkit.evaluate(module, (x, y), "fgsm", eps=0.05, draws=3)
    assert record.n == 4
    assert record.job["draws"] == 3
