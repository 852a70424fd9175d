import math

import pytest
import torch

from robustkit.numerics.streams import SampleDraws, key_of, philox


def draws(n: int = 4, *key: object) -> SampleDraws:
    return SampleDraws(key_of(*(key or (0, "pgd"))), torch.arange(n))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = [torch.tensor([int(word, 16)]) for word in counter.split()]
    first, second = (int(word, 16) for word in key.split())
    found = philox(words, (first, second))
    assert [f"{int(word):08x}" for word in found] == expected.split()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(1,), (3,), (3, 8, 8)])
def test_a_sample_draws_the_same_in_any_batch(kind, shape):
    together = getattr(draws(9), kind)(shape)
    assert together.shape == (9, *shape)
    assert together.dtype == torch.float32
    for part in (torch.tensor([4]), torch.tensor([8, 0, 3]), torch.arange(9) % 2 == 0):
        assert torch.equal(getattr(draws(9).select(part), kind)(shape), together[part])


def test_the_draws_of_a_sample_follow_its_index_in_the_dataset_not_its_place():
    key = key_of(3, "square")
    here = SampleDraws(key, torch.tensor([17, 5])).uniform((6,))
    there = SampleDraws(key, torch.tensor([5, 900, 17])).uniform((6,))
    assert torch.equal(here[0], there[2])
    assert torch.equal(here[1], there[0])


def test_asking_twice_gives_the_same_numbers_and_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = draws().normal((7,), step=3)
    assert torch.equal(first, draws().normal((7,), step=3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_seeds_attacks_samples_streams_and_steps_all_draw_differently():
    base = draws().uniform((1000,))
    others = [
        draws(4, 1, "pgd").uniform((1000,)),
        draws(4, 0, "square").uniform((1000,)),
        draws().at(0).uniform((1000,)),
        draws().at(1).uniform((1000,)),
        draws().at(1).at(1).uniform((1000,)),
        draws().at(1).at(2).uniform((1000,)),
        draws().at(2).at(1).uniform((1000,)),
        draws().uniform((1000,), step=1),
        base.roll(1, 0),
    ]
    for i, one in enumerate([base, *others]):
        for other in [base, *others][:i]:
            assert (one == other).double().mean() < 0.01
            assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()) < 0.06


def test_uniforms_have_the_moments_of_a_uniform_and_hit_neither_end():
    u = draws(8).uniform((12_000,)).double()
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(1 / 2, abs=5e-3)
    assert u.var().item() == pytest.approx(1 / 12, abs=2e-3)
    counts = torch.histc(u, 64, 0, 1)
    chi_squared = ((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum().item()
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)


def test_uniforms_hit_neither_end_even_where_all_bits_are_equal(monkeypatch):
    for word in (0, 0xFFFFFFFF):
        monkeypatch.setattr(SampleDraws, "_words", lambda self, n, step, word=word: torch.full((1, n), word))
        u = draws(1).uniform((1,)).item()
        assert 0 < u < 1
        assert math.isfinite(draws(1).normal((1,)).item())


def test_normals_have_the_moments_of_a_normal():
    z = draws(8).normal((12_000,)).double()
    for power, moment, error in ((1, 0, 0.015), (2, 1, 0.025), (3, 0, 0.06), (4, 3, 0.2)):
        assert z.pow(power).mean().item() == pytest.approx(moment, abs=error)
    assert (z.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=8e-3)


def test_large_steps_and_indices_are_taken_as_32_bit_words():
    far = SampleDraws(key_of(0), torch.tensor([2**32 - 1, 12]))
    assert far.uniform((4,), step=2**31 + 5).shape == (2, 4)
    assert not torch.equal(far.uniform((4,), step=2**31 + 5), far.uniform((4,), step=5))


def test_a_key_is_made_of_the_text_of_its_parts():
    assert key_of(0, "pgd") == key_of("0", "pgd")
    assert key_of(0, "pgd") != key_of(0, "pgd:steps=3")
    assert key_of("a", "b") != key_of("ab")
    assert all(0 <= word < 2**32 for word in key_of("x"))
