"""What DVERGE is made of: layer taps, feature distillation, the members' losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from robustkit_defenses.distilled_features import Distillation, distilled, diversity, others
from robustkit_defenses.taps import Tap, features, named_taps, taps_of
from torch import Tensor, nn

from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from tests import toys


class Residual(nn.Module):
    """conv-bn-relu-conv-bn, plus the input, relu: the first by one module in place, the second by a function."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


def images(n=6, seed=0, shape=(3, 6, 6)):
    return torch.rand(n, *shape, generator=toys.seeded(seed))


def statistics(net):
    return {key: value.clone() for key, value in net.state_dict().items() if "running" in key or "tracked" in key}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_taps_are_what_activations_receive_in_their_order_and_then_the_logits():
    net = network().train()
    before = statistics(net)
    taps = taps_of(net, images(1))
    assert taps == (Tap(1), Tap(2), Tap(3), Tap())
    assert [str(tap) for tap in taps] == ["activation 1", "activation 2", "activation 3", "output"]
    assert all(module.training for module in net.modules())
    assert same(before, statistics(net))


def test_features_at_a_tap_are_before_the_relu_and_the_pass_ends_there():
    net, x = network().eval(), images()
    stem = net[1](net[0](x))
    block = net[3]
    first = block.bn1(block.conv1(stem.relu()))
    added = block.bn2(block.conv2(first.relu())) + stem.relu()
    for tap, want in zip(taps_of(net, x), (stem, first, added, net(x)), strict=True):
        assert torch.equal(features(net, x, tap), want)
    ended = []
    net[6].register_forward_hook(lambda *_: ended.append(1))
    features(net, x, Tap(3))
    assert torch.equal(features(net, x, Tap(module="4")), net[4](added.relu()))
    assert not ended
    assert not net[4]._forward_hooks


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.GELU(), nn.SiLU(),
     nn.Mish(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), torch.relu, torch.relu_, torch.tanh, Tensor.relu,
     F.leaky_relu],
    ids=lambda activation: getattr(activation, "__name__", str(activation)),  # an address would differ by process
)  # fmt: skip
def test_an_activation_counts_once_however_it_is_called(activation):
    class Net(nn.Module):
        def forward(self, x):
            return activation(2 * x)

    x = images() - 0.5
    assert taps_of(Net(), x) == (Tap(1), Tap())
    assert torch.equal(features(Net(), x, Tap(1)), 2 * x)


@pytest.mark.parametrize(
    ("name", "taps"), [("digits-cnn", 4), ("scenes-cnn", 6), ("cifar-resnet8", 8), ("cifar-resnet20", 20)]
)
def test_our_networks_have_the_layers_of_the_paper(name, taps):
    net = ARCHITECTURES[name]().eval()
    x = torch.rand(2, *((1, 8, 8) if name == "digits-cnn" else (3, 32, 32)))
    found = taps_of(net, x)
    assert len(found) == taps
    if name == "cifar-resnet20":
        names = ["bn1", *(f"blocks.{i}.{part}" for i in range(9) for part in ("bn1", "sum")), "output"]
        for tap, named in zip(found, named_taps(net, names), strict=True):
            assert torch.equal(features(net, x, tap), features(net, x, named))


def test_layers_can_be_named_and_a_wrong_name_is_refused():
    net = network().eval()
    assert named_taps(net, ["0", "3.relu", "output"]) == (Tap(module="0"), Tap(module="3.relu"), Tap())
    with pytest.raises(UsageError, match=r"no layer called '3\.rely'; did you mean 3\.relu"):
        named_taps(net, ["3.rely"])
    with pytest.raises(UsageError, match="a pass over Sequential does not come by its activation 4"):
        features(net, images(), Tap(4))
    with pytest.raises(UsageError, match="has no activation such as a ReLU"):
        taps_of(toys.Linear(), torch.rand(1, 1, 4, 4))


def test_distillation_takes_the_steps_that_a_linear_network_has_in_closed_form():
    # f(z) = Wz, so the gradient of mean((Wz − Wt)²) is 2/F · Wᵀ(W(z − t)), for each row alone.
    net = toys.Linear(shape=(1, 3, 3), classes=4)
    source, target = images(5, 1, (1, 3, 3)), images(5, 2, (1, 3, 3))
    settings = Distillation(eps=0.2, steps=4, step_size=0.3, momentum=0.7)
    found = distilled(net, source, target, Tap(), settings)
    w = net.weight.detach().double().numpy()
    for row, (s, t) in enumerate(
        zip(source.flatten(1).double().numpy(), target.flatten(1).double().numpy(), strict=True)
    ):
        z, gathered = s.copy(), np.zeros_like(s)
        for _ in range(4):
            grad = 2 / 4 * w.T @ (w @ (z - t))
            gathered = 0.7 * gathered + grad / np.abs(grad).sum()
            z = np.clip(np.clip(z - 0.3 * 0.2 * np.sign(gathered), s - 0.2, s + 0.2), 0, 1)
        assert np.abs(found[row].flatten().numpy() - z).max() < 1e-6
    assert net.weight.grad is None
    # The projection was at work: somewhere the ball ends the walk, somewhere the box does.
    moved = (found - source).abs()
    assert (moved > 0.2 - 1e-6).any()
    assert ((found == 0) | (found == 1)).any()


def test_one_step_of_distillation_is_a_sign_step_towards_the_target():
    net = nn.Flatten()  # f(z) = z: every pixel steps towards the target's
    source, target = torch.tensor([[[[0.0, 0.5, 1.0, 0.5]]]]), torch.tensor([[[[1.0, 0.0, 0.0, 0.5]]]])
    found = distilled(net, source, target, Tap(), Distillation(eps=0.05, steps=1))
    assert torch.allclose(found, torch.tensor([[[[0.005, 0.495, 0.995, 0.5]]]]))
    found = distilled(net, source, target, Tap(), Distillation(eps=0.05, steps=100))
    assert torch.allclose(found, torch.tensor([[[[0.05, 0.45, 0.95, 0.5]]]]))


def test_the_defaults_are_the_papers():
    assert Distillation() == Distillation(eps=0.07, steps=10, step_size=0.1, momentum=1.0, faithful=False)
    for wrong in ({"eps": 0.0}, {"eps": 8.0}, {"steps": 0}, {"step_size": 0.0}, {"momentum": -1.0}):
        with pytest.raises(UsageError, match="dverge: eps is a share"):
            Distillation(**wrong)


def test_distilled_images_stay_in_the_ball_and_look_more_like_the_target_at_the_layer():
    net, source, target = network().eval(), images(8, 1), images(8, 2)
    for tap in taps_of(net, source):
        found = distilled(net, source, target, tap, Distillation())
        assert ThreatModel("linf", 0.07).contains(source, found).all()
        far = [
            (features(net, z, tap) - features(net, target, tap)).square().flatten(1).mean(1) for z in (source, found)
        ]
        assert (far[1] < far[0]).all()


def test_a_row_is_distilled_alone_unless_batch_statistics_join_the_rows():
    net, source, target = network().train(), images(4, 1), images(4, 2)
    tap = taps_of(net, source)[2]
    together = distilled(net, source, target, tap, Distillation())
    alone = torch.cat([distilled(net, source[i : i + 1], target[i : i + 1], tap, Distillation()) for i in range(4)])
    assert (together - alone).abs().max() < 1e-6
    joined = distilled(net, source, target, tap, Distillation(faithful=True))
    assert (joined - together).abs().max() > 1e-3


def test_only_the_faithful_mode_moves_batchnorms_running_statistics():
    net, source, target = network().train(), images(4, 1), images(4, 2)
    tap, before = taps_of(net, source)[1], statistics(net)
    distilled(net, source, target, tap, Distillation())
    assert same(before, statistics(net))
    assert net.training
    distilled(net, source, target, tap, Distillation(faithful=True))
    after = statistics(net)
    assert int(after["1.num_batches_tracked"]) == 11  # the target once and each of ten steps
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.equal(before["3.bn2.running_mean"], after["3.bn2.running_mean"])  # behind the layer


def test_a_members_loss_is_the_sum_over_all_others_and_not_over_itself():
    net, y = network(3).eval(), torch.arange(4) % 5
    distilled_by = [images(4, seed) for seed in range(3)]
    each = [F.cross_entropy(net(x), y) for x in distilled_by]
    for own in range(3):
        want = sum(loss for j, loss in enumerate(each) if j != own)
        assert torch.allclose(others(net, distilled_by, y, own), want)
    assert torch.allclose(others(net, distilled_by[:2], y, 0), each[1])


def test_diversity_is_the_mean_over_pairs_of_the_cross_losses():
    nets, y = [network(seed).eval() for seed in range(3)], torch.arange(4) % 5
    xs = [images(4, seed) for seed in range(3)]
    ce = [[float(F.cross_entropy(net(x), y).detach()) for x in xs] for net in nets]
    want = sum(ce[i][j] + ce[j][i] for i, j in ((0, 1), (0, 2), (1, 2))) / 6
    assert diversity(nets, xs, y) == pytest.approx(want, rel=1e-6)
