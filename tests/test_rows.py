import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.numerics import norms, rows
from robustkit.numerics.streams import SampleDraws, key_of

MATHS = {
    "total": lambda a, b, y: rows.total(a),
    "dot": lambda a, b, y: rows.dot(a, b),
    "peak": lambda a, b, y: rows.peak(a),
    "linf": lambda a, b, y: norms.length(a, "linf"),
    "l2": lambda a, b, y: norms.length(a, "l2"),
    "l1": lambda a, b, y: norms.length(a, "l1"),
    "l0": lambda a, b, y: norms.length(a.round(), "l0"),
    "unit": lambda a, b, y: norms.unit(a),
    "unit l1": lambda a, b, y: norms.unit(a, "l1"),
}
LOGITS = {
    "masked max": lambda a, b, y: rows.masked_max(a, y),
    "margin": lambda a, b, y: rows.margin(a, y),
    "targeted margin": lambda a, b, y: rows.margin(a, y, y.flip(0)[: len(y)] * 0),
    "log-softmax": lambda a, b, y: F.log_softmax(a, 1),
    "cross-entropy": lambda a, b, y: F.cross_entropy(a, y, reduction="none"),
}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def batch(n: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    a, b = (torch.randn(n, width, generator=generator, dtype=dtype) for _ in range(2))
    return a, b, torch.randint(0, width, (n,), generator=generator)


def parts(n: int) -> list[Tensor]:
    """Single rows, short runs and a shuffled selection."""
    runs = [(0, 1), (n - 1, n), (1, 4), (2, 9), (0, 31)]
    chosen = [torch.arange(first, last) for first, last in runs if last <= n and first < last]
    return [*chosen, torch.arange(n).flip(0)[::2]]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "n"), [(1, 64), (10, 64), (784, 33), (3072, 12), (150528, 3)])
def test_a_rows_maths_is_the_same_bit_for_bit_whatever_rows_share_the_batch(width, n, dtype):
    arguments = batch(n, width, dtype)
    maths = MATHS | (LOGITS if 1 < width <= 784 else {})
    for name, function in maths.items():
        together = function(*arguments)
        for part in parts(n):
            assert torch.equal(function(*(t[part] for t in arguments)), together[part]), (name, len(part))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("size", "n"), [(1, 64), (10, 64), (784, 12), (40_001, 2)])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_samples_draws_are_the_same_bit_for_bit_whatever_samples_share_the_batch(kind, size, n):
    draws = SampleDraws(key_of(0, "rows"), torch.arange(n) * 7)
    together = getattr(draws, kind)((size,))
    for part in parts(n):
        assert torch.equal(getattr(draws.select(part), kind)((size,)), together[part])


@pytest.mark.usefixtures("threads")
def test_the_gradient_of_a_summed_loss_is_each_rows_own():
    logits, _, y = batch(33, 10)

    def gradient(part: Tensor) -> Tensor:
        leaf = logits[part].clone().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(leaf, y[part], reduction="sum"), leaf)[0]

    together = gradient(torch.arange(33))
    for part in parts(33):
        assert torch.equal(gradient(part), together[part])


def test_sums_do_not_depend_on_the_memory_they_lie_in():
    a, _, _ = batch(3, 3072)
    sliced = torch.cat([a.new_zeros(3, 5), a], 1)[:, 5:]
    assert torch.equal(rows.total(sliced), rows.total(a))
    assert torch.equal(rows.total(a.T.contiguous().T), rows.total(a))


def test_an_empty_batch_has_no_results():
    empty = torch.zeros(0, 3, 4, 4)
    assert rows.flat(empty).shape == (0, 48)
    for norm in ("linf", "l2", "l1", "l0"):
        assert norms.length(empty, norm).shape == (0,)


def test_lengths_are_those_of_the_textbook():
    x = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    found = {norm: norms.length(x, norm).tolist() for norm in ("linf", "l2", "l1", "l0")}
    assert found == {"linf": [4.0, 0.0], "l2": [5.0, 0.0], "l1": [7.0, 0.0], "l0": [2.0, 0.0]}


def test_a_unit_of_zero_is_zero():
    assert norms.unit(torch.tensor([[0.0, 0.0], [0.0, 2.0]])).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_masking_hides_the_label_even_where_all_logits_are_negative():
    logits = torch.tensor([[-1.0, -3.0, -2.0], [-5.0, -1.0, -9.0]])
    assert rows.masked_max(logits, torch.tensor([0, 0])).tolist() == [-2.0, -1.0]
    assert rows.masked_max(torch.tensor([[1.0]]), torch.tensor([0])).tolist() == [-math.inf]


def test_a_margin_is_below_zero_exactly_when_the_goal_is_reached():
    logits, _, y = batch(50, 10)
    target = (y + 1) % 10
    assert torch.equal(rows.margin(logits, y) < 0, rows.reached(logits, y))
    assert torch.equal(rows.margin(logits, y, target) < 0, rows.reached(logits, y, target))


def test_members_logits_are_masked_a_member_at_a_time():
    logits = torch.randn(4, 5, 10)
    y = torch.arange(5)
    each = torch.stack([rows.masked_max(member, y) for member in logits])
    assert torch.equal(rows.masked_max(logits, y.expand(4, 5)), each)


def test_picking_takes_whole_samples():
    chosen, other = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    assert rows.pick(torch.tensor([True, False]), chosen, other).flatten(1).sum(1).tolist() == [4.0, 0.0]
