"""The CWA family against steps computed by hand on a two-model linear ensemble."""

import math

import pytest
import torch
import torch.nn.functional as F
from robustkit_attacks.transfer.cwa import CWA

from robustkit.api import ThreatModel
from robustkit.engine.plan import make_attack
from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws
from tests import toys
from tests.surrogates import Ensemble, images, linear_pair, run

EPS = 0.1
LINF = ThreatModel("linf", EPS)
SHAPE = (2, 4, 5)
X = images(3, SHAPE)
Y, TARGET = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 2])
ROOT = math.sqrt(40)
AT_224 = math.sqrt(3 * 224 * 224)
ZERO = torch.zeros_like(X)
DRAWS = SampleDraws((5, 7), torch.arange(3))


def by_autograd(value, x):
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(value(leaf).sum(), leaf)
    return grad


def grad(model, x, targeted):
    """Upwards for the attacker: away from y, or to the target."""
    if targeted:
        return by_autograd(lambda x: -F.cross_entropy(model(x), TARGET, reduction="none"), x)
    return by_autograd(lambda x: F.cross_entropy(model(x), Y, reduction="none"), x)


def clipped(adv):
    return torch.minimum(torch.maximum(adv, X - EPS), X + EPS).clamp(0, 1)


def unit(g, order):
    return g / g.flatten(1).norm(p=order, dim=1).view(-1, 1, 1, 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def target_of(targeted):
    return TARGET if targeted else None


def summed(pair):
    return lambda x: pair.models[0](x) + pair.models[1](x)


def by_hand(pair, targeted, steps, *, reverse, beta, joint, level, clip=True, alpha=EPS / 5, member=grad):
    """Section 3 of the paper in plain torch; `reverse` None leaves SAM out, `beta` None CSE."""
    x, inner, outer = X, ZERO, ZERO
    for t in range(steps):
        start = x
        if reverse is not None:
            x = x - reverse * grad(joint, x, targeted).sign()
            x = clipped(x) if clip else x
        if beta is None:
            ahead = grad(joint, x, targeted)
        else:
            for k, model in enumerate(pair.models):
                found = member(model, x, targeted) if member is grad else member(model, x, targeted, t, k)
                inner = inner + unit(found, 2)
                x = clipped(x + beta * inner)
            ahead = x - start
        outer = outer + (unit(ahead, 1) if level else ahead)
        x = clipped(start + alpha * outer.sign())
    return x


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("settings", ["robustkit", "paper", "code"])
@pytest.mark.parametrize("name", ["mi-cwa", "mi-sam", "mi-cse"])
def test_each_step_is_the_one_computed_by_hand(name, settings, targeted):
    pair = linear_pair(SHAPE)
    attack = make_attack(f"{name}:settings={settings},steps=6")
    code = settings == "code"
    published = {"robustkit": 250, "paper": 50, "code": 50 if name == "mi-cse" else 250}[settings]
    reverse = EPS / 10 if code and name == "mi-sam" else EPS / 15
    wanted = by_hand(
        pair, targeted, 6,
        reverse=None if name == "mi-cse" or (code and targeted) else reverse,
        beta=None if name == "mi-sam" else published / AT_224 * ROOT,
        joint=summed(pair) if code else pair,
        level=settings != "paper" or name == "mi-sam",
        clip=not code,
    )  # fmt: skip
    done = run(attack, pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, wanted)
    assert not torch.equal(done.adv, X)


def test_the_blocks_one_by_one():
    pair = linear_pair(SHAPE)
    # SAM's reverse step: with a huge reversal and no step back to see, the second gradient is taken at the far corner.
    done = run(CWA(cse=False, steps=1, reverse=2.0, step=1.0), pair, X, Y, LINF)
    corner = clipped(X - 2 * EPS * grad(pair, X, False).sign())
    close(done.adv, clipped(X + EPS * grad(pair, corner, False).sign()))
    # CSE's inner steps: the second starts where the first ended, with its momentum.
    done = run(CWA(sam=False, steps=1, beta_rel=0.01, step=1.0), pair, X, Y, LINF)
    first = unit(grad(pair.models[0], X, False), 2)
    at = clipped(X + 0.01 * ROOT * first)
    second = first + unit(grad(pair.models[1], at, False), 2)
    ahead = clipped(at + 0.01 * ROOT * second) - X
    close(done.adv, clipped(X + EPS * ahead.sign()))
    # The order is the members': the other way round is another point.
    swapped = run(CWA(sam=False, steps=2, beta_rel=0.05), Ensemble(*reversed(pair.models)), X, Y, LINF)
    assert not torch.equal(swapped.adv, run(CWA(sam=False, steps=2, beta_rel=0.05), pair, X, Y, LINF).adv)


def test_the_momenta_persist_and_decay():
    pair = linear_pair(SHAPE)
    plain = run(CWA(sam=False, steps=3, momentum=0.0, beta_rel=0.05), pair, X, Y, LINF).adv
    x = X
    for _ in range(3):
        start = x
        for model in pair.models:
            x = clipped(x + 0.05 * ROOT * unit(grad(model, x, False), 2))
        x = clipped(start + EPS / 3 * (x - start).sign())
    close(plain, x)


def test_vmi_cwa_takes_the_mean_gradient_of_the_neighbourhood():
    pair = linear_pair(SHAPE)

    def member(model, x, targeted, t, k):
        points = [x + 1.5 * EPS * (2 * DRAWS.at(t).at(k).at(i).uniform(SHAPE) - 1) for i in range(3)]
        return sum(grad(model, p, targeted) for p in points) / 3

    wanted = by_hand(
        pair, False, 5, reverse=EPS / 15, beta=250 / AT_224 * ROOT, joint=pair, level=True, member=member
    )  # fmt: skip
    close(run(make_attack("vmi-cwa:steps=5,neighbours=3"), pair, X, Y, LINF).adv, wanted)


def test_ssa_cwa_without_noise_is_cwa_and_the_code_s_leaves_sam_out():
    pair = linear_pair(SHAPE)
    still = "input=(ssa:copies=2,rho=0,sigma=0)"
    close(run(make_attack(f"ssa-cwa:steps=5,{still}"), pair, X, Y, LINF).adv, run(CWA(steps=5), pair, X, Y, LINF).adv)
    done = run(make_attack(f"ssa-cwa:steps=5,settings=code,{still}"), pair, X, Y, LINF)
    plain = run(CWA(steps=5, settings="code", sam=False, beta_rel=250 / AT_224), pair, X, Y, LINF)
    close(done.adv, plain.adv)
    assert done.backwards.tolist() == [5 * 2 * 2] * 3


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("settings", ["robustkit", "paper"])
def test_adam_cwa_hands_the_displacement_to_adam(settings, targeted):
    pair = linear_pair(SHAPE)
    rate = EPS / 5 if settings == "robustkit" else EPS * 1e-3 / (16 / 255)
    beta = {"robustkit": 250, "paper": 50}[settings] / AT_224 * ROOT
    parameter = torch.nn.Parameter(X.clone())
    adam = torch.optim.Adam([parameter], lr=rate)
    inner = ZERO
    for _ in range(6):
        x = start = parameter.detach().clone()
        x = clipped(x - EPS / 15 * grad(pair, x, targeted).sign())
        for model in pair.models:
            inner = inner + unit(grad(model, x, targeted), 2)
            x = clipped(x + beta * inner)
        parameter.grad = start - x
        adam.step()
        parameter.data = clipped(parameter.data)
    done = run(make_attack(f"adam-cwa:steps=6,settings={settings}"), pair, X, Y, LINF, target=target_of(targeted))
    close(done.adv, parameter.detach())


class Watched(torch.nn.Module):
    """Remembers where it was asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.inner(x)


@pytest.mark.parametrize(("shape", "published"), [((3, 224, 224), 250.0), ((3, 32, 32), 250 / 7)])
def test_the_inner_step_grows_with_the_root_of_the_image_s_size(shape, published):
    model = toys.Linear(shape, 3, seed=4)
    second = Watched(model)
    x, y = torch.full((1, *shape), 0.5), torch.tensor([0])
    # A thousandth of the published length, so that the ball does not clip it; the second member is asked after it.
    attack = CWA(sam=False, steps=1, beta_rel=250 / AT_224 / 1000)
    run(attack, Ensemble(model, second), x, y, ThreatModel("linf", 0.5), tile=1)
    assert float((second.seen[-1] - x).norm()) == pytest.approx(published / 1000, rel=1e-4)


def test_few_steps_cross_the_ball_and_published_ones_do_not():
    pair = linear_pair(SHAPE)
    for settings, reach in (("robustkit", EPS), ("paper", 2 * EPS / 5), ("code", 2 * EPS / 5)):
        done = run(CWA(steps=2, settings=settings), pair, X, Y, LINF)
        assert float((done.adv - X).abs().max()) == pytest.approx(reach, rel=1e-3)


@pytest.mark.parametrize("members", [1, 2, 3, 6])
def test_the_gradients_it_states_are_the_paper_s_count(members):
    assert CWA().gradients(members) == 10 * 2 * members  # one joint and one by one
    assert CWA(cse=False).gradients(members) == 10 * 2 * members
    assert CWA(sam=False).gradients(members) == 10 * members
    assert make_attack("vmi-cwa").gradients(members) == 10 * 9 * members
    assert make_attack("ssa-cwa").gradients(members) == 10 * 21 * members
    assert make_attack("ssa-cwa:settings=code").gradients(members) == 10 * 20 * members


def test_a_gradient_that_would_underflow_when_squared_still_points():
    pair = Ensemble(*(toys.Wrapped(model, scale=1e-25) for model in linear_pair(SHAPE).models))
    plain = run(CWA(steps=5), linear_pair(SHAPE), X, Y, LINF)
    # The joint and single losses are nearly uniform, so their gradients differ from the unscaled; but all pixels move.
    done = run(CWA(steps=5), pair, X, Y, LINF)
    assert torch.isfinite(done.adv).all()
    assert float(((done.adv - X).abs() > 0.5 * EPS).float().mean()) > 0.9
    assert not torch.equal(done.adv, plain.adv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cwa:settings=theirs", "settings must be one of robustkit, paper, code"),
        ("cwa:outer=sgd", "outer must be one of momentum, adam"),
        ("cwa:sam=false,cse=false", "nothing is left of it; use mi"),
        ("cwa:beta_rel=0", "must be positive"),
        ("cwa:neighbours=-1", "must not be negative"),
        ("cwa:input=dii", "no part input called 'dii'; did you mean di"),
        ("cwa:steps=0", "steps and step must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        make_attack(text)
