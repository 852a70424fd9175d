"""AutoAttack against the closed form of a linear classifier: the same samples fall, whatever its shape and scale."""

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from robustkit import evaluate
from tests.linear import between, distances, lin
from tests.toys import Wrapped

SHAPES = [
    (1, 1, 7), (2, 1, 9), (3, 1, 16), (4, 1, 5), (1, 7, 1), (1, 4, 4), (1, 5, 3), (2, 3, 5), (3, 7, 7), (3, 8, 8),
    (4, 5, 6), (4, 9, 9),
]  # fmt: skip
CLASSES = (2, 3, 10, 1000)
SCALES = (1e-30, 1e-12, 1e-3, 1.0, 1e4, 1e12, 1e24, 1e36)  # of the logits
NORMS = ("linf", "l2", "l1")
# Every shape in every norm; classes and scales go round among them, so that each meets each norm.
WHOLE = [
    (shape, norm, CLASSES[(i + 5 * j) % 4], SCALES[3 * (i + 5 * j) % 8])
    for j, norm in enumerate(NORMS)
    for i, shape in enumerate(SHAPES)
]
QUICK = [
    ((1, 1, 7), "linf", 2, 1e-30), ((3, 8, 8), "linf", 10, 1e36), ((2, 3, 5), "l2", 3, 1e36),
    ((4, 1, 5), "l2", 10, 1e-30), ((1, 5, 3), "l1", 3, 1e4), ((3, 1, 16), "linf", 1000, 1.0),
]  # fmt: skip


def check(shape, norm, classes, scale, attack):
    network, x, y = lin(shape, classes, n=12, wrong=2)
    found = distances(network, x, y, norm)
    eps = between(found)
    truth = ["WRONG" if distance == 0 else "BROKEN" if distance <= eps else "ROBUST" for distance in found.tolist()]
    assert {"WRONG", "BROKEN", "ROBUST"} == set(truth)
    record = evaluate(Wrapped(network, scale=scale), (x, y), attack, norm=norm, eps=eps, doctor=False)
    assert record.samples["status"].tolist() == truth


@pytest.mark.parametrize(("shape", "norm", "classes", "scale"), QUICK)
def test_a_short_autoattack_breaks_what_can_be_broken(shape, norm, classes, scale):
    check(shape, norm, classes, scale, "autoattack:steps=20,queries=50")


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "norm", "classes", "scale"), WHOLE)
def test_autoattack_breaks_what_can_be_broken(shape, norm, classes, scale):
    check(shape, norm, classes, scale, "autoattack")


def solved(w, need, low, high, norm):
    """The least norm of a move in [low, high] that gains what is needed, by a solver; inf if none does."""
    if np.where(w > 0, w * high, w * low).sum() < need:
        return np.inf
    d = len(w)
    if norm == "l2":
        start = np.where(w > 0, high, low)
        gains = {"type": "ineq", "fun": lambda m: w @ m - need, "jac": lambda m: w}
        found = minimize(
            lambda m: m @ m, start, jac=lambda m: 2 * m, bounds=list(zip(low, high, strict=True)), constraints=[gains],
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return np.sqrt(found.fun)
    wide = 1 if norm == "linf" else d  # the move, and a bound of all its entries or one of each
    bound = np.ones((d, 1)) if norm == "linf" else np.eye(d)
    rows = np.vstack([np.hstack([np.eye(d), -bound]), np.hstack([-np.eye(d), -bound]), np.r_[-w, np.zeros(wide)]])
    limits = [*zip(low, high, strict=True), *([(0, None)] * wide)]
    return linprog(np.r_[np.zeros(d), np.ones(wide)], A_ub=rows, b_ub=np.r_[np.zeros(2 * d), -need], bounds=limits).fun


@pytest.mark.parametrize("norm", NORMS)
def test_the_closed_form_is_what_a_solver_finds(norm):
    network, x, y = lin((1, 2, 3), 3, n=12, wrong=1)
    weight, bias = (p.detach().double().numpy() for p in network[1].parameters())
    found = distances(network, x, y, norm).tolist()
    for image, label, distance in zip(x.flatten(1).double().numpy(), y.tolist(), found, strict=True):
        z = weight @ image + bias
        others = [k for k in range(3) if k != label]
        nearest = [solved(weight[k] - weight[label], z[label] - z[k], -image, 1 - image, norm) for k in others]
        expected = 0.0 if z.argmax() != label else min(nearest)
        assert distance == pytest.approx(expected, abs=1e-6)
