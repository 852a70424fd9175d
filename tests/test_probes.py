"""Probes on a network's layers: one pass for all, each by itself, fitted alike every time; and behind CrossMax."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from robustkit_defenses.crossmax import CrossMax
from robustkit_defenses.fit_probes import Fit, ProbeDone, fit_probes
from robustkit_defenses.gaussian_smoothing import GaussianSmoothing
from robustkit_defenses.layers import outputs_of
from robustkit_defenses.probes import Probes, load_probes, save_probes
from torch import nn

import robustkit
from benchmarks import kit
from robustkit import datasets
from robustkit.cli import main
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.models.wrapping import Prepared
from tests import needs, toys

LAYERS = ("one", "two", "head.0")


class Net(nn.Module):
    """Two convolutions and a head; its ReLU writes into what it is given."""

    def __init__(self, seed=1):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(seed * 1000 + p.numel())) * 0.5
        self.passes = {"one": 0, "two": 0}
        for name in self.passes:
            getattr(self, name).register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name):
        self.passes[name] += 1

    def forward(self, x):
        return self.head(self.relu(self.two(self.relu(self.one(x)))).mean((2, 3)))


def images(n=40, side=8, seed=0):
    return torch.rand(n, 3, side, side, generator=toys.seeded(seed))


def labelled(n=40, seed=0):
    """Images whose class is their brightest quarter: what a linear probe of pixels can tell."""
    x, y = images(n, seed=seed), torch.arange(n) % 4
    for i in range(n):
        top, left = divmod(int(y[i]), 2)
        x[i, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1
    return x.clamp(0, 2) / 2, y


def fitted(network=None, layers=LAYERS, fit=None, **more):
    return fit_probes(
        network or Net().eval(), datasets.resolve(labelled()), layers, fit or Fit(epochs=8, rate=0.02), **more
    )


def test_one_pass_gives_what_each_member_gives_alone():
    network = Net().eval()
    probed, x = fitted(network), images()
    network.passes.update(one=0, two=0)
    logits, z = probed.forward_with_members(x)
    assert network.passes == {"one": 1, "two": 1}
    assert z.shape == (4, 40, 4)
    torch.testing.assert_close(logits, z.mean(0))
    for member, alone in zip(z, probed.members(), strict=True):
        assert torch.equal(member, alone(x))
    assert torch.equal(z[-1], network(x))


def test_a_member_and_the_first_ones_take_no_more_of_the_pass_than_they_need():
    network = Net().eval()
    probed, x = fitted(network), images(5).requires_grad_(True)
    z = probed.forward_with_members(x)[1]
    network.passes.update(one=0, two=0)
    assert torch.equal(probed.members()[0](x), z[0])
    assert torch.equal(probed.first_members(x, 1), z[:1])
    assert network.passes == {"one": 2, "two": 0}
    assert torch.equal(probed.first_members(x, 4), z)
    early = CrossMax().protect(probed).surrogates()["early"]
    network.passes.update(one=0, two=0)
    torch.testing.assert_close(early(x), z[:3].mean(0))
    (alone,) = torch.autograd.grad(probed.members()[0](x).sum(), x)
    (joint,) = torch.autograd.grad(probed.forward_with_members(x)[1][0].sum(), x)
    torch.testing.assert_close(alone, joint)
    assert alone.flatten(1).abs().sum(1).gt(0).all()
    assert not network.one._forward_hooks or len(network.one._forward_hooks) == 1  # only this test's own stays


def test_what_the_next_layer_writes_into_is_seen_as_it_was():
    network, x = Net().eval(), images(3)
    outputs, _ = outputs_of(network, ["one"], x)
    torch.testing.assert_close(outputs["one"], network.one(x))
    assert (outputs["one"] < 0).any()  # the ReLU behind it works in place


def test_fitting_learns_changes_nothing_of_the_backbone_and_is_the_same_for_a_seed():
    network = Net().eval()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    done: list[ProbeDone] = []
    state = torch.random.get_rng_state()
    first = fitted(network, layers=("two", "one"), on_event=done.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in first.probes.parameters())
    assert first.layers == ("one", "two")  # in the order of the pass
    assert [(event.layer, event.done, event.total) for event in done] == [("one", 1, 2), ("two", 2, 2)]
    x, y = labelled(seed=5)
    assert (first.members()[0](x).argmax(1) == y).double().mean() > 0.9
    assert done[0].accuracy > 0.9
    again, other = fitted(Net().eval()), fitted(Net().eval(), fit=Fit(epochs=8, rate=0.02, seed=1))
    for one, two in zip(fitted(network).probes.parameters(), again.probes.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(again.probes[0].linear.weight, other.probes[0].linear.weight)


def test_a_probe_is_flat_normed_and_linear():
    probed, x = fitted(layers=("two",)), images(7)
    probe, values = probed.probes[0], probed.backbone.two(probed.backbone.one(x).relu()).flatten(1)
    normed = (values - probe.norm.running_mean) / (probe.norm.running_var + probe.norm.eps).sqrt()
    expected = (normed * probe.norm.weight + probe.norm.bias) @ probe.linear.weight.T + probe.linear.bias
    torch.testing.assert_close(probed.members()[0](x), expected, rtol=1e-4, atol=1e-4)


def test_pooling_makes_a_probe_smaller_and_fit_for_other_sizes():
    probed = fitted(layers=("one",), fit=Fit(pool=2, epochs=2))
    assert probed.probes[0].norm.num_features == 6 * 4
    assert probed(images(3, side=12)).shape == (3, 4)


def test_the_backbone_stays_in_eval_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4)).eval()
    probed = fit_probes(network, datasets.resolve(labelled()), ["1"], Fit(epochs=1))
    before = network[1].running_mean.clone()
    probed.train()(images())
    assert probed.probes[0].training
    assert torch.equal(network[1].running_mean, before)


def test_the_file_gives_the_same_probes_again_all_or_some(tmp_path):
    network = Net().eval()
    probed, file, x = fitted(network), tmp_path / "probes.safetensors", images()
    save_probes(probed, file)
    assert [path.name for path in tmp_path.iterdir()] == ["probes.safetensors"]
    z = probed.forward_with_members(x)[1]
    assert torch.equal(load_probes(network, file).forward_with_members(x)[1], z)
    some = Probes(str(file), layers=("head.0", "one")).protect(network)
    assert some.layers == ("one", "head.0")
    assert torch.equal(some.forward_with_members(x)[1], z[[0, 2, 3]])
    behind = Prepared(nn.Identity(), network).eval()  # a name may leave out what stands in front
    assert torch.equal(load_probes(behind, file).forward_with_members(x)[1], z)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    network, file = Net().eval(), tmp_path / "probes.safetensors"
    save_probes(fitted(network, layers=("one", "two")), file)
    with pytest.raises(UsageError, match="other weights"):
        load_probes(Net(seed=2).eval(), file)
    with pytest.raises(UsageError, match="has none on head; it has them on one, two"):
        load_probes(network, file, ["one", "head"])
    with pytest.raises(UsageError, match="no file"):
        load_probes(network, tmp_path / "other")
    with pytest.raises(UsageError, match="weights is needed"):
        Probes().protect(network)
    (tmp_path / "text").write_text("probes")
    with pytest.raises(UsageError, match="is no file of probes"):
        load_probes(network, tmp_path / "text")


def test_layers_that_cannot_be_had_are_refused_with_those_there_are():
    network = Net().eval()
    with pytest.raises(UsageError, match=r"no layer called 'on'; did you mean one.* There are: head, head.0.*, two"):
        fitted(network, layers=("on",))
    with pytest.raises(UsageError, match="named twice"):
        fitted(network, layers=("one", "one"))
    with pytest.raises(UsageError, match="more than once"):
        fitted(network, layers=("relu",))
    with pytest.raises(UsageError, match="There are"):
        fitted(network, layers=())
    with pytest.raises(UsageError, match="several layers are called '0'"):
        fitted(
            nn.Sequential(OrderedDict(a=nn.Sequential(nn.Flatten()), b=nn.Sequential(nn.Linear(192, 4)))).eval(), ["0"]
        )
    with pytest.raises(UsageError, match="training mode"):
        fitted(Net().train())
    unused = Net().eval()
    unused.other = nn.Linear(2, 2).eval()
    with pytest.raises(UsageError, match="does not come by the layer other"):
        fitted(unused, layers=("other",))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"rate": 0}, {"batch": 1}, {"pool": -1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError, match="fit_probes"):
        Fit(**wrong)


def network_and_file(folder):
    network, file = Net().eval(), folder / "probes.safetensors"
    save_probes(fitted(network), file)
    return network, file


def test_layers_are_a_plus_list_in_a_spec_and_defenses_too(tmp_path):
    one, two = Probes("p", ("one", "two")), CrossMax("kth")
    assert [named.defense for named in defended.resolve("probes:weights=p,layers=one+two")] == [one]
    for text in (
        "(probes:weights=p,layers=one+two)+crossmax:by=kth",
        "probes:layers=(one+two),weights=p+crossmax:by=kth",
    ):
        assert [named.defense for named in defended.resolve(text)] == [one, two]


def make():
    return Net().eval()


def test_what_cannot_be_run_is_refused_before_the_clean_pass(tmp_path):
    _, file = network_and_file(tmp_path)
    told = []
    for defenses, x, message in (
        (["crossmax"], labelled()[0], "crossmax joins the members"),
        ([f"probes:weights={file},layers=thre"], labelled()[0], "no layer called 'thre'"),
        ([f"probes:weights={file}", "crossmax"], images(side=12), "images of the size that it was fitted on"),
        (["multires"], images(side=8), "multires: .* 32 pixels are more than these images of 8×8 have"),
    ):
        y = torch.zeros(len(x), dtype=torch.long)
        with pytest.raises(UsageError, match=message):
            robustkit.evaluate(
                Net().eval(), (x, y), "fgsm", defense=defenses, eps=0.1, doctor=False, on_event=told.append
            )
    assert told == []


def test_on_the_command_line_it_is_one_line(tmp_path, monkeypatch):
    _, file = network_and_file(tmp_path)
    x, y = labelled()
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    arguments = ["eval", "--model", "python/tests.test_probes.make", "--dataset", str(tmp_path / "data.npz"), "--quiet"]
    for defense, wanted in (
        (f"probes:weights={file},layers=on", "no layer called 'on'; did you mean one? There are: head, head.0, "),
        ("crossmax", "--defense probes:weights="),
        ("probes", "weights is needed"),
    ):
        done = CliRunner().invoke(main, [*arguments, "--defense", defense, "--out", str(tmp_path / "run")])
        assert done.exit_code == 2, done.output
        assert wanted in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_the_spec_of_a_self_ensemble_names_it_and_its_noise_is_drawn_once(tmp_path):
    network, file = network_and_file(tmp_path)
    defenses = [f"probes:weights={file},layers=one+two", "crossmax:by=kth"]
    record = robustkit.evaluate(network, labelled(), "fgsm", defense=defenses, eps=0.05, doctor=False)
    assert record.job["defense"] == f"(probes:weights={file},layers=(one+two))+(crossmax:by=kth)"
    noisy = GaussianSmoothing(sigma=0.5, draws=1).protect(network)
    x = images(6)
    once, twice = (load_probes(noisy, file, share_draw=share) for share in (True, False))
    network.passes.update(one=0, two=0)
    torch.manual_seed(0)
    logits = once.forward_with_members(x)[1][-1]
    assert network.passes["one"] == 1
    torch.manual_seed(0)
    assert torch.equal(noisy(x), logits)
    torch.manual_seed(0)
    assert not torch.equal(twice.forward_with_members(x)[1][-1], logits)
    assert network.passes["one"] == 4
    assert once.randomised
    assert all(member.randomised for member in once.members())


@pytest.mark.slow
@needs.kit
def test_a_self_ensemble_of_a_kit_network_looks_robust_and_is_not(tmp_path):
    """Linf 2/255: direct APGD against adversarials of the mean of the same logits and of the early probes."""
    network, n = kit.model("cifar10_resnet56_std"), 1500
    x, y = kit.images("cifar10_train_batch1")
    pixels = torch.from_numpy(x[:n]).permute(0, 3, 1, 2).float() / 255
    layers = ("layer2.2", "layer2.5", "layer2.8", "layer3.1", "layer3.3", "layer3.5", "layer3.7")
    data = datasets.resolve((pixels, torch.from_numpy(y[:n])))
    save_probes(fit_probes(network, data, layers, Fit(pool=4, epochs=8, rate=1e-3)), tmp_path / "probes.safetensors")
    defenses = [f"probes:weights={tmp_path / 'probes.safetensors'}", "crossmax:by=kth"]
    direct, mean, early = (
        robustkit.evaluate(network, kit.cifar10(range(50)), attack, defense=defenses, eps="2/255", tile=8, doctor=False)
        for attack in (
            "apgd:steps=30",
            "surrogate-swap:only=mean-logits,steps=30,direct=0",
            "surrogate-swap:only=early,steps=30,direct=0",
        )
    )
    print(direct.summary(), mean.summary(), early.summary(), sep="\n")
    assert float(direct.robust_accuracy) > 0.3
    assert float(mean.robust_accuracy) < 0.1
    assert float(early.robust_accuracy) < float(direct.robust_accuracy) - 0.15
