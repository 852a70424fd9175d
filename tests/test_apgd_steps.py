"""APGD step by step: every point it asks the model about, against algorithm 1 written out for one sample."""

from dataclasses import asdict

import pytest
import torch
from robustkit_attacks import apgd, parts
from robustkit_attacks.apgd import APGD

from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.testing import attack_batch
from tests import surrogates
from tests.hills import Hills, images

SHAPE, EPS = (1, 4, 4), {"linf": 0.3, "l2": 1.0}


def loss_and_gradient(model, point):
    point = point.clone().requires_grad_(True)
    z = model(point[None])[0]
    loss = z[1:].max() - z[0]
    return float(loss.detach()), torch.autograd.grad(loss, point)[0]


def algorithm_1(model, x, start, threat, steps):
    """The iterates, and which of its two conditions halved the step at each checkpoint; arXiv:2003.01690, section 3.2.

    The checkpoints are the paper's, in whole steps as its authors' code counts them.
    """

    def project(point):
        if threat.norm == "linf":
            return torch.minimum(torch.maximum(point, x - threat.eps), x + threat.eps).clamp(0, 1)
        away = (point - x) * min(1.0, threat.eps / float((point - x).norm()))
        return (x + away).clamp(0, 1)

    def uphill(gradient):
        return gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()

    eta, now, before = 2 * threat.eps, start, start
    value, gradient = loss_and_gradient(model, now)
    best, best_gradient, highest, highest_before = now, gradient, value, value
    path, halvings, halved_before, rises, since, period = [now], [], True, 0, 0, max(int(0.22 * steps), 1)
    for k in range(steps):
        ahead = project(now + eta * uphill(gradient))
        a = 1.0 if k == 0 else 0.75
        now, before = project(now + a * (ahead - now) + (1 - a) * (now - before)), now
        last, (value, gradient) = value, loss_and_gradient(model, now)
        path.append(now)
        rises, since = rises + (value > last), since + 1
        if value > highest:
            best, best_gradient, highest = now, gradient, value
        if since == period:
            seldom, idle = rises <= 0.75 * period, not halved_before and highest_before >= highest
            halvings.append((seldom, idle))
            if seldom or idle:
                eta, now, gradient = eta / 2, best, best_gradient
            halved_before, highest_before = seldom or idle, highest
            period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            rises, since = 0, 0
    return path, halvings


@pytest.mark.parametrize(("norm", "steps"), [("linf", 100), ("l2", 100), ("l2", 12), ("linf", 4)])
def test_every_point_is_algorithm_1_s(norm, steps):
    model, n = Hills(lead=200), 8  # class 0 is out of reach
    x = images(n)
    y, threat = torch.zeros(n, dtype=torch.int64), ThreatModel(norm, EPS[norm])
    model.asked.clear()
    surrogates.run(APGD("margin", steps=steps), model, x, y, threat, tile=n)
    assert len(model.asked) == n * (steps + 3)  # before it the number of classes is asked for
    asked = torch.stack(model.asked[-n * (steps + 2) : -n]).view(steps + 1, n, *SHAPE)  # the last is the judge
    halvings = set()
    for i in range(n):
        path, here = algorithm_1(model, x[i], asked[0, i], threat, steps)
        torch.testing.assert_close(asked[:, i], torch.stack(path), rtol=0, atol=1e-5)
        halvings |= set(here)
    assert {(True, False), (False, False)} < halvings  # by the first condition, by none, and with the second


def test_each_run_climbs_towards_a_class_of_its_own_and_what_is_broken_leaves(monkeypatch):
    model, n, steps = Hills(), 6, 4
    x = images(n)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.05)
    found = attack_batch(APGD("dlr-targeted", steps=steps, targets=2, restarts=2), model, x, y, threat, tile=n)
    assert 0 < found.broken.sum() < n
    assert set(found.backwards[~found.broken].tolist()) == {4 * (steps + 1)}
    assert set(found.backwards[found.broken].tolist()) <= {2, 3}  # after the first steps the judge is asked
    assert torch.equal(found.forwards, found.backwards + 1)
    monkeypatch.setattr(parts, "checkpoint", lambda step: False)  # then after each run
    found = attack_batch(APGD("dlr-targeted", steps=steps, targets=2, restarts=2), model, x, y, threat, tile=n)
    assert set(found.backwards[~found.broken].tolist()) == {4 * (steps + 1)}
    assert set(found.backwards[found.broken].tolist()) <= {steps + 1, 2 * (steps + 1)}
    hard = Hills(lead=200)
    ends = []
    for targets in (1, 2, 9):
        hard.asked.clear()
        surrogates.run(APGD("dlr-targeted", steps=2, targets=targets), hard, x, torch.zeros_like(y), threat, tile=n)
        ends.append(len(hard.asked) // n)
    assert ends == [2 + 4 * k for k in (1, 2, 3)]  # what classes there are and their rank; a start, two steps, a look


def test_costs_defaults_and_what_is_refused():
    assert asdict(APGD()) == {"loss": "ce", "steps": 100, "restarts": 1, "targets": 9, "radii": 1}
    assert APGD(steps=7, restarts=2).cost(4) == (16, 16)
    assert APGD("dlr-targeted", steps=7, restarts=2).cost(4) == (49, 48)  # three wrong classes, which are ranked once
    assert APGD("margin-targeted", steps=7, targets=2).cost(4) == (17, 16)
    assert APGD(steps=10, radii=3).cost(4) == (13, 13)  # three stages, a start each
    for name in ("steps", "restarts", "targets", "radii"):
        with pytest.raises(UsageError, match="must be positive"):
            APGD(**{name: 0})
    x = images(2)
    for norm in ("linf", "l2"):
        with pytest.raises(UsageError, match=f"several radii are for l1, not {norm}"):
            surrogates.run(APGD(radii=2), Hills(), x, torch.zeros(2, dtype=torch.int64), ThreatModel(norm, 0.1))


def state(adv, best, grad, best_grad, rises, halved, best_before, best_loss):
    rows = torch.tensor(rises)
    point = [torch.full((len(rows), *SHAPE), value) for value in (adv, best, grad, best_grad)]
    loss = torch.tensor(best_loss)
    return apgd.State(
        adv=point[0], previous=point[0], grad=point[2], loss=loss, best=point[1], best_grad=point[3], best_loss=loss,
        best_before=torch.tensor(best_before), step=torch.full_like(loss, 0.4), halved=torch.tensor(halved),
        rises=rows, found=point[0], hit=torch.zeros_like(rows, dtype=torch.bool), place=rows,
    )  # fmt: skip


def test_the_step_is_halved_by_either_condition_and_the_second_not_twice_in_a_row():
    # Of 8 steps 6 must rise, and one more for the first; the second wants a highest loss that did not rise, and no
    # halving at the checkpoint before.
    before = state(
        adv=0.1, best=0.2, grad=1.0, best_grad=2.0,
        rises=[6, 7, 7, 7, 8], halved=[True, False, True, False, False],
        best_before=[1.0, 1.0, 1.0, 1.0, 1.0], best_loss=[2.0, 1.0, 1.0, 2.0, 1.5],
    )  # fmt: skip
    after = apgd.adapted(before, 8)
    assert after.halved.tolist() == [True, True, False, False, False]
    assert after.step.tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.4])
    assert after.adv[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.1])
    assert after.grad[:, 0, 0, 0].tolist() == [2, 2, 1, 1, 1]  # at the best point, that point's own
    assert after.rises.tolist() == [0] * 5
    assert after.best_before.tolist() == [2.0, 1.0, 1.0, 2.0, 1.5]
