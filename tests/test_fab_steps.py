"""FAB step by step: every point it asks the model about, against its steps written out for one sample."""

import itertools
from dataclasses import asdict

import pytest
import torch
from robustkit_attacks import hyperplane
from robustkit_attacks.fab import FAB

from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics import norms
from tests import surrogates
from tests.hills import Hills, images

EPS = {"linf": 0.1, "l2": 0.3, "l1": 1.0}
LOW, HIGH = 0.2, 0.75  # the box


def length(d, norm):
    return float({"linf": d.abs().max(), "l2": d.norm(), "l1": d.abs().sum()}[norm])


def plane(model, x, y, aim, target, norm):
    """f, which is zero on the boundary and above it beyond, and its gradient."""

    def of(f):
        point = x.clone().requires_grad_(True)
        value = f(model(point[None])[0])
        return float(value.detach()), torch.autograd.grad(value, point)[0]

    if target is not None:
        return of(lambda z: z[target] - max(z[k] for k in range(4) if k != target))
    if aim is not None:
        return of(lambda z: z[aim] - z[y])
    found = [of(lambda z, k=k: z[k] - z[y]) for k in range(4) if k != y]
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    return min(found, key=lambda pair: abs(pair[0]) / length(pair[1], dual))


def search(model, x0, start, y, aim, target, norm, steps, known, settings):
    """One search by the paper's algorithm 1: the points asked, and the nearest adversarial, from `known` on."""
    x, (nearest, best), path = start, known, []
    for _ in range(steps):
        f, w = plane(model, x, y, aim, target, norm)
        path.append(x)

        def onto(point, gap, w=w):
            return hyperplane.shortest(point[None], w[None], torch.tensor([gap]).double(), norm, low=LOW, high=HIGH)[0]

        here, clean = onto(x, -f), onto(x0, float((w * (x - x0)).sum()) - f)
        a = length(here, norm) / (length(here, norm) + length(clean, norm))
        a = min(a, settings["alpha_max"])
        x = ((1 - a) * (x + settings["eta"] * here) + a * (x0 + settings["eta"] * clean)).clamp(LOW, HIGH)
        path.append(x)
        decided = int(model(x[None]).argmax())
        if decided != y if target is None else decided == target:
            if length(x - x0, norm) < nearest:
                nearest, best = length(x - x0, norm), x
            x = x0 + settings["beta"] * (x - x0)
    return path, (nearest, best)


@pytest.mark.parametrize("mode", ["targeted", "untargeted", "with a target"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_point_is_the_algorithm_s(norm, mode):
    settings = (
        {"alpha_max": 0.3, "eta": 1.1, "beta": 0.8} if norm == "l2" else {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9}
    )
    steps, restarts, targets, n = 6, 2, 2, 5
    model, x = Hills(), images(n, low=0.3, high=0.7)
    z = model(x).detach()
    y = z.argmax(1)
    target = (y + 1) % 4 if mode == "with a target" else None
    attack = FAB(targets=targets, targeted=mode != "untargeted", steps=steps, restarts=restarts, **settings)
    model.asked.clear()
    found = surrogates.run(attack, model, x, y, ThreatModel(norm, EPS[norm], LOW, HIGH), target=target, tile=n)
    searches = targets if mode == "targeted" else 1
    calls = 1 + restarts * searches * steps * 2
    assert len(model.asked) == n * (calls + 1)  # before it the number of classes is asked for
    asked = torch.stack(model.asked[-n * calls :]).view(calls, n, 1, 4, 4)
    torch.testing.assert_close(asked[0], x)
    reached = 0
    for i in range(n):
        ranked = z[i].argsort(descending=True).tolist()[1:] if mode == "targeted" else [None]
        path, known = [], (float("inf"), None)
        for restart, place in itertools.product(range(restarts), range(searches)):
            at = 1 + (restart * searches + place) * steps * 2
            start = asked[at, i]
            if restart == 0:
                torch.testing.assert_close(start, x[i])
            else:
                assert length(start - x[i], norm) == pytest.approx(0.5 * min(EPS[norm], known[0]), rel=1e-6)
            goal = None if target is None else int(target[i])
            more, known = search(
                model, x[i], start, int(y[i]), ranked[place], goal, norm, steps, known, settings
            )  # fmt: skip
            path += more
        torch.testing.assert_close(asked[1:, i], torch.stack(path), rtol=0, atol=1e-6)
        torch.testing.assert_close(found.adv[i], x[i] if known[1] is None else known[1], rtol=0, atol=1e-6)
        reached += known[1] is not None
    assert reached >= 2
    assert norms.NORMS[norm].dual == {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]


def test_costs_defaults_and_what_is_refused():
    assert asdict(FAB()) == {
        "targets": 9, "targeted": True, "steps": 100, "restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9,
        "minimise": True,
    }  # fmt: skip
    assert FAB(steps=5, restarts=2).cost(4) == (61, 30)
    assert FAB(steps=5, restarts=2, targets=2).cost(4) == (41, 20)
    assert FAB(steps=5, restarts=2, targeted=False).cost(4) == (21, 30)
    assert FAB(steps=5, restarts=2, targeted=False).cost(17) == (21, 160)
    assert FAB(steps=5, restarts=2, targeted=False).cost(18) == (31, 170)
    for name in ("targets", "steps", "restarts"):
        with pytest.raises(UsageError, match="must be at least 1"):
            FAB(**{name: 0})
    FAB(targets=1, steps=1, restarts=1)


def test_what_is_broken_leaves_at_the_next_look_if_it_need_not_be_nearest():
    model, x = Hills(), images(6, low=0.3, high=0.7)
    y, threat = model(x).argmax(1), ThreatModel("linf", 0.05)
    whole = surrogates.run(FAB(steps=15, targets=2), model, x, y, threat, tile=6)
    quick = surrogates.run(FAB(steps=15, targets=2, minimise=False), model, x, y, threat, tile=6)
    near = norms.length(whole.adv - x, "linf")
    broken = (near > 0) & (near <= 0.05)
    assert 0 < broken.sum() < 6
    assert torch.equal(broken, (quick.adv != x).flatten(1).any(1) & (norms.length(quick.adv - x, "linf") <= 0.05))
    assert whole.backwards.tolist() == [30] * 6
    assert (quick.backwards[broken] < 15).all()
    assert quick.backwards[~broken].tolist() == [30] * int((~broken).sum())
    assert (model(quick.adv).argmax(1) != y)[broken].all()
    every = surrogates.run(FAB(steps=1), model, x, y, threat, tile=6)
    assert every.backwards.tolist() == [3] * 6  # a search towards each wrong class, and none towards the true one
