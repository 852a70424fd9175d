"""What every source does to images: normalisation and resizing, each once, inside the module."""

import pytest
import torch
from torch import nn

import robustkit
from robustkit.api import ModelCard
from robustkit.errors import UsageError
from robustkit.models.ensembles import Ensemble
from robustkit.models.sources import load_model
from robustkit.models.sources.normalized import Prepared, Resize, core, normalized, parse_mean_std, prepare
from tests.toys import Linear, seeded


def images(*shape):
    return torch.rand(*shape, generator=seeded(3))


class Noisy(nn.Module):
    randomised = True

    def __init__(self):
        super().__init__()
        self.seed = None

    def reseed(self, seed):
        self.seed = seed

    def surrogates(self):
        return {"mean": nn.Flatten()}

    def forward(self, x):
        return x.flatten(1)


def raw():
    return Linear((3, 4, 4))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ({"mean": "0.49/0.48/0.44", "std": "0.2/0.3/0.4"}, (0.49, 0.48, 0.44), (0.2, 0.3, 0.4)),
        ({"mean": "0.5", "std": "0.25"}, (0.5,), (0.25,)),
        ({"mean": "0+0+0", "std": "1/255+1/255+1/255"}, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
        ({"mean": "imagenet"}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"mean": "cifar10", "std": "1/1/1"}, (0.4914, 0.4822, 0.4465), (1, 1, 1)),
        ({"mean": "0/0/0", "std": "imagenet"}, (0, 0, 0), (0.229, 0.224, 0.225)),
        ({"mean": "mnist"}, (0.1307,), (0.3081,)),
    ],
)
def test_mean_and_std_are_read_as_written(text, mean, std):
    assert parse_mean_std(text) == (mean, std)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"mean": "0.5"}, "mean=0.5 alone is half a normalisation"),
        ({"std": "imagenet"}, "std=imagenet alone is half a normalisation"),
        ({"mean": "0.5/0.5", "std": "1/1/1"}, "mean has 2 and std 3 values"),
        ({"mean": "0.5", "std": "0"}, "std=0 must be positive"),
        ({"mean": "imagnet"}, "no preset called 'imagnet'; did you mean imagenet"),
        ({"mean": "0.5/x", "std": "1/1"}, "mean=0.5/x is no list of numbers"),
    ],
)
def test_a_normalisation_that_is_none_says_why(text, message):
    with pytest.raises(UsageError, match=message):
        prepare(raw(), ModelCard("toy"), text)


def test_normalisation_happens_once_and_the_card_tells_it():
    x, network = images(2, 3, 4, 4), raw()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    wanted = network((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    module, card = prepare(network, ModelCard("toy"), {"mean": "0.4/0.5/0.6", "std": "0.2/0.3/0.4"})
    assert torch.equal(module(x), wanted)
    assert (card.mean, card.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    # Over what a source has put inside: replaced, not done twice.
    again, card = prepare(normalized(network, (0.1,), (9.0,)), ModelCard("toy", mean=(0.1,), std=(9.0,)),
                          {"mean": "0.4/0.5/0.6", "std": "0.2/0.3/0.4"})  # fmt: skip
    assert torch.equal(again(x), wanted)
    assert card.mean == (0.4, 0.5, 0.6)
    assert core(again) is network
    with pytest.raises(UsageError, match="normalises inside already"):
        prepare(network, ModelCard("toy", mean=(0.5,)), {"mean": "imagenet"})


def test_resizing_is_inside_before_normalising_and_gradients_flow():
    x, network = images(2, 3, 9, 7).requires_grad_(), raw()
    module, card = prepare(network, ModelCard("toy", input_shape=(3, 4, 4)), {"resize": "4", "mean": "imagenet"})
    small = nn.functional.interpolate(x, (4, 4), mode="bilinear", antialias=True)
    wanted = normalized(network, *[(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)])(small)
    assert torch.equal(module(x), wanted)
    assert card.input_shape == ()
    (grad,) = torch.autograd.grad(module(x).square().sum(), x)
    assert grad.ne(0).all()
    assert torch.autograd.gradcheck(Resize((3, 2)), images(1, 1, 5, 4).double().requires_grad_())
    assert Resize((9, 7))(x) is x
    assert prepare(network, ModelCard("toy"), {"resize": "4x6"})[0].step.size == (4, 6)


@pytest.mark.parametrize("text", ["0", "-4", "big", "4x", "4x0", "4.5"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="is no image size; write resize=224"):
        prepare(raw(), ModelCard("toy"), {"resize": text})


def test_what_a_network_offers_the_harness_is_offered_through_the_steps():
    noisy = Prepared(Resize((2, 2)), normalized(Noisy(), (0.5,), (0.5,)))
    assert noisy.randomised
    noisy.reseed(7)
    assert core(noisy).seed == 7
    x = images(3, 3, 5, 5)
    assert torch.equal(noisy.surrogates()["mean"](x), noisy(x))
    assert noisy.members() == []
    assert noisy.forward_with_members(x)[1] is None
    pair = Ensemble([Linear((3, 4, 4), seed=1), Linear((3, 4, 4), seed=2)])
    module, _ = prepare(pair, ModelCard("pair"), {"resize": "4", "mean": "imagenet"})
    logits, members = module.forward_with_members(x)
    assert torch.equal(logits, module(x))
    assert torch.equal(members, torch.stack([member(x) for member in module.members()]))


def test_every_source_takes_resize_and_the_record_is_of_the_images_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net_here.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))\n"
    )
    x, y = images(4, 3, 9, 9), torch.arange(4)
    with pytest.raises(UsageError, match=r"shape \(3, 9, 9\): .*resize=8 in its spec resizes them inside the model"):
        robustkit.evaluate("python/my_net_here.make", (x, y), "pgd:steps=1", eps=0.1)
    record = robustkit.evaluate("python/my_net_here.make:resize=8", (x, y), "pgd:steps=1", eps=0.1)
    module, _ = load_model("python/my_net_here.make:resize=8")
    assert (record.samples["status"] != "WRONG").tolist() == (module(x).argmax(1) == y).tolist()


def test_the_card_decides_on_channels_and_flags_other_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_card_here.py").write_text(
        "from torch import nn\nfrom robustkit.api import ModelCard\n\ndef make(size: int):\n"
        "    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(5))\n"
        "    net = net if size == 8 else nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 5))\n"
        "    import torch\n    net(torch.zeros(1, 3, size, size))\n"
        "    return net, ModelCard('mine', input_shape=(3, size, size))\n"
    )
    x, y = images(4, 3, 9, 9), torch.arange(4)
    with pytest.raises(UsageError, match=r"takes images of 3 channels \(its card says 3×8×8.*are 1×9×9"):
        robustkit.evaluate("python/my_card_here.make:size=8", (x[:, :1], y), "pgd:steps=1", eps=0.1)
    with pytest.raises(UsageError, match=r"it is made for 3×6×6 \(its card\): resize=6 in its spec"):
        robustkit.evaluate("python/my_card_here.make:size=6", (x, y), "pgd:steps=1", eps=0.1)
    record = robustkit.evaluate("python/my_card_here.make:size=8", (x, y), "pgd:steps=1", eps=0.1)
    assert "image-size" in [flag["kind"] for flag in record.flags]
    record = robustkit.evaluate("python/my_card_here.make:size=9", (x, y), "pgd:steps=1", eps=0.1)
    assert "image-size" not in [flag["kind"] for flag in record.flags]
