"""Square query by query: every point it asks the model about, against its rules written out for one sample."""

import itertools
import math
from dataclasses import asdict

import pytest
import torch
from robustkit_attacks.square import Square

from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.numerics.streams import SampleDraws
from tests import surrogates
from tests.hills import Hills, images

SHAPE, EPS = (2, 11, 10), {"linf": 0.1, "l2": 0.8, "l1": 2.5}
CHANNELS, HEIGHT, WIDTH = SHAPE
LOW, HIGH = 0.1, 0.9  # the box
THRESHOLDS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # arXiv:1912.00049's, for 10,000 queries


def side_of(query, queries, norm, *, p, rescale, height=HEIGHT, width=WIDTH):
    at = query * 10000 // queries if rescale else query
    share = p
    for threshold in THRESHOLDS:
        share = share / 2 if at > threshold else share
    return min(max(round(math.sqrt(share * height * width)), 1 if norm == "linf" else 3), height, width)


def hill(height, width):
    """A pile of layers: layer k of n + 1, the outermost first, adds 1/(n + 1 − k)²."""
    n, found = max(height, width) // 2, torch.zeros(height, width).double()
    for r, c in itertools.product(range(height), range(width)):
        away = max(abs(r - height // 2), abs(c - width // 2))
        found[r, c] = sum(1 / (n + 1 - k) ** 2 for k in range(n - away + 1))
    return found


def bump(side, norm):
    """Two hills of either sign, or for L1 the pixel in the middle; of length 1."""
    if norm == "l1":
        found = torch.zeros(side, side).double()
        found[side // 2, side // 2] = 1
        return found
    found = torch.cat([hill(side // 2, side), -hill(side - side // 2, side)])
    return found / found.norm()


def energy(delta, norm):
    return float((delta**2).sum() if norm == "l2" else delta.abs().sum())


def margin_of(model, image):
    z = model(image[None])[0].detach()
    return float(z[0] - z[1:].max())


def sign(u):
    return 1 if u < 0.5 else -1


def start(x, u, norm, eps):
    """Vertical stripes, or bumps side by side."""
    if norm == "linf":
        return (x + eps * torch.where(u < 0.5, 1, -1)).clamp(LOW, HIGH)
    side = max(min(HEIGHT, WIDTH) // 5, 1)
    pattern, delta = bump(side, norm), torch.zeros_like(x)
    for c, r, s in itertools.product(*map(range, SHAPE)):
        delta[c, r, s] = sign(u[c, r // side, s // side]) * pattern[r % side, s % side]
    delta *= eps / math.sqrt(energy(delta, norm)) if norm == "l2" else eps / energy(delta, norm)
    return (x + delta).clamp(LOW, HIGH)


def exchanged(x, adv, u, side, norm, eps, spent):
    """The first window takes what the second gives up and what is not spent."""
    (r1, c1), (r2, c2) = ((int(u[k] * (HEIGHT + 1 - side)), int(u[k + 1] * (WIDTH + 1 - side))) for k in (0, 2))
    first, second = ((slice(r, r + side), slice(c, c + side)) for r, c in ((r1, c1), (r2, c2)))
    new, freed, filled = adv.clone(), 0.0, []
    for channel in range(CHANNELS):
        held = (adv - x)[channel][first].clone()
        new[channel][first] = x[channel][first]
        gone = (new - x)[channel][second].clone()
        new[channel][second] = x[channel][second]
        own = energy(held, norm) + energy(gone, norm)
        freed += own
        length = own + max((eps**2 if norm == "l2" else eps) - spent, 0) / CHANNELS
        window, s = x[channel][first], sign(u[5 + channel])
        if norm == "l2":
            shape = bump(side, norm) if u[4] < 0.5 else bump(side, norm).T
            shape = s * shape + (held / held.norm() if held.norm() > 0 else 0)
            delta = math.sqrt(length) * shape / shape.norm()
        else:
            delta, left = torch.zeros_like(window), length
            outwards = sorted(
                itertools.product(range(side), range(side)),
                key=lambda at: max(abs(at[0] - side // 2), abs(at[1] - side // 2)),
            )
            for at in outwards:
                far = min(left, float(HIGH - window[at]) if s > 0 else float(window[at] - LOW))
                delta[at], left = s * far, left - far
        filled.append((window + delta).clamp(LOW, HIGH))
    for channel in range(CHANNELS):
        new[channel][first] = filled[channel]
    return new, spent + energy((new - x)[:, first[0], first[1]], norm) - freed


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_query_is_that_of_the_rules(norm, rescale):
    queries, n, p, eps = 66, 2, 0.5, EPS[norm]
    model, x = Hills(lead=200, size=math.prod(SHAPE)), images(n, SHAPE, LOW, HIGH)
    y = torch.zeros(n, dtype=torch.int64)
    attack = Square(queries=queries, p=p, rescale=rescale, restarts=2)
    model.asked.clear()
    found = surrogates.run(attack, model, x, y, ThreatModel(norm, eps, LOW, HIGH), tile=n)
    assert len(model.asked) == n * (1 + 2 * (queries + 1))  # before it the number of classes is asked for
    asked = torch.stack(model.asked[-2 * n * (queries + 1) :]).view(2, queries + 1, n, *SHAPE)
    kept = 0
    for i in range(n):
        best = (math.inf, None)
        for restart in range(2):
            draws = SampleDraws((5, 7), torch.tensor([i])).at(restart)
            tiles = (CHANNELS, 1, WIDTH) if norm == "linf" else (CHANNELS, 6, 5)  # of 2×2, the last row cut
            adv = start(x[i], draws.uniform(tiles)[0].double(), norm, eps)
            torch.testing.assert_close(asked[restart, 0, i], adv, rtol=0, atol=1e-6)
            lowest, spent = margin_of(model, adv), energy(adv - x[i], norm)
            for query in range(1, queries + 1):
                block, at = divmod(query - 1, 64)
                u = draws.uniform((64, CHANNELS + 5), step=1 + block)[0, at].tolist()
                side = side_of(query, queries, norm, p=p, rescale=rescale)
                if norm == "linf":
                    r, c = int(u[0] * (HEIGHT + 1 - side)), int(u[1] * (WIDTH + 1 - side))
                    new, after = adv.clone(), 0.0
                    for channel in range(CHANNELS):
                        window = x[i, channel, r : r + side, c : c + side] + eps * sign(u[5 + channel])
                        new[channel, r : r + side, c : c + side] = window.clamp(LOW, HIGH)
                else:
                    new, after = exchanged(x[i], adv, u, side, norm, eps, spent)
                torch.testing.assert_close(asked[restart, query, i], new, rtol=0, atol=1e-5)
                margin = margin_of(model, new)
                if margin < lowest:
                    adv, lowest, spent, kept = new, margin, after, kept + 1
            best = min(best, (lowest, adv), key=lambda pair: pair[0])
        torch.testing.assert_close(found.adv[i], best[1], rtol=0, atol=1e-5)
    assert kept > 4 * n


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_windows_halve_after_each_threshold(norm):
    for size in ((300, 400), (5, 3), (2, 2)):
        for query in (1, *THRESHOLDS, *(threshold + 1 for threshold in THRESHOLDS), 10_000):
            due = side_of(query, 10_000, norm, p=0.8, rescale=False, height=size[0], width=size[1])
            assert Square().side(query, norm, *size) == due
            assert Square(queries=1000, rescale=True).side(query // 10, norm, *size) == side_of(
                query // 10, 1000, norm, p=0.8, rescale=True, height=size[0], width=size[1]
            )


def test_costs_defaults_and_what_is_refused():
    assert asdict(Square()) == {"queries": 5000, "p": 0.8, "rescale": False, "restarts": 1}
    assert Square(queries=7, restarts=3).cost(10) == (24, 0)
    for wrong in ({"queries": 0}, {"restarts": 0}, {"p": 0}, {"p": 1.01}):
        with pytest.raises(UsageError, match="square"):
            Square(**wrong)
    Square(queries=1, restarts=1, p=1)


def test_what_the_judge_confirms_leaves():
    model, x = Hills(size=math.prod(SHAPE)), images(6, SHAPE, LOW, HIGH)
    y, threat = model(x).argmax(1), ThreatModel("linf", 0.005, LOW, HIGH)
    found = surrogates.run(Square(queries=40, restarts=2), model, x, y, threat, tile=6)
    broken = model(found.adv).argmax(1) != y
    assert 0 < broken.sum() < 6
    assert found.forwards[~broken].tolist() == [82] * int((~broken).sum())
    looks = {1 + query for query in (0, 1, 2, 4, 8, 16, 32)}  # early often, then after each sixteenth
    left = found.forwards[broken]
    assert set((left - 41 * (left > 41)).tolist()) <= looks
    assert 2 in left  # one after its first query
    assert threat.contains(x, found.adv).all()
