"""The facts of a shard on a toy model and attacks that answer as they are told: what is judged, and what is not."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.datasets import resolve
from robustkit.datasets.choice import choose_samples
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED
from robustkit.engine.measure import begin, bench_of
from robustkit.engine.request import Execution, Request, threat_of
from robustkit.engine.shard import CLEAN, attack_shard, attack_shards, decided
from robustkit.models.opening import load, open_model
from tests import toys


class Bright(nn.Module):
    """Class 1 if the mean is above one half, else class 0. Counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(1)), 0

    def forward(self, x):
        self.calls += 1
        bright = (x.flatten(1).mean(1) - 0.5) * self.weight
        return torch.stack([torch.zeros_like(bright), bright], 1)


VALUES = (0.4, 0.45, 0.6, 0.42, 0.3)  # the third is class 1, and labelled so in `bench` unless it is to be wrong


@contextmanager
def bench(*attacks, values=VALUES, labels=(0, 0, 1, 0, 0), size=8, quantize="", module=None, **request):
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    samples = choose_samples(resolve((x, torch.tensor(labels))), None, None)
    module = module or Bright()
    with open_model(load(module, "pair", "linf"), samples, tile=4) as opened:
        asked = Request(list(attacks), threat_of("linf", 0.2), "pair", quantize=quantize, **request)
        with begin(opened, asked, Execution(shard_size=size)) as begun:
            yield bench_of(begun, 8), module


def facts_of(made, shard=0, known=lambda shard, step: None):
    return {part.step: part for part in attack_shard(made, shard, known)}


class Tells(toys._Settings):
    """Submits some values, then returns others; one a sample."""

    def __init__(self, returned, submitted=(), goal="bounded"):
        self.returned, self.submitted, self.goal = returned, submitted, goal

    def __call__(self, case):
        def images(values):
            return torch.tensor(values)[case.draws.indices].view(-1, 1, 1, 1).expand_as(case.x).clone()

        for values in self.submitted:
            case.submit(images(values))
        return images(self.returned)

    def __repr__(self):
        return "Tells()"


def test_what_the_journal_has_is_not_asked_again():
    with bench(Tells((0.5, 0.6, 0.4, 0.55, 0.3)), labels=(0, 0, 0, 0, 0)) as (made, module):
        first = facts_of(made)
        assert first[CLEAN].new
        assert first[1].new
        assert first[CLEAN].facts["correct"].tolist() == [True, True, False, True, True]
        assert first[1].facts["position"].tolist() == [0, 1, 3, 4]
        assert first[1].facts["outcome"].tolist() == [SURVIVED, BROKEN, BROKEN, SURVIVED]
        assert len(first[1].facts["seconds"]) == 1  # an entry a batch
        calls = module.calls
        again = facts_of(made, known=lambda shard, step: first[step].facts)
        assert module.calls == calls
        assert not again[CLEAN].new
        assert not again[1].new
        for step, part in again.items():
            for name, values in part.facts.items():
                assert np.array_equal(values, first[step].facts[name], equal_nan=values.dtype.kind == "f"), name


def test_of_a_bounded_attack_what_is_broken_is_not_judged_again():
    with bench(Tells((0.99, 0.99, 0.4, 0.45, 0.31), submitted=[(0.55, 0.4, 0.6, 0.4, 0.3)])) as (made, _):
        found = facts_of(made)[1].facts
        assert found["outcome"].tolist() == [BROKEN, VIOLATED, BROKEN, SURVIVED, SURVIVED]
        far = "an image outside the ball, by 0.34 (eps is 0.2, the images came in float32)"  # 0.99 - 0.45 - 0.2
        assert found["reason"].tolist() == ["", far, "", "", ""]
        assert found["distance"][[0, 2, 3, 4]].tolist() == pytest.approx([0.15, 0.2, 0.03, 0.01], abs=1e-6)
        assert found["decision"].tolist() == [1, 0, 0, 0, 0]


def test_of_a_minimal_attack_what_it_returns_is_judged_also_where_it_broke():
    with bench(Tells((0.52, 0.9, 0.5, 0.4, 0.3), submitted=[(0.55, 0.4, 0.4, 0.9, 0.3)], goal="minimal")) as (made, _):
        found = facts_of(made)[1].facts
        assert found["outcome"].tolist() == [BROKEN, SURVIVED, BROKEN, SURVIVED, SURVIVED]
        near = [0.12, 0.45, 0.1, 0.48, np.nan]
        assert found["distance"].tolist() == pytest.approx(near, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("answer", [lambda case: None, lambda case: case.x[:2], lambda case: case.x.flatten(1)])
def test_what_is_no_batch_is_a_violation_of_every_sample(answer):
    class Answers(toys._Settings):
        def __call__(self, case):
            return answer(case)

    with bench(Answers()) as (made, _):
        found = facts_of(made)[1].facts
        assert found["outcome"].tolist() == [VIOLATED] * 5
        assert all("due" in reason for reason in found["reason"])


def test_a_crash_after_a_break_leaves_the_break_and_violates_the_rest():
    class Crashes(Tells):
        def __call__(self, case):
            super().__call__(case)
            raise ValueError("on purpose")

    with bench(Crashes(VALUES, submitted=[(0.55, 0.46, 0.61, 0.43, 0.31)]), toys.Lazy()) as (made, _):
        found = facts_of(made)
        assert found[1].facts["outcome"].tolist() == [BROKEN, VIOLATED, VIOLATED, VIOLATED, VIOLATED]
        assert found[1].facts["reason"].tolist() == ["", *["ValueError: on purpose"] * 4]
        assert found[2].facts["position"].tolist() == [1, 2, 3, 4]
        assert decided(found[1].facts)["position"].tolist() == [0]


def test_after_rounding_an_image_may_be_broken_no_more():
    told = (0.502, 0.5005, 0.4, 0.42, 0.3)  # the first two become 128 of 255
    with bench(Tells(told), quantize="8bit") as (made, _):
        found = facts_of(made)[1].facts
        assert found["outcome"].tolist() == [BROKEN, BROKEN, BROKEN, SURVIVED, SURVIVED]
        assert found["quantized"].tolist() == [BROKEN, BROKEN, BROKEN, SURVIVED, SURVIVED]
    with bench(Tells((0.6001, 0.5, 0.4999, 0.42, 0.3)), quantize="8bit", values=(0.4001, *VALUES[1:])) as (made, _):
        found = facts_of(made)[1].facts
        assert found["outcome"].tolist() == [BROKEN, SURVIVED, BROKEN, SURVIVED, SURVIVED]
        assert found["quantized"].tolist() == [BROKEN, SURVIVED, BROKEN, SURVIVED, SURVIVED]  # 127/255 = 0.498
    with bench(Tells((0.5999, 0.5, 0.4, 0.42, 0.3)), quantize="8bit", values=(0.39991, *VALUES[1:])) as (made, _):
        found = facts_of(made)[1].facts  # 0.5999 is 152.97 levels: 153 of them are 0.2001 away
        assert found["outcome"].tolist()[0] == BROKEN
        assert found["quantized"].tolist()[0] == SURVIVED
    with bench(Tells((0.55, 0.5, 0.4, 0.42, 0.3))) as (made, _):
        assert facts_of(made)[1].facts["quantized"].tolist() == [SURVIVED] * 5  # not asked


def test_shards_packed_together_keep_their_places():
    told = (0.55, 0.46, 0.4, 0.55, 0.31)
    with bench(Tells(told), toys.Lazy(), size=2) as (made, _):
        last = {}
        for part in attack_shards(made, range(3), lambda shard, step: None):
            last[part.shard, part.step] = part.facts
        assert [last[shard, 1]["position"].tolist() for shard in range(3)] == [[0, 1], [0, 1], [0]]
        outcomes = [last[shard, 1]["outcome"].tolist() for shard in range(3)]
        assert outcomes == [[BROKEN, SURVIVED], [BROKEN, BROKEN], [SURVIVED]]
        assert [last[shard, 2]["position"].tolist() for shard in range(3)] == [[1], [], [0]]
        away = np.concatenate([last[shard, 1]["distance"] for shard in range(3)])
        assert away.tolist() == pytest.approx([0.15, 0.01, 0.2, 0.13, 0.01], abs=1e-6)
        seconds = [float(last[shard, 1]["seconds"].sum()) for shard in range(3)]
        assert all(s > 0 for s in seconds)


def test_the_noise_of_a_network_is_keyed_by_the_seed_and_by_what_it_is_for():
    x = torch.tensor(VALUES).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    seen = {}
    for seed in (0, 1):
        noisy = toys.Randomised(Bright(), 1e-3)
        with bench(toys.Lazy(), module=noisy, seed=seed, draws=3) as (made, _):
            for key in (("vote", 0), ("vote", 1), ("judge", 0)):
                seen[seed, *key] = made.network(*key).logits(x)
                assert torch.equal(made.network(*key).logits(x), seen[seed, *key])
    for one, other in itertools.combinations(seen.values(), 2):
        assert not torch.equal(one, other)
