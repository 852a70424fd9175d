"""Transfer attacks' parts against steps computed by hand on linear ensembles."""

import math

import pytest
import torch
import torch.nn.functional as F
from robustkit_attacks import losses
from robustkit_attacks.transfer import blocks, ensembles, gradients, inputs, surrogates
from robustkit_attacks.transfer.attack import Transfer
from robustkit_attacks.transfer.surrogates import Surrogates, choices

from robustkit.api import Outputs, ThreatModel
from robustkit.numerics import rows
from robustkit.numerics.streams import SampleDraws
from tests import toys
from tests.surrogates import Ensemble, case_of, images, linear_pair, run

LINF = ThreatModel("linf", 0.1)
SHAPE = (2, 4, 5)
X = images(3, SHAPE)
Y = torch.tensor([0, 2, 3])
TARGET = torch.tensor([1, 0, 2])
DRAWS = SampleDraws((5, 7), torch.arange(3))
SCENE = inputs.Scene(X, LINF, 0.1)


def by_autograd(value, x):
    """The gradient of each sample's value at x."""
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(value(leaf).sum(), leaf)
    return grad


def cross_entropy(logits, targeted):
    return (
        -F.cross_entropy(logits, TARGET, reduction="none") if targeted else F.cross_entropy(logits, Y, reduction="none")
    )


def levelled(grad):
    return grad / grad.abs().mean((1, 2, 3), keepdim=True)


def clipped(adv, eps=0.1):
    return torch.minimum(torch.maximum(adv, X - eps), X + eps).clamp(0, 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def target_of(targeted):
    return TARGET if targeted else None


# The joint gradients


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "ce-rescaled"])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_joint_gradients_are_autograd_s(members, loss, targeted):
    models = [toys.Linear(SHAPE, 4, seed=k) for k in range(members)]
    case, counts = case_of(Ensemble(*models), X, Y, LINF, target=target_of(targeted))
    found = Surrogates.of(case, loss)
    climb = losses.make(loss, Y, target_of(targeted))
    combinations = {
        surrogates.mean_logits: lambda z: z.mean(0),
        surrogates.mean_probabilities: lambda z: z.softmax(-1).mean(0).log(),
        (lambda z: rows.added(z.unbind())): lambda z: z.sum(0),
    }
    for combine, plain in combinations.items():
        close(found.joint(X, combine), by_autograd(lambda x, p=plain: climb(Outputs(p(stacked(models, x)))), X))
    mean = by_autograd(lambda x: sum(climb(Outputs(m(x))) for m in models) / members, X)
    close(found.mean(X), mean)
    more = 0 if members == 1 else 3 * members
    assert counts.backwards.tolist() == [4 * members] * 3
    assert counts.forwards.tolist() == [4 * members + more] * 3


def stacked(models, x):
    return torch.stack([model(x) for model in models])


def test_without_members_the_oracle_is_the_surrogate_and_a_picked_member_is_the_sample_s_own():
    case, _ = case_of(toys.Linear(SHAPE, 4), X, Y, LINF)
    assert len(Surrogates.of(case, "ce")) == 1
    pair = linear_pair(SHAPE)
    case, counts = case_of(pair, X, Y, LINF)
    found = Surrogates.of(case, "ce")
    each = [found.one(k, X).grad for k in (0, 1)]
    picked = found.picked(X, *choices(2, torch.tensor([[1, 0, 1]])))
    assert torch.equal(picked, torch.stack([each[1][0], each[0][1], each[1][2]]))
    assert counts.backwards.tolist() == [3, 3, 3]


# Gradient rules


def by_hand(direction, steps=3, decay=1.0, eps=0.1):
    """MI's loop in plain torch: `direction` gives the gradient at (x, momentum)."""
    adv, momentum = X, torch.zeros_like(X)
    for t in range(steps):
        momentum = decay * momentum + levelled(direction(adv, momentum, t))
        adv = clipped(adv + eps / steps * momentum.sign())
    return adv


@pytest.mark.parametrize("targeted", [False, True])
def test_mi_and_ni_take_the_steps_computed_by_hand(targeted):
    pair = linear_pair(SHAPE)

    def plain(x, momentum=None, t=0):
        return by_autograd(lambda x: cross_entropy(pair(x), targeted), x)

    done = run(Transfer(steps=3), pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, by_hand(plain))
    done = run(Transfer("ni", steps=3), pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, by_hand(lambda x, momentum, t: plain(x + 0.1 / 3 * momentum)))


def test_l2_steps_are_normalised_and_stay_in_the_ball():
    pair, threat = linear_pair(SHAPE), ThreatModel("l2", 0.3)
    done = run(Transfer(steps=1), pair, X, Y, threat)
    grad = by_autograd(lambda x: F.cross_entropy(pair(x), Y, reduction="none"), X)
    moved = 0.3 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    close(done.adv, (X + moved).clamp(0, 1))


def test_vmi_adds_the_variance_of_the_last_step():
    pair, rule = linear_pair(SHAPE), gradients.VMI(samples=4, radius=1.5)

    def plain(x):
        return by_autograd(lambda x: F.cross_entropy(pair(x), Y, reduction="none"), x)

    variance = torch.zeros_like(X)

    def direction(x, momentum, t):
        nonlocal variance
        noise = [2 * DRAWS.at(t).at(i).uniform(SHAPE) - 1 for i in range(4)]
        grad, before = plain(x), variance
        variance = sum(plain(x + 0.15 * u) for u in noise) / 4 - grad
        return grad + before

    done = run(Transfer("vmi:samples=4", steps=3), pair, X, Y, LINF)
    close(done.adv, by_hand(direction))
    here = gradients.Here(variance, 1.0, 0.01, 0.1)
    grad, spread = rule(lambda x, draws: x, X, torch.ones_like(X), here, DRAWS)
    close(grad, X + 1)
    assert float(spread.abs().max()) <= 0.15
    assert (rule.calls, gradients.VMI().calls) == (5, 21)


def test_pgn_mixes_the_gradient_with_the_one_a_step_down():
    rule = gradients.PGN(samples=2, radius=3, balance=0.25)

    def square(x, draws):
        return x * x * x

    found, _ = rule(square, X, torch.zeros_like(X), gradients.Here(X, 1.0, 0.02, 0.1), DRAWS)
    wanted = 0
    for i in range(2):
        near = X + 0.3 * (2 * DRAWS.at(i).uniform(SHAPE) - 1)
        below = near - 0.02 * levelled(near**3)
        wanted = wanted + (0.75 * near**3 + 0.25 * below**3) / 2
    close(found, wanted)
    assert rule.calls == 4


# Input transforms


def test_ti_is_a_gaussian_of_known_width_and_a_plain_convolution():
    weights = torch.tensor(inputs.TI(15, 3).weights(), dtype=torch.float64)
    assert float(weights.sum()) == pytest.approx(1)
    places = torch.arange(-7, 8, dtype=torch.float64)
    gaussian = (-0.5 * (places / (7 / 3)) ** 2).exp()  # std: half the kernel over 3
    close(weights, gaussian / gaussian.sum())
    grad = torch.randn(2, 3, 20, 18, generator=toys.seeded())
    kernel = torch.outer(weights, weights).float().expand(3, 1, 15, 15)
    close(inputs.TI().smooth(grad), F.conv2d(grad, kernel, padding=7, groups=3))
    assert torch.equal(inputs.TI(1).smooth(grad), grad)


@pytest.mark.parametrize(("height", "width"), [(40, 32), (8, 8), (30, 64)])
def test_di_is_resizing_padding_and_resizing_back(height, width):
    part, draws = inputs.DI(prob=0.5, rate=1.25), SampleDraws((1, 2), torch.arange(60))
    x = images(60, (3, height, width))
    found = part(x, 0, SCENE, draws)
    assert found.shape == x.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    use, share, down, right = draws.uniform((4,)).unbind(1)
    untouched = (found == x).flatten(1).all(1)
    assert torch.equal(untouched, use >= 0.5)
    assert 15 < int(untouched.sum()) < 45
    for i in (use < 0.5).nonzero()[:8, 0].tolist():
        most = [max(int(1.25 * size), size + 1) for size in (height, width)]
        inner = [size + int(share[i] * (m - size)) for size, m in zip((height, width), most, strict=True)]
        top, left = (int(p[i] * (m - n + 1)) for p, m, n in zip((down, right), most, inner, strict=True))
        image = F.interpolate(x[i : i + 1], size=inner, mode="bilinear", align_corners=False)
        image = F.pad(image, (left, most[1] - inner[1] - left, top, most[0] - inner[0] - top))
        close(found[i : i + 1], F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False))


def test_si_and_admix_scale_by_halves_and_admix_adds_a_moved_picture_of_the_sample():
    assert torch.equal(inputs.SI()(X, 3, SCENE, DRAWS), X / 8)
    assert torch.equal(inputs.Admix(share=0)(X, 7, SCENE, DRAWS), X / 4)
    other = (inputs.Admix(share=0.5)(X, 5, SCENE, DRAWS) - X) / 0.5
    for i in range(3):
        for channel in range(2):
            close(other[i, channel].flatten().sort().values, X[i, channel].flatten().sort().values)
    assert inputs.Admix().copies == 15


def test_ssa_without_noise_is_the_identity_and_its_cosines_are_the_dct():
    scipy_fft = pytest.importorskip("scipy.fft")
    close(inputs.SSA(rho=0, sigma=0, pull_back=True)(X, 0, SCENE, DRAWS), X)
    matrix = inputs.cosines(12, X)
    close(matrix @ matrix.T, torch.eye(12))
    signal = images(1, (2, 5, 12))[0]
    close(signal @ matrix.T, torch.from_numpy(scipy_fft.dct(signal.numpy(), norm="ortho")))
    found = inputs.SSA(rho=0.5, sigma=0)(X, 0, SCENE, DRAWS)
    scales = 1 + 0.5 * (2 * DRAWS.uniform(SHAPE, step=1) - 1)
    wanted = scipy_fft.idctn(
        scipy_fft.dctn(X.numpy(), axes=(2, 3), norm="ortho") * scales.numpy(), axes=(2, 3), norm="ortho"
    )
    close(found, torch.from_numpy(wanted))
    noise = inputs.SSA(rho=0, sigma=2)(X, 0, SCENE, DRAWS) - X
    close(noise, 0.2 * DRAWS.normal(SHAPE))


def test_sia_does_to_each_block_what_its_draw_says():
    draws, x = SampleDraws((3, 4), torch.arange(40)), images(40, (2, 9, 11))
    scene = inputs.Scene(x, LINF, 0.1)
    found, seen = inputs.SIA(noise=1)(x, 0, scene, draws), set()
    numbers = draws.uniform((18 + 8 + 10,))
    noise = 0.1 * (2 * draws.uniform((2, 9, 11), step=1) - 1)
    for i in range(40):
        rows, columns = (
            [0, *sorted((rank.argsort()[:2] + 1).tolist()), size]
            for rank, size in ((numbers[i, 18:26], 9), (numbers[i, 26:], 11))
        )
        for r in range(3):
            for c in range(3):
                kind, amount = numbers[i, 6 * r + 2 * c].item(), numbers[i, 6 * r + 2 * c + 1]
                place = (slice(None), slice(rows[r], rows[r + 1]), slice(columns[c], columns[c + 1]))
                block = x[i][place]
                height, width = block.shape[1:]
                seen.add(int(7 * kind))
                wanted = [
                    lambda b, a, h: b.roll(int(a * h[0]), 1), lambda b, a, h: b.roll(int(a * h[1]), 2),
                    lambda b, a, h: b.flip(1), lambda b, a, h: b.flip(2), lambda b, a, h: b.flip(1, 2),
                    lambda b, a, h: a * b, lambda b, a, h, n=noise[i][place]: (b + n).clamp(0, 1),
                ][int(7 * kind)](block, amount, (height, width))  # fmt: skip
                close(found[i][place], wanted)
    assert seen == set(range(7))


def test_bsr_shuffles_pixels_and_turns_about_the_centre():
    x = images(30, (2, 9, 12))
    draws = SampleDraws((3, 4), torch.arange(30))
    found = inputs.BSR(angle=0)(x, 0, SCENE, draws)
    assert not torch.equal(found, x)
    close(found.flatten(2).sort(dim=2).values, x.flatten(2).sort(dim=2).values)
    square, turned = images(4, (2, 7, 7)), torch.full((4, 7, 7), math.pi / 2, dtype=torch.float64)
    place = torch.arange(7)
    whole, zero = torch.full((1, 7, 7), 7), torch.zeros(1, 7, 7, dtype=torch.long)
    places = (place[None, :, None].expand(4, 7, 7), place[None, None].expand(4, 7, 7))
    quarter = blocks._turned(square, turned, places, (zero, zero), (whole, whole))
    close(quarter, square.rot90(-1, (2, 3)))
    one = inputs.BSR(blocks=1, angle=24)(square, 0, SCENE, draws.select(torch.arange(4)))
    assert float(one.max()) <= 1
    assert float(one.min()) >= 0


def test_a_chain_is_the_mean_of_its_copies_pulled_back_and_smoothed():
    model = Ensemble(toys.Linear((3, 9, 10), 4, scale=0.3))
    x = images(3, (3, 9, 10))
    case, counts = case_of(model, x, Y, LINF)
    scene = inputs.Scene(x, LINF, 0.1)
    found = Surrogates.of(case, "ce")
    for part in (
        inputs.DI(1),
        inputs.SI(2),
        inputs.Admix(1, 0.2, 2),
        inputs.SSA(3, pull_back=True),
        inputs.SIA(2),
        inputs.BSR(2),
    ):

        def through(image, part=part):
            each = [
                F.cross_entropy(model(part(image, i, scene, DRAWS.at(0).at(i))), Y, reduction="none")
                for i in range(part.copies)
            ]
            return sum(each) / part.copies

        before = counts.backwards.clone()
        grad = inputs.Chain((part,)).around(found.field(0), scene)(x, DRAWS)
        close(grad, by_autograd(through, x))
        assert (counts.backwards - before).tolist() == [part.copies] * 3
        both = inputs.Chain((inputs.TI(3), part)).around(found.field(0), scene)(x, DRAWS)
        close(both, inputs.TI(3).smooth(grad))
    published = inputs.Chain((inputs.SSA(1),)).around(found.field(0), scene)(x, DRAWS)
    seen = inputs.SSA(1)(x, 0, scene, DRAWS.at(0).at(0))
    close(published, by_autograd(lambda z: F.cross_entropy(model(z), Y, reduction="none"), seen))
    assert inputs.Chain((inputs.SI(2), inputs.SSA(3))).copies == 6


# Ensemble rules


@pytest.mark.parametrize("targeted", [False, True])
def test_svre_s_inner_steps_are_those_computed_by_hand(targeted):
    pair = linear_pair(SHAPE)

    def grad(model, x):
        return by_autograd(lambda x: cross_entropy(model(x), targeted), x)

    def direction(x, momentum, t):
        joint = grad(pair, x)
        at_x = torch.stack([grad(m, x) for m in pair.models])
        orders = DRAWS.at(t).at(2).uniform((2, 2)).argsort(dim=2).flatten(1)
        assert all(sorted(order) == [0, 0, 1, 1] for order in orders.tolist())
        inner, momentum = x, torch.zeros_like(x)
        for choice in orders.unbind(1):
            here = torch.stack([grad(m, inner) for m in pair.models])
            own = torch.arange(3)
            momentum = momentum + levelled(here[choice, own] - (at_x[choice, own] - joint))
            inner = clipped(inner + 0.05 * momentum.sign())
        return momentum

    done = run(Transfer(ensemble="svre:rounds=2", steps=2), pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, by_hand(direction, steps=2))
    assert done.backwards.tolist() == [2 * (2 + 2 + 4)] * 3


@pytest.mark.parametrize("targeted", [False, True])
def test_adaea_weighs_each_sample_s_members_by_how_their_steps_fool_the_others(targeted):
    trio = Ensemble(*(toys.Linear(SHAPE, 4, seed=k, scale=0.6) for k in range(3)))
    case, _ = case_of(trio, X, Y, LINF, target=target_of(targeted))
    attack = Transfer(ensemble="adaea:sharpness=3,agreement=0.1", steps=1)
    rule = ensembles.AdaEA(3, 0.1)
    climb = ensembles.Climb(case, Surrogates.of(case, "ce"), inputs.Chain(()), gradients.MI(), 1.0, 1.0)
    grads = [by_autograd(lambda x, m=m: cross_entropy(m(x), targeted), X) for m in trio.models]
    weights = rule.weights(climb, X, grads)
    labels = TARGET if targeted else Y
    score = torch.zeros(3, 3)
    for j in range(3):
        for i in set(range(3)) - {j}:
            on, own = (
                F.cross_entropy(trio.models[i](clipped(X + 0.1 * grads[k].sign())), labels, reduction="none")
                for k in (j, i)
            )
            score[:, j] += own / on if targeted else on / own
    close(weights, (3 * score).softmax(1))
    similar = sum(F.cosine_similarity(grads[i], grads[j], dim=1) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    mask = (similar >= 0.1).float()[:, None]
    assert 0 < float(mask.mean()) < 1
    joint = by_autograd(
        lambda x: cross_entropy(sum(weights[:, k, None] * m(x) for k, m in enumerate(trio.models)), targeted), X
    )
    done = run(attack, trio, X, Y, LINF, target=target_of(targeted))
    close(done.adv, clipped(X + 0.1 * (joint * mask).sign()))
    assert torch.equal(ensembles.agreed([torch.zeros_like(X)] * 2, -0.3), torch.ones(3, 1, 4, 5))


@pytest.mark.parametrize("targeted", [False, True])
def test_smer_s_visits_and_scales_are_those_computed_by_hand(targeted):
    pair = linear_pair(SHAPE)
    scales = torch.ones(3, 2)
    rate, shrink = 0.5, 0.1

    def direction(x, momentum, t):
        nonlocal scales
        inner, momentum = x, torch.zeros_like(x)
        for choice in DRAWS.at(t).at(0).uniform((2, 2)).argsort(dim=2).flatten(1).unbind(1):
            own = scales.gather(1, choice[:, None])
            each = [
                by_autograd(lambda x, m=m, own=own: cross_entropy(own * m(x), targeted), inner) for m in pair.models
            ]
            grad = torch.stack(each)[choice, torch.arange(3)]
            leaf = scales.clone().requires_grad_(True)
            mean = sum(leaf[:, k, None] * m(inner) for k, m in enumerate(pair.models)) / 2
            labels = TARGET if targeted else Y
            loss = -F.cross_entropy(mean, labels, reduction="none").log() * (-1 if targeted else 1)
            loss = loss + 0.5 * shrink * leaf.square().sum(1)  # SGD's weight decay
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
            scales = scales - rate * slope
            momentum = momentum + levelled(grad)
            inner = clipped(inner + 0.05 * momentum.sign())
        return momentum

    attack = Transfer(ensemble=f"smer:rounds=2,rate={rate},shrink={shrink}", steps=2)
    done = run(attack, pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, by_hand(direction, steps=2))
    assert float((scales - 1).abs().min()) > 1e-3
    assert done.backwards.tolist() == [2 * 4] * 3
    assert done.forwards.tolist() == [2 * (4 + 4 * 2)] * 3
