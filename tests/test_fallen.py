"""The fallen: each forward against the sum written out here, what passes back, and what each dress gives away."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from robustkit_defenses.fallen import autoencoders, diffusion, fitted
from robustkit_defenses.fallen import tv_minimisation as tv
from robustkit_defenses.fallen.anti_adversary import AntiAdversary
from robustkit_defenses.fallen.binarised import Binarised
from robustkit_defenses.fallen.diffusion import Diffusion
from robustkit_defenses.fallen.ecoc import ECOC, codes
from robustkit_defenses.fallen.empir import EMPIR
from robustkit_defenses.fallen.hedge import Hedge
from robustkit_defenses.fallen.jump import Jump
from robustkit_defenses.fallen.k_wta import KWinners
from robustkit_defenses.fallen.lid import dimensionality
from robustkit_defenses.fallen.magnet import divergence
from robustkit_defenses.fallen.mixture import RandomMixture
from robustkit_defenses.fallen.noise import Noise
from robustkit_defenses.fallen.sap import SAP
from robustkit_defenses.fallen.surgery import trunk_and_head
from robustkit_defenses.fallen.thermometer import Thermometer
from robustkit_defenses.fallen.tv_minimisation import TVMinimisation
from robustkit_defenses.recipes.feature_scattering import sinkhorn
from torch import nn

from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.models.ensembles import Ensemble
from robustkit.models.sources import load_model, trained
from robustkit.training.loop import Loop, Watch
from robustkit.training.recipes import Schedule, Task
from tests import fallen, toys


def images(n=3, channels=1, height=10, width=12, seed=0):
    return torch.rand(n, channels, height, width, generator=toys.seeded(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fitted")


def in_dress(name, folder, dress, **more):
    return fallen.made(name, folder, dress=dress, **more).protect(fallen.network(name))


def seen(module, x, seed=0):
    torch.manual_seed(seed)
    return module(x)


# what a dress gives away


@pytest.mark.parametrize("name", fallen.NAMES)
def test_dresses_answer_alike_and_give_less_and_less_away(name, folder):
    declared, undeclared, sealed = (in_dress(name, folder, dress) for dress in ("declared", "undeclared", "sealed"))
    x, stand_ins = images(12), capabilities.surrogates(declared)
    random = name in fallen.RANDOMISED
    assert stand_ins
    assert capabilities.randomised(declared) is random
    for module in (undeclared, sealed):
        assert not any((capabilities.randomised(module), capabilities.members(module), capabilities.surrogates(module)))
    assert list(undeclared.children())
    assert not list(sealed.children())
    assert not sealed.state_dict()
    assert torch.equal(seen(declared, x), seen(undeclared, x))
    assert torch.equal(seen(undeclared, x), seen(undeclared, x, 1)) is not random
    assert torch.equal(seen(sealed, x), seen(sealed, x, 1))
    assert torch.equal(seen(copy.deepcopy(sealed), x), seen(sealed, x))
    if not random:
        assert torch.equal(sealed(x), declared(x))
    assert (sealed(x).argmax(1) == sealed(x[1:2]).argmax(1)).any()


@pytest.mark.parametrize("name", fallen.NAMES)
def test_no_hook_sees_a_sealed_network(name, folder):
    module, called = in_dress(name, folder, "sealed"), []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda part, given: called.append(type(part)))
    try:
        module(images())
    finally:
        handle.remove()
    assert called == [type(module)]


@pytest.mark.parametrize("name", fallen.NAMES)
def test_the_network_is_left_as_it_was_and_passes_without_gradients_agree(name, folder):
    net, x = fallen.network(name), images()
    before = copy.deepcopy(net.state_dict())
    module = fallen.made(name, folder).protect(net)
    with torch.inference_mode():
        plain = seen(module, x)
    assert torch.equal(plain, seen(module, x.clone().requires_grad_(True)))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(
        type(part) is type(known) for part, known in zip(net.modules(), fallen.network(name).modules(), strict=True)
    )


@pytest.mark.parametrize("name", sorted(fallen.FITS))
def test_a_file_of_something_else_is_refused(name, folder, tmp_path):
    file = tmp_path / "other"
    fitted.save(file, "something", {"x": torch.zeros(1)})
    kind = type(fallen.made(name, folder))
    for given, word in (("", "fit"), (str(tmp_path / "none"), "cannot read"), (str(file), "of something")):
        with pytest.raises(UsageError, match=word):
            kind(fitted=given).protect(fallen.stack())


@pytest.mark.parametrize("name", ["sap", "k-wta", "jump", "binarised", "dknn", "lid"])
def test_a_network_that_cannot_be_taken_apart_is_refused(name, folder):
    with pytest.raises(UsageError, match="digits-cnn"):
        fallen.made(name, folder).protect(nn.Flatten())


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (SAP, {"share": 0}), (KWinners, {"share": 1.0}), (Jump, {"slope": 2.0}), (Thermometer, {"levels": 1}),
        (AntiAdversary, {"steps": 0}), (Hedge, {"eps": 0.0}), (TVMinimisation, {"unrolled": 31}),
        (ECOC, {"classes": 17}),
        (EMPIR, {"bits": (0, 4)}), (Binarised, {"scale": 0.0}), (RandomMixture, {"weights": (0.5, 0.4)}),
        (Diffusion, {"time": 50}),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(kind, bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        kind(**bad)


# noise


def test_noise_of_images_is_theirs_alone_and_spread_as_it_should_be():
    x = images(500)
    noise = Noise(x, of_images=True)
    first, second, normal = noise.uniform(40), noise.uniform(40), noise.normal(40)
    again = Noise(x[7:9], of_images=True).uniform(40)
    assert torch.equal(first[7:9], again)
    other = x[7:8].clone()
    other[0, 0, 0, 0] = other[0, 0, 0, 0] + 1e-7
    assert (Noise(other, of_images=True).uniform(40) - again[:1]).abs().mean() > 0.1
    for drawn in (first, second):
        counts = torch.histc(drawn, 10, 0, 1) / drawn.numel()
        assert (counts - 0.1).abs().max() < 0.01  # 20,000 draws: six standard deviations
    assert abs(float(normal.mean())) < 0.04
    assert abs(float(normal.std()) - 1) < 0.03
    for pair in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten() for one in pair]))[0, 1])) < 0.04


# forwards, written out


def layers(net):
    return net[0], net[3], net[5]


def run(net, x, activation):
    """The stack with another activation."""
    conv, first, last = layers(net)
    return last(activation(first(activation(conv(x)).flatten(1))))


def test_winners_take_all():
    net, x = fallen.stack(), images()

    def winners(a):
        rows, k = a.flatten(1), math.ceil(0.1 * a[0].numel())
        kept = torch.zeros_like(rows)
        for row, out in zip(rows, kept, strict=True):
            top = row.sort(descending=True).indices[:k]
            out[top] = row[top]
        return kept.view_as(a)

    torch.testing.assert_close(KWinners().protect(net)(x), run(net, x, winners))


def test_jumps():
    net, x = fallen.stack(), images().requires_grad_(True)
    module = Jump(height=5.0).protect(net)
    expected = run(net, x, lambda a: torch.where(a > 0, a + 5, 0.2 * a))
    torch.testing.assert_close(module(x), expected)
    soft = module.surrogates()["sigmoid-step"]
    torch.testing.assert_close(soft(x), expected)
    smooth = run(net, x, lambda a: F.leaky_relu(a, 0.2) + 5 * a.sigmoid() + (5.0 * (a > 0) - 5 * a.sigmoid()).detach())
    got, due = (torch.autograd.grad(z[:, 0].sum(), x)[0] for z in (soft(x), smooth))
    torch.testing.assert_close(got, due)


def test_pruning_draws_by_size_with_replacement_and_is_right_on_average():
    net, x = fallen.stack(), images(1)
    module = SAP(share=0.5).protect(net)
    pruned = module.answer[1]
    a = net[0](x)
    rows = a.relu().flatten(1)
    p, draws = rows / rows.sum(), round(0.5 * rows.shape[1])
    kept = 1 - (1 - p) ** draws
    torch.manual_seed(0)
    seen_ = torch.stack([pruned(a).flatten(1) for _ in range(300)])
    values = seen_[:, 0][:, rows[0] > 0]
    assert ((values == 0) | ((values - (rows / kept)[rows > 0]).abs() < 1e-3)).all()
    share = (values > 0).float().mean(0)
    assert (share - kept[rows > 0]).abs().max() < 0.15  # five deviations of 300 draws
    torch.testing.assert_close(module.surrogates()["not-pruned"](x), net(x))


def test_thermometer_code():
    x = torch.tensor([0.0, 0.3, 0.5, 1.0]).view(1, 1, 2, 2).requires_grad_(True)
    plain = Thermometer(levels=4).protect(nn.Identity())
    bits = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]).float()
    assert torch.equal(plain(x).flatten(2)[0], bits)
    assert not plain(x).requires_grad
    ramp = plain.surrogates()["ramp"]
    assert torch.equal(ramp(x).flatten(2)[0], bits)
    (grad,) = torch.autograd.grad(ramp(x)[:, 1].sum(), x)
    assert grad.flatten().tolist() == [0, 4, 0, 0] or grad.flatten().tolist() == [0, 4, 4, 0]  # 0.5: the ramp's end
    two = Thermometer(levels=4).protect(nn.Identity())(torch.cat([x, 1 - x], 1))
    assert torch.equal(two[:, :4].detach(), plain(x).detach())


def test_the_anti_adversary_steps_towards_its_own_decision():
    net, x = fallen.stack(), images()
    module = AntiAdversary(steps=2, rate=0.1).protect(net)
    at = x.clone()
    for _ in range(2):
        at.requires_grad_(True)
        loss = F.cross_entropy(net(at), net(x).argmax(1), reduction="sum")
        at = (at - 0.1 * torch.autograd.grad(loss, at)[0].sign()).detach()
    torch.testing.assert_close(module(x), net(at))
    own = net(x).argmax(1, keepdim=True)
    assert (module(x).gather(1, own) - net(x).gather(1, own)).min() > -1e-6


def test_the_hedge_stays_in_its_ball_and_raises_what_it_should():
    net, x = fallen.stack(), images()
    module = Hedge(steps=3, eps=0.05, step=0.02).protect(net)
    torch.manual_seed(0)
    d = 0.05 * (2 * torch.rand(x.shape) - 1)
    for _ in range(3):
        at = (x + d).clamp(0, 1).requires_grad_(True)
        total = sum(F.cross_entropy(net(at), torch.full((3,), label), reduction="sum") for label in range(4))
        d = (d + 0.02 * torch.autograd.grad(total, at)[0].sign()).clamp(-0.05, 0.05)
    torch.testing.assert_close(seen(module, x), net((x + d).clamp(0, 1)))


def test_dead_zones_around_the_mean(folder):
    net, x = fallen.stack(), images()
    module, known = in_dress("mean-sparse", folder, "declared", alpha=0.5), None
    known = fitted.load(fallen.made("mean-sparse", folder).fitted, "mean-sparse")
    train = torch.rand(40, 1, 10, 12, generator=toys.seeded(5))
    torch.testing.assert_close(known["mean-0"], net[0](train).mean((0, 2, 3)))
    torch.testing.assert_close(known["sd-1"], net[3](net[:3](train)).std(0))
    numbers = iter(range(2))

    def sparse(a):
        i = next(numbers)
        mean, sd = (known[f"{what}-{i}"].view(1, -1, *[1] * (a.dim() - 2)) for what in ("mean", "sd"))
        return torch.where((a - mean).abs() < 0.5 * sd, mean.expand_as(a), a).relu()

    torch.testing.assert_close(module(x), run(net, x, sparse))
    torch.testing.assert_close(module.surrogates()["straight-through"](x), module(x))


def test_odds_correct_the_label_of_what_drifts(folder):
    settings = fallen.made("odds", folder)
    net, x, known = fallen.stack(), images(), fitted.load(settings.fitted, "odds")
    z, mean = net(x), 0
    torch.manual_seed(0)
    for _ in range(3):
        mean = mean + net(x + 0.15 * torch.randn(x.shape)) / 3
    own, corrected = z.argmax(1), z.argmax(1).clone()
    score = torch.zeros(3, 4)
    for i in range(3):
        for k in range(4):
            drift = (mean[i, k] - mean[i, own[i]]) - (z[i, k] - z[i, own[i]])
            score[i, k] = (drift - known["mean"][own[i], k]) / known["sd"][own[i], k] if k != own[i] else -99
    for threshold in (score.max() + 1, score.max() - 1e-3, -9.0):
        corrected = torch.where(score.amax(1) > threshold, score.argmax(1), own)
        module = fallen.made("odds", folder, threshold=float(threshold)).protect(net)
        assert torch.equal(seen(module, x).argmax(1), corrected)


def test_least_variation_is_no_worse_than_its_neighbours_and_its_parts_are_adjoint():
    x = images(2, channels=2)
    kept = (torch.rand(2, 1, 10, 12, generator=toys.seeded(1)) < 0.5).float()

    def objective(z):
        return (0.5 * (kept * (z - x)).square()).sum() + 0.1 * tv.differences(z).square().sum(0).sqrt().sum()

    best = tv.minimised(x, kept, 0.1, 400)
    for seed in range(5):
        other = (best + 0.02 * torch.randn(best.shape, generator=toys.seeded(seed))).clamp(0, 1)
        assert objective(best) < objective(other)
    assert objective(tv.minimised(x, kept, 0.1, 30)) < 1.2 * objective(best)
    dual = torch.randn(2, *x.shape, generator=toys.seeded(2))
    torch.testing.assert_close((tv.differences(x) * dual).sum(), -(x * tv.divergence(dual)).sum())
    all_kept = tv.minimised(x, torch.ones_like(kept), 0.0, 200)
    torch.testing.assert_close(all_kept, x, atol=1e-4, rtol=0)
    module, at = TVMinimisation(unrolled=3).protect(nn.Identity()), x.clone().requires_grad_(True)
    assert torch.equal(seen(module, at), seen(TVMinimisation().protect(nn.Identity()), x))
    assert seen(module, at).requires_grad


def test_a_quilt_of_nearest_tiles(folder):
    settings = fallen.made("quilting", folder, nearest=2, overlap=0)
    tiles, x = fitted.load(settings.fitted, "quilting")["tiles"], images(2, height=8, width=8)
    quilted = seen(settings.protect(nn.Identity()), x)
    for i in range(2):
        for row in range(2):
            for column in range(2):
                at = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
                near = (tiles[:, 0] - x[i, 0][at]).square().sum((1, 2)).argsort()[:2]
                assert any(torch.allclose(quilted[i, 0][at], tiles[number, 0]) for number in near)
    soft = fallen.made("quilting", folder, nearest=2, overlap=0, soft=1e-9).protect(nn.Identity())(x)
    near = (tiles[:, 0] - x[0, 0, :4, :4]).square().sum((1, 2)).argmin()
    torch.testing.assert_close(soft[0, 0, :4, :4], tiles[near, 0])
    assert settings.protect(nn.Identity())(images(1, height=9, width=11)).shape == (1, 1, 9, 11)


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_and_a_matrix_of_low_rank(channels):
    from robustkit_defenses.fallen.me_net import MENet

    x = images(2, channels=channels)
    torch.manual_seed(0)
    kept = torch.rand(2, 1, 10, 12) < 0.5
    wide = torch.cat([torch.where(kept[:, 0], 2 * x[:, c] - 1, 0) for c in range(channels)], 2)
    u, s, v = torch.linalg.svd(wide)
    low = sum(s[:, k, None, None] * u[:, :, k, None] * v[:, k, None, :] for k in range(2)) / 0.5
    expected = torch.stack(low.clamp(-1, 1).split(12, 2), 1) / 2 + 0.5
    module = MENet(rank=2).protect(nn.Identity())
    torch.testing.assert_close(seen(module, x), expected)
    at = x.clone().requires_grad_(True)
    assert not seen(module, at).requires_grad
    assert seen(MENet(rank=2, back="svd").protect(nn.Identity()), at).requires_grad
    (grad,) = torch.autograd.grad(seen(module.surrogates()["identity"], at).sum(), at)
    assert (grad == 1).all()


def test_mixes_are_with_images_of_other_classes(folder):
    settings = fallen.made("mixup-inference", folder, mixes=50)
    known = fitted.load(settings.fitted, "mixup-inference")
    net, x = fallen.stack(), images()
    own, starts = net(x).argmax(1), known["starts"]
    assert starts.tolist() == [0, 10, 20, 30, 40]
    torch.manual_seed(0)
    drawn, total = torch.rand(3, 50), 0
    for i in range(50):
        partners = []
        for row in range(3):
            others = [k for k in range(40) if not starts[own[row]] <= k < starts[own[row] + 1]]
            partners.append(known["x"][others[int(drawn[row, i] * 30)]])
        total = total + net(0.6 * x + 0.4 * torch.stack(partners)).softmax(1)
    torch.testing.assert_close(seen(settings.protect(net), x), total.log())


def test_neighbours_vote(folder):
    settings = fallen.made("dknn", folder, neighbours=5, temperature=0.05)
    net, x, known = fallen.stack(), images(), fitted.load(settings.fitted, "dknn")
    z = F.normalize(trunk_and_head(net)[0](x))
    far = torch.cdist(z.double(), known["features"].double()).square()
    counted = fallen.made("dknn", folder, neighbours=5, temperature=0.0).protect(net)(x)
    for i in range(3):
        near = far[i].argsort()[:5]
        weights = [sum(math.exp(-float(far[i, k]) / 0.05) for k in near if known["y"][k] == c) for c in range(4)]
        votes = [sum(1 for k in near if known["y"][k] == c) for c in range(4)]
        assert counted[i].tolist() == votes
        got = settings.protect(net)(x)[i]
        for c in range(4):
            if votes[c]:
                assert float(got[c]) == pytest.approx(math.log(weights[c]), abs=1e-3)
            else:
                assert float(got[c]) < float(got.max()) - 30


def test_dimensionality_and_what_is_flagged(folder):
    z, batch = torch.randn(4, 5, generator=toys.seeded(1)), torch.randn(30, 5, generator=toys.seeded(2))
    for row, found in zip(z, dimensionality(z, batch, 6), strict=True):
        r = (batch - row).norm(dim=1).sort().values[:6]
        assert float(found) == pytest.approx(-1 / float((r / r[-1]).log().mean()), rel=1e-4)
    settings = fallen.made("lid", folder)
    net, x = fallen.stack(), images()
    known = fitted.load(settings.fitted, "lid")
    trunk, head = trunk_and_head(net)
    flagged = dimensionality(trunk(x), known["batch"], 20) > known["threshold"]
    out = settings.protect(net)(x)
    assert torch.equal(out[~flagged], head(trunk(x))[~flagged])
    assert (out[flagged].sum(1) == 15).all()


def test_the_nearest_image_of_a_decoder(folder):
    settings = fallen.made("decoder-projection", folder, steps=4, starts=2, rate=0.5)
    known, x = fitted.load(settings.fitted, "decoder-projection"), images()
    w1, b1, w2, b2 = (known[f"decoder.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))

    def made(z):
        return ((z @ w1.T + b1).relu() @ w2.T + b2).sigmoid()

    found = []
    for start in known["starts"][:2]:
        z, speed = start.expand(3, -1), 0
        for _ in range(4):
            z = z.detach().requires_grad_(True)
            error = (made(z) - x.flatten(1)).square().sum()
            speed = 0.7 * speed + torch.autograd.grad(error, z)[0]
            z = z - 0.5 * speed
        found.append(made(z.detach()))
    far = torch.stack([(one - x.flatten(1)).square().sum(1) for one in found])
    expected = torch.stack([found[int(far[:, i].argmin())][i] for i in range(3)]).view_as(x)
    module = settings.protect(nn.Identity())
    torch.testing.assert_close(module(x), expected)
    w1, b1, w2, b2 = (known[f"encoder.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    coded = (x.flatten(1) @ w1.T + b1).relu() @ w2.T + b2
    w1, b1, w2, b2 = (known[f"decoder.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    torch.testing.assert_close(module.surrogates()["encoder"](x).flatten(1), made(coded))


def test_an_autoencoder_reforms_and_rejects(folder):
    settings = fallen.made("magnet", folder)
    net, x = fallen.stack(), images()
    known = fitted.load(settings.fitted, "magnet")
    guarded = settings.protect(net).answer
    torch.manual_seed(0)
    drawn = (torch.rand(3) * 4).long()
    out = seen(guarded, x)
    for i in range(3):
        made = guarded.pool[int(drawn[i])](x[i : i + 1].flatten(1)).sigmoid().view(1, 1, 10, 12)
        error = float((made - x[i]).abs().mean())
        p, q = (net(one) / 10 for one in (x[i : i + 1], made))
        apart = float(divergence(p * 10, q * 10, 10.0))
        p, q = p.softmax(1), q.softmax(1)
        middle = (p + q) / 2
        assert apart == pytest.approx(float((p * (p / middle).log() + q * (q / middle).log()).sum()) / 2, abs=1e-6)
        limits = known["thresholds"][int(drawn[i])]
        if error > limits[0] or apart > limits[1]:
            assert float(out[i].sum()) == 15
        else:
            torch.testing.assert_close(out[i], net(made)[0])


def test_noise_goes_on_and_comes_off():
    sizes = (122, diffusion.HIDDEN, diffusion.HIDDEN, 120)
    denoiser, x = autoencoders.layers(sizes).requires_grad_(False), images()
    step = diffusion.Purified(denoiser, 3, "none")
    torch.manual_seed(0)
    a = [diffusion.alpha(t) for t in range(4)]
    z = math.sqrt(a[3]) * (2 * x.flatten(1) - 1) + math.sqrt(1 - a[3]) * torch.randn(3, 120)
    for t in (3, 2, 1):
        told = torch.tensor([t / 50, math.sqrt(1 - a[t])]).expand(3, 2)
        noise, beta = denoiser(torch.cat([z, told], 1)), 1 - a[t] / a[t - 1]
        z = (z - beta / math.sqrt(1 - a[t]) * noise) / math.sqrt(1 - beta)
        if t > 1:
            z = z + math.sqrt(beta * (1 - a[t - 1]) / (1 - a[t])) * torch.randn(3, 120)
    torch.testing.assert_close(seen(step, x).flatten(1), (z.clamp(-1, 1) + 1) / 2)
    exact = 2 * x.flatten(1) - 1  # a denoiser that knows the image: every step then leads to it
    torch.testing.assert_close(
        diffusion.ddim(math.sqrt(a[3]) * exact + math.sqrt(1 - a[3]) * z, z, 3, 0), exact, atol=1e-5, rtol=1e-4
    )
    assert a[0] == 1
    assert diffusion.alpha(50) < 1e-3


def test_codes_and_their_decoding():
    code = codes(10, 32)
    assert code.shape == (10, 32)
    assert (code @ code.T).fill_diagonal_(0).abs().max() <= 16
    assert len({tuple(row.tolist()) for row in code}) == 10
    with pytest.raises(UsageError, match="16"):
        codes(10, 12)
    ensemble, x = fallen.network("ecoc"), images()
    module = ECOC(classes=4).protect(ensemble)
    bits = torch.cat([net(x) for net in ensemble.networks], 1)
    scores = ((5 * bits).tanh() @ codes(4, 16).T).clamp_min(0)
    torch.testing.assert_close(module(x).exp() - 2e-9, scores / scores.sum(1, keepdim=True), atol=1e-6, rtol=1e-4)
    assert torch.equal(module.surrogates()["decoded"](x).argmax(1), (bits @ codes(4, 16).T).argmax(1))


def test_a_vote_of_mixed_precision():
    ensemble, x = fallen.network("empir"), images(40)
    module = EMPIR().protect(ensemble)
    each = [run(net, x, lambda a, bits=bits: (a.clamp(0, 4) / 4 * (2**bits - 1)).round() / (2**bits - 1) * 4)
            for net, bits in zip(ensemble.networks, (2, 4), strict=False)] + [ensemble.networks[2](x)]  # fmt: skip
    for member, z in zip(module.members(), each, strict=True):
        torch.testing.assert_close(member(x), z)
    out = module(x)
    for i in range(40):
        votes = [int(z[i].argmax()) for z in each]
        most = max(votes, key=votes.count)
        winner = most if votes.count(most) > 1 else votes[2]
        assert int(out[i].argmax()) == winner
        agree = [z[i].softmax(0) for z, vote in zip(each, votes, strict=True) if vote == winner]
        counts = votes.count(winner) + (3 if votes.count(most) == 1 else 0)
        assert float(out[i].max()) == pytest.approx(counts + 0.01 * float(sum(p[winner] for p in agree)) / len(agree))
    mean = sum(z.softmax(1) for z in each) / 3
    torch.testing.assert_close(module.surrogates()["mean-probs"](x), mean.log())
    with pytest.raises(UsageError, match="3 members"):
        EMPIR().protect(fallen.stack())


def test_signs_for_weights_and_activations():
    net, x = fallen.stack(), images().requires_grad_(True)
    module = Binarised(scale=100.0).protect(net)
    conv, first, last = layers(net)

    def sign(a):
        return torch.where(a >= 0, 1.0, -1.0)

    hidden = F.linear(sign(conv(x)).flatten(1), sign(first.weight) / first.in_features**0.5, first.bias)
    torch.testing.assert_close(module(x), 100 * last(sign(hidden)))
    torch.testing.assert_close(module.surrogates()["soft"](x) * 100, module(x))
    a = torch.linspace(-2, 2, 10).requires_grad_(True)
    (grad,) = torch.autograd.grad(module.answer.network[1](a).sum(), a)
    assert grad.tolist() == [float(-1 <= value <= 1) for value in a.tolist()]


def test_a_mixture_draws_its_members_by_their_weights():
    ensemble = Ensemble([fallen.stack(seed=seed) for seed in range(2)])
    module, x = RandomMixture().protect(ensemble), images(2000)
    torch.manual_seed(0)
    drawn = torch.rand(2000) >= 0.8
    expected = torch.where(drawn[:, None], ensemble.networks[1](x), ensemble.networks[0](x))
    torch.testing.assert_close(seen(module, x), expected)
    assert module.weights() == (0.8, 0.2)
    assert len(module.members()) == 2
    mean = 0.8 * ensemble.networks[0](x).softmax(1) + 0.2 * ensemble.networks[1](x).softmax(1)
    torch.testing.assert_close(module.surrogates()["expected"](x).exp(), mean)
    with pytest.raises(UsageError, match="members"):
        RandomMixture().protect(fallen.stack())


def test_the_scattering_distance_is_that_of_the_best_pairs():
    a = torch.eye(4) * 5
    turned = a.roll(1, 0)
    assert float(sinkhorn(a, turned, 0.01, 100)) == pytest.approx(0, abs=1e-4)  # the same set of rows
    assert float(sinkhorn(a, -a, 0.01, 100)) == pytest.approx(1, abs=1e-4)  # each row to another's opposite: cosine 0
    one, two = a[:1], a[1:2]
    assert float(sinkhorn(one, two, 0.01, 10)) == pytest.approx(1, abs=1e-4)


# training


@pytest.mark.parametrize("recipe", ["behind:defense=(k-wta:share=0.2)", "behind:defense=binarised,through=soft"])
def test_a_network_behind_a_defense_is_trained_and_loads_with_it(recipe):
    from robustkit.datasets import Pair, load_dataset
    from robustkit.training.data import held

    data = held(Pair(*load_dataset("digits:split=train").batch(range(200)), "train", 10), torch.device("cpu"))

    def small():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    loop = Loop(
        trained.recipe(recipe), Task(10, (1, 8, 8), small, load_model), data, Schedule(epochs=4, batch=32, rate=0.01),
        Watch(data, 0.1, 1, 1), 0,
    )  # fmt: skip
    network, curves = loop.train()
    recipe = trained.recipe(recipe)
    again = recipe.result(recipe.build(Task(10, (1, 8, 8), small, load_model)))
    again.load_state_dict(network.state_dict())
    x = data.images(torch.arange(9))
    assert torch.equal(again(x), network(x))
    assert curves[-1]["loss"] < 0.8 * curves[0]["loss"]


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("behind", "defense is needed"),
        ("behind:defense=(k-wta:dress=sealed)", "no weights"),
        ("behind:defense=k-wta,through=smooth", "smoothed"),
    ],
)
def test_behind_what_there_is_not(recipe, word):
    with pytest.raises(UsageError, match=word):
        trained.recipe(recipe).build(Task(4, (1, 10, 12), fallen.stack, load_model))
