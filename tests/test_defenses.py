"""Inference-time defenses: what they do forwards, what they pass back, what they declare."""

import pytest
import torch
from robustkit_defenses.bit_depth import BitDepth
from robustkit_defenses.contextual_fusion import train_fusion
from robustkit_defenses.crossmax import CrossMax, joined
from robustkit_defenses.gaussian_smoothing import GaussianSmoothing
from robustkit_defenses.jpeg import Jpeg
from robustkit_defenses.median import Median
from robustkit_defenses.multires import MultiRes
from robustkit_defenses.probes import Probe, Probed
from robustkit_defenses.random_resize_pad import RandomResizePad
from torch import nn

from robustkit import plugins
from robustkit.api import Defense, ThreatModel
from robustkit.datasets import Pair
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.testing import attack_batch
from tests import fallen, toys

COLOUR_ONLY = {"raw-isp"}


class Net(nn.Module):
    """A small network for images of any size."""

    def __init__(self, channels=3, seed=1):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(6, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(seed * 100 + p.numel())) * 0.4

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Three(nn.Module):
    def __init__(self, channels=3, n=3):
        super().__init__()
        self.networks = nn.ModuleList(Net(channels, seed) for seed in range(n))

    def members(self):
        return list(self.networks)

    def forward(self, x):
        return sum(network(x) for network in self.networks) / len(self.networks)


def images(n=4, channels=3, height=10, width=12):
    return torch.rand(n, channels, height, width, generator=toys.seeded(0))


def fused(channels):
    data = Pair(images(40, channels), torch.arange(40) % 4, classes=4)
    return train_fusion(Net(channels), Net(channels, seed=2), data)


def protected(name, channels=3, folder=None):
    if name in fallen.NAMES:
        return fallen.made(name, folder, channels).protect(fallen.network(name, channels))
    if name == "contextual-fusion":  # around the one network that its head was fitted on: tests/test_fusion.py
        return fused(channels)
    settings = plugins.load("defenses", name)()
    assert isinstance(settings, Defense)
    if name == "probes":  # whose file is made in tests/test_probes.py
        return Probed(Net(channels), ["conv"], [Probe(6, 4, pool=1)]).eval()
    if name == "multires":
        return MultiRes(resolutions=(10, 8, 5, 4)).protect(Net(4 * channels))
    return settings.protect(Three(channels) if name == "crossmax" else Net(channels).eval())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", plugins.table("defenses"))
def test_every_defense_answers_logits_lets_gradients_through_and_says_whether_it_is_random(name, channels, tmp_path):
    module, x = protected(name, channels, tmp_path), images(channels=channels).requires_grad_(True)
    assert not module.training
    if name in COLOUR_ONLY and channels == 1:
        with pytest.raises(UsageError, match="3 channels"):
            module(x)
        return
    torch.manual_seed(0)
    first, second = module(x), module(x)
    torch.manual_seed(0)
    again = module(x)
    assert first.shape == (4, 4)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert torch.equal(first, second) != bool(getattr(module, "randomised", False))
    passed = torch.zeros(4, dtype=torch.bool)
    for outputs in (first, *(stand_in(x) for stand_in in capabilities.surrogates(module).values())):
        if outputs.requires_grad:  # of the fallen some pass nothing themselves
            passed |= torch.autograd.grad(outputs[:, 0].sum(), x)[0].flatten(1).abs().sum(1).gt(0)
    assert passed.all()


@pytest.mark.parametrize("name", ["jpeg", "bit-depth", "median", "random-resize-pad", "raw-isp"])  # before any
def test_what_the_network_offers_stays_on_offer(name):
    module = plugins.load("defenses", name)().protect(CrossMax().protect(Three()))
    assert len(module.members()) == 3
    assert {"mean-logits", "mean-log-softmax", "member-1"} <= set(module.surrogates())
    assert module.forward_with_members(images())[1].shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["jpeg", "bit-depth", "median", "raw-isp"])
def test_an_image_does_not_see_the_others(name):
    module, x = protected(name), images()
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]))


def test_bit_depth_rounds_and_passes_the_gradient_on():
    step, x = BitDepth(bits=1).protect(nn.Identity()), torch.tensor([[[[0.1, 0.4, 0.6, 1.0]]]], requires_grad=True)
    out = step(x)
    assert out.flatten().tolist() == [0, 0, 1, 1]
    (grad,) = torch.autograd.grad((out * torch.tensor([1.0, 2, 3, 4])).sum(), x)
    assert grad.flatten().tolist() == [1, 2, 3, 4]
    levels = (images() * 255).round() / 255
    assert torch.equal(BitDepth(bits=8).protect(nn.Identity())(levels), levels)


def test_jpeg_of_high_quality_is_near_and_of_low_quality_far():
    smooth = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    far, near = ((Jpeg(quality=q).compress(smooth) - smooth).abs().mean() for q in (5, 95))
    assert near < 0.01 < far
    one = Jpeg().compress(images(channels=1))
    assert one.shape == (4, 1, 10, 12)
    with pytest.raises(UsageError, match="channels"):
        Jpeg().compress(images(channels=4))


def test_the_median_removes_a_single_bright_pixel_and_keeps_an_edge():
    x = torch.zeros(1, 1, 5, 6)
    x[..., 3:], x[0, 0, 2, 1] = 0.5, 1.0
    expected = torch.zeros(1, 1, 5, 6)
    expected[..., 3:] = 0.5
    assert torch.equal(Median().protect(nn.Identity())(x), expected)


def test_resizing_keeps_the_size_or_gives_the_frame():
    x = images(height=20, width=30)
    assert RandomResizePad().protect(nn.Identity())(x).shape == x.shape
    framed = RandomResizePad(restore=False).protect(nn.Identity())(torch.ones_like(x))
    assert framed.shape[2:] == (22, 33)
    covered = framed[:, 0].gt(0.5).sum((1, 2))
    assert (covered >= 20 * 30).all()
    assert len(covered.unique()) > 1


def test_smoothing_averages_probabilities_or_counts_votes():
    torch.manual_seed(0)
    module, x = Net().eval(), images()
    mean = GaussianSmoothing(sigma=1e-6, draws=5).protect(module)(x)
    torch.testing.assert_close(mean.softmax(1), module(x).softmax(1))
    votes = GaussianSmoothing(draws=7, by="vote").protect(module)
    assert votes(x).sum(1).tolist() == [7] * 4
    assert set(votes.surrogates()) == {"mean-probs"}


def test_multires_stacks_resolutions_and_its_noise_is_of_the_preset():
    x = torch.full((2, 3, 32, 32), 0.5)
    for preset, brighter in (("paper", False), ("notebook", True)):
        torch.manual_seed(0)
        stack = MultiRes(preset=preset).protect(nn.Identity())(x)
        assert stack.shape == (2, 12, 32, 32)
        assert (stack.mean() > 0.6) == brighter  # uniform noise on [0,1] adds 0.1 at each of two places
    plain = MultiRes(noise=0.0, jitter=0, resolutions=(32,)).protect(nn.Identity())(x)
    torch.testing.assert_close(plain, x, atol=1e-4, rtol=0)


def test_multires_by_hand():
    x = images(2, height=6, width=6)
    for preset in ("paper", "notebook"):
        torch.manual_seed(0)
        stack = MultiRes(preset=preset, noise=0.0, jitter=0, resolutions=(6, 3)).protect(nn.Identity())(x)
        torch.manual_seed(0)
        expected = []
        for size in (6, 3):
            first = torch.rand(2, 1, 1, 1)
            if preset == "paper":
                colour, contrast = 0.5 + first / 2, 0.7 + 0.8 * torch.rand(2, 1, 1, 1)
            else:
                contrast = colour = torch.linspace(0.5, 1.0, 100)[(first * 100).long()]
            torch.randint(0, 1, (2, 2))  # the shifts
            gray = (x * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1).mean((1, 2)).view(2, 1, 1, 1)
            z = (contrast * x + (1 - contrast) * gray).clamp(0, 1)
            z = colour * z + (1 - colour) * z.mean(1, keepdim=True)
            small = nn.functional.interpolate(z, (size, size), mode="bicubic", align_corners=False)
            for like in (small, z):  # the noise, of scale 0
                torch.rand_like(like) if preset == "notebook" else torch.randn_like(like)
            expected.append(nn.functional.interpolate(small, (6, 6), mode="bicubic", align_corners=False).clamp(0, 1))
        torch.testing.assert_close(stack, torch.cat(expected, 1))


def test_multires_jitter_is_a_circular_shift_for_each_image_and_resolution():
    x = torch.zeros(64, 1, 9, 9)
    x[:, :, 4, 4] = 1
    torch.manual_seed(0)
    stack = MultiRes(noise=0.0, jitter=3, resolutions=(9, 9)).protect(nn.Identity())(x)
    places = stack.flatten(2).argmax(2)
    shifts = torch.stack([places // 9, places % 9]) - 4
    assert (shifts.abs() <= 3).all()
    assert shifts.min() == -3
    assert shifts.max() == 3
    assert not torch.equal(places[:, 0], places[:, 1])


def test_multires_prepares_the_stack_as_the_network_expects_it():
    x = torch.full((1, 3, 8, 8), 0.5)
    made = MultiRes(noise=0.0, jitter=0, resolutions=(8, 4), resize=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.25))
    stack = made.protect(nn.Identity())(x)
    assert stack.shape == (1, 6, 16, 16)
    expected = torch.tensor([0, 0.2, 0.8] * 2).view(1, 6, 1, 1).expand(1, 6, 16, 16)
    torch.testing.assert_close(stack, expected, atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match="mean has 3 values, these images 1 channels"):
        made.protect(nn.Identity())(x[:, :1])
    with pytest.raises(UsageError, match="32 pixels are more than these images of 8×8"):
        MultiRes().protect(nn.Identity())(x)
    with pytest.raises(UsageError, match="std"):
        MultiRes(mean=(0.5,))


def test_crossmax_by_hand():
    z = torch.tensor([[[3.0, 1.0, 0.0]], [[0.0, 2.0, 1.0]], [[1.0, 1.0, 5.0]]])
    # less each member's maximum: (0,-2,-3), (-2,0,-1), (-4,-4,0); less each class's: (0,-2,-3), (-2,0,-1), (-4,-4,0)
    assert joined(z, CrossMax()).tolist() == [[-2, -2, -1]]
    assert joined(z, CrossMax(by="kth", k=1)).tolist() == [[0, 0, 0]]
    assert joined(z, CrossMax(by="kth", k=3)).tolist() == [[-4, -4, -3]]
    lower = joined(torch.tensor([[[0.0, -1.0]], [[0.0, -3.0]]]), CrossMax())
    assert lower.tolist() == [[0, -2]]  # of an even number the lower middle one


def test_crossmax_agrees_with_the_toy_of_the_truth_tests():
    networks = [Net(seed=s).eval() for s in range(4)]
    ensemble = Three(n=4)
    ensemble.networks = nn.ModuleList(networks)
    torch.testing.assert_close(CrossMax().protect(ensemble)(images()), toys.CrossMaxMedian(networks)(images()))
    assert "early" in CrossMax().protect(ensemble).surrogates()


def test_crossmax_needs_members():
    with pytest.raises(UsageError, match="ensemble/"):
        CrossMax().protect(Net())
    with pytest.raises(UsageError, match="3 members"):
        CrossMax(by="kth", k=4).protect(Three())


def test_an_attack_through_the_rounding_finds_what_one_without_it_misses():
    network, x = Flat().eval(), images(24)
    y = BitDepth(bits=3).protect(network)(x).argmax(1)
    from robustkit_attacks.pgd import PGD

    through = attack_batch(PGD(steps=20), BitDepth(bits=3).protect(network), x, y, ThreatModel("linf", 0.3))
    blocked = attack_batch(PGD(steps=20), Rounded(network), x, y, ThreatModel("linf", 0.3))
    assert through.broken.sum() > blocked.broken.sum() + 3


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(360, 4)
        self.fc.weight.data = torch.randn(4, 360, generator=toys.seeded(3))

    def forward(self, x):
        return self.fc(x.flatten(1) - 0.5)


class Rounded(nn.Module):
    """The rounding with the gradient that it truly has: zero."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 7).round() / 7 + 0 * x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jpeg(quality=0), lambda: BitDepth(bits=0), lambda: Median(size=2), lambda: RandomResizePad(scale=1.0),
        lambda: GaussianSmoothing(sigma=0), lambda: CrossMax(k=0), lambda: MultiRes(resolutions=()),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_a_defended_evaluation_says_so_and_differs_from_the_bare_one():
    import robustkit

    bare = robustkit.evaluate("digits-cnn", "digits", "fgsm", eps=0.1, n=40)
    defended = robustkit.evaluate("digits-cnn", "digits", "fgsm", defense=["bit-depth:bits=1", Median()], eps=0.1, n=40)
    assert bare.job["defense"] == ""
    assert defended.job["defense"] == "(bit-depth:bits=1)+(median)"
    assert defended.job["id"] != bare.job["id"]
    again = robustkit.evaluate("digits-cnn", "digits", "fgsm", defense=defended.job["defense"], eps=0.1, n=40)
    assert again.job["id"] == defended.job["id"]


@pytest.mark.parametrize("wrong", ["jpg", "jpeg:qualty=3", 7, "timm/jpeg"])
def test_what_is_no_defense_is_refused(wrong):
    from robustkit.models import defended

    with pytest.raises(UsageError):
        defended.resolve(wrong)


def test_the_card_of_crossmax_puts_the_evaluated_beside_the_claimed():
    from robustkit.cli import cards

    card = cards.defense("crossmax")
    assert "72 %" in card
    assert "11 % and 14 %" in " ".join(card.split())
    assert "median" in card


def test_a_callers_model_comes_back_in_its_mode_and_behind_a_defense_too():
    import robustkit

    model, x = Net().train(), images(8)
    model.conv.eval()
    robustkit.evaluate(model, (x, torch.zeros(8, dtype=torch.long)), "fgsm", defense="bit-depth", eps=0.1)
    assert model.training
    assert not model.conv.training


def test_crossmax_joins_members_behind_a_step():
    module = CrossMax().protect(BitDepth(bits=8).protect(Three()))
    levels = (images() * 255).round() / 255
    torch.testing.assert_close(module(levels), CrossMax().protect(Three())(levels))


class OwnNoise(nn.Module):
    """A network with a generator of its own."""

    randomised = True

    def __init__(self):
        super().__init__()
        self.net, self.generator = Net(), torch.Generator()

    def reseed(self, seed):
        self.generator.manual_seed(seed)

    def forward(self, x):
        return self.net(x) + torch.randn(len(x), 4, generator=self.generator)


@pytest.mark.parametrize("name", ["gaussian-smoothing", "random-resize-pad", "median"])
def test_reseeding_reaches_the_network_behind(name):
    module, x = plugins.load("defenses", name)().protect(OwnNoise()), images()

    def drawn():
        torch.manual_seed(0)
        module.reseed(3)
        return module(x)

    assert torch.equal(drawn(), drawn())


class Noise(nn.Module):
    def __init__(self, network, sigma):
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x):
        return self.network(x + self.sigma * torch.randn_like(x))


class Noisy:
    """A defense that is no dataclass: its settings cannot be read off it."""

    def __init__(self, sigma):
        self.sigma = sigma

    def protect(self, model):
        return Noise(model, self.sigma).eval()


def noisy(sigma: float):
    return Noisy(sigma)


def test_the_settings_of_a_defense_of_ones_own_are_part_of_the_run():
    import robustkit
    from robustkit.models import defended

    def run(sigma):
        return robustkit.evaluate(
            "digits-cnn", "digits", "fgsm", defense=f"python/tests.test_defenses.noisy:sigma={sigma}", eps=0.1, n=20
        )

    little, much = run(0.01), run(3.0)
    assert little.job["id"] != much.job["id"]
    assert little.job["defense"] == "python/tests.test_defenses.noisy:sigma=0.01"
    assert defended.resolve(little.job["defense"])
    with pytest.raises(UsageError, match="dataclass"):
        defended.resolve(Noisy(1.0))


def test_another_defense_is_no_smaller_eps_and_not_the_same_weights():
    import robustkit
    from robustkit.records import gate

    def run(defense, eps, **more):
        return robustkit.evaluate("digits-cnn", "digits", "fgsm", defense=defense, eps=eps, n=60, **more)

    first = run("median:size=5", 0.05)
    with pytest.raises(UsageError, match="defense differs"):
        run("bit-depth", 0.1, carry=first)
    verdict = gate.judge(first, run("bit-depth", 0.05), gate.parse_drop("0.5pp"))
    assert verdict.passed
