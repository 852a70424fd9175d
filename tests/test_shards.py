"""Shards are values: packed together, alone, in another process or after a stop, their facts are the same."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robustkit import UsageError, evaluate
from robustkit.datasets import resolve
from robustkit.datasets.choice import choose_samples
from robustkit.engine.measure import begin, bench_of, measure, rebuilt
from robustkit.engine.request import Execution, Request, threat_of
from robustkit.engine.shard import CLEAN, attack_shard, attack_shards
from robustkit.engine.units import Units
from robustkit.models.opening import load, open_model
from tests import toys

ATTACKS = "(apgd:steps=5)+(square:queries=40)"


def unknown(shard, step):
    return None


def last_parts(parts):
    found = {}
    for part in parts:
        found[part.shard, part.step] = part.facts
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, facts in one.items():
        assert facts.keys() == other[key].keys(), key
        for name in facts.keys() - {"seconds"}:
            assert np.array_equal(facts[name], other[key][name], equal_nan=facts[name].dtype.kind == "f"), (key, name)


@pytest.fixture(scope="module")
def opened():
    samples = choose_samples(resolve("digits"), 100, None)
    with open_model(load("digits-cnn-at", "digits", "linf"), samples, tile=16) as found:
        yield found


@pytest.mark.parametrize(("model", "attack"), [("", ATTACKS), ("", "torchattacks/PGD:steps=3"), ("noisy", "fgsm")])
@pytest.mark.parametrize("in_flight", [16, 64])
def test_packing_shards_into_a_batch_changes_no_fact(opened, model, attack, in_flight):
    if model:
        module = toys.Randomised(opened.module, 0.05)
        with open_model(load(module, "digits", "linf"), opened.samples, tile=16) as other:
            packed_equals_alone(other, attack, in_flight)
    else:
        packed_equals_alone(opened, attack, in_flight)


def packed_equals_alone(opened, attack, in_flight):
    with begin(opened, Request(attack, threat_of("linf", 0.2), "digits", draws=3), Execution(shard_size=32)) as begun:
        pass
    bench = bench_of(begun, 16 if opened.subject.facts.randomised else in_flight)
    packed = last_parts(attack_shards(bench, range(4), unknown))
    alone = {}
    for shard in range(4):
        alone |= last_parts(attack_shard(bench, shard, unknown))
    assert_same(packed, alone)
    assert sum(len(packed[shard, CLEAN]["correct"]) for shard in range(4)) == 100


def test_survivors_of_several_shards_share_a_batch(opened):
    seen = []

    class Sizes(toys._Settings):
        def __call__(self, case):
            seen.append(len(case.x))
            return case.x

    with begin(opened, Request(Sizes(), threat_of("linf", 0.2), "digits"), Execution(shard_size=20)) as begun:
        pass
    list(attack_shards(bench_of(begun, 64), range(5), unknown))
    assert seen[0] == 64
    assert len(seen) == 2


def test_units_are_every_shard_once():
    for n, size, in_flight in ((100, 32, 64), (5000, 512, 512), (7, 512, 16), (1000, 16, 16)):
        units = Units(n, size, 256)
        claimed = [shard for claim in units.claims(in_flight) for shard in claim.shards]
        assert claimed == list(range(-(-n // size)))


def test_shards_of_large_images_are_taken_one_by_one():
    small, large = (list(Units(2000, 128, size).claims(512)) for size in (3 * 32 * 32 * 4, 3 * 224 * 224 * 4))
    assert len(small[0].shards) == 4
    assert {len(claim.shards) for claim in large} == {1}


def test_a_fresh_process_makes_the_bench_from_the_job_and_finds_the_same_facts(tmp_path):
    evaluate("digits-cnn", "digits", ATTACKS, defense="bit-depth:bits=3", eps=0.1, n=60, indices=None, tile=16,
             target="random", shard_size=25, out=tmp_path, doctor=False)  # fmt: skip
    code = (
        "import json, sys, numpy as np, torch\n"
        "from robustkit.engine.measure import rebuilt\n"
        "from robustkit.engine.request import Execution\n"
        "from robustkit.engine.shard import attack_shard\n"
        "held = json.load(open(sys.argv[1] + '/job.json'))\n"
        "torch.set_num_threads(held['job']['threads'])\n"
        "with rebuilt(held['job'], Execution(shard_size=held['plan']['shard_size'])) as bench:\n"
        "    for part in attack_shard(bench, 1, lambda shard, step: None):\n"
        "        np.savez(f'{sys.argv[1]}/again-{part.step}.npz', **part.facts)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for step in range(3):
        journalled, made = tmp_path / f"journal/shard-00001-{step:02d}.npz", tmp_path / f"again-{step}.npz"
        with np.load(journalled) as known, np.load(made) as again:
            assert_same({step: dict(known)}, {step: dict(again)})


def test_a_job_of_other_weights_or_of_a_sweep_is_refused(tmp_path):
    evaluate("digits-cnn", "digits", "fgsm", eps=0.1, n=10, out=tmp_path, doctor=False)
    job = json.loads((tmp_path / "job.json").read_text())["job"]
    with pytest.raises(UsageError, match="model_sha256"), rebuilt({**job, "model_sha256": "0" * 64}, Execution()):
        pass
    with pytest.raises(UsageError, match="smaller eps"), rebuilt({**job, "carried": "0" * 64}, Execution()):
        pass


class _SometimesLies(toys._Settings):
    """Leaves the ball on the samples whose random number says so."""

    def __call__(self, case):
        lies = case.draws.uniform((1,))[:, 0] < 0.4
        return torch.where(lies[:, None, None, None], 1 - case.x, case.threat.sample(case.x, case.draws))


class _Stop(Exception):
    pass


def test_a_run_that_was_stopped_tells_what_went_wrong_word_for_word(tmp_path):
    attacks = [_SometimesLies(), toys.Raises()]

    def run(out, on_event=None):
        return evaluate("digits-cnn-at", "digits", attacks, eps=0.2, n=70, tile=16, batch_size=16, shard_size=32,
                        out=out, on_event=on_event, doctor=False)  # fmt: skip

    calm = run(tmp_path / "calm")
    told = []

    def stop(event):
        told.append(event)
        if len(told) > 14:
            raise _Stop

    with pytest.raises(_Stop):
        run(tmp_path / "stopped", stop)
    parts = len(list((tmp_path / "stopped/journal").glob("*.npz")))
    assert 0 < parts < len(list((tmp_path / "calm/journal").glob("*.npz")))
    again = run(tmp_path / "stopped")
    assert calm.errors == again.errors
    assert len(calm.errors) == 2
    for name, column in calm.attacks.items():
        assert np.array_equal(column, again.attacks[name], equal_nan=column.dtype.kind == "f"), name


def test_what_a_finished_run_left_undecided_is_tried_again(tmp_path):
    fails = True

    class Flaky(toys._Settings):
        def __call__(self, case):
            if fails:
                raise RuntimeError("on purpose")
            return case.threat.sample(case.x, case.draws)

    def run():
        return evaluate("digits-cnn-at", "digits", Flaky(), eps=0.2, n=20, out=tmp_path, doctor=False)

    assert run().unknown == 20
    fails = False
    again = run()
    assert again.unknown == 0
    assert again.errors == []


def test_what_is_tried_again_takes_its_place_among_what_was_known(tmp_path):
    lies = False

    class OftenLies(toys._Settings):
        def __call__(self, case):
            adv = case.threat.sample(case.x, case.draws)
            there = (case.rows % 3 != 1) & lies
            return torch.where(there[:, None, None, None], adv + 2, adv)

    def run(folder):
        images = torch.rand(20, 1, 4, 4, generator=toys.seeded(1))
        pair = (images, toys.Linear()(images).argmax(1))
        return evaluate(toys.Linear(), pair, OftenLies(), eps=0.1, shard_size=8, out=tmp_path / folder, doctor=False)

    calm, lies = run("calm"), True
    assert run("lied").unknown == 13
    lies = False
    again = run("lied")
    assert again.unknown == 0
    assert again.attacks["index"].tolist() == list(range(20))
    for name, column in calm.attacks.items():
        assert np.array_equal(column, again.attacks[name], equal_nan=column.dtype.kind == "f"), name


@pytest.mark.parametrize(
    ("attack", "norm", "eps"),
    [
        ("pgd:steps=1,restarts={}", "linf", 0.15),
        ("apgd:steps=4,restarts={}", "linf", 0.15),
        ("apgd:loss=dlr-targeted,targets=3,steps=4,restarts={}", "l2", 1.2),
        ("apgd:steps=4,restarts={}", "l1", 6),
        ("square:queries=15,restarts={}", "linf", 0.15),
        ("fab:steps=3,targets=2,restarts={}", "l2", 1.2),
    ],
)
def test_more_restarts_break_all_that_fewer_break(opened, attack, norm, eps):
    def broken(restarts):
        record = measure(opened, Request(attack.format(restarts), threat_of(norm, eps), "digits"))
        return set(record.samples["index"][record.samples["status"] == "BROKEN"].tolist())

    one, more = broken(1), broken(4)
    assert one < more, "the eps must leave something to break"


def test_two_places_with_one_attack_draw_independent_numbers_and_one_place_the_same_whatever_it_spends(opened):
    drawn = {}

    @dataclass(frozen=True)
    class Draws(toys._Settings):
        steps: int = 1
        loss: str = "ce"

        def __call__(self, case):
            drawn[self.steps, self.loss] = case.draws.uniform((3,))
            return case.x

    def ask(*attacks):
        drawn.clear()
        measure(opened.on(opened.samples.at(range(8))), Request(list(attacks), threat_of("linf", 0.1), "digits"))
        return dict(drawn)

    together, alone = ask(Draws(1), Draws(2), Draws(1, "dlr")), ask(Draws(7))
    assert torch.equal(together[1, "ce"], alone[7, "ce"])
    assert not (together[1, "ce"] == together[2, "ce"]).any()
    assert not (together[1, "ce"] == together[1, "dlr"]).any()
