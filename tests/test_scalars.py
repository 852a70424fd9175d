"""Scalars as people have them: integers of numpy and torch are taken, what is no whole number is refused everywhere."""

import importlib

import numpy as np
import pytest
import torch
from robustkit_attacks.pgd import PGD
from robustkit_defenses.bit_depth import BitDepth

import robustkit
from robustkit import evaluate
from robustkit.datasets import load_dataset
from robustkit.datasets.corrupted import Corrupted
from robustkit.datasets.scenes import Scenes
from robustkit.engine.request import check_counts, threat_of
from robustkit.errors import UsageError
from robustkit.spec import text_of, whole
from robustkit.training.run import Request
from tests.test_engine import linear_case

WRONG = (1.5, 2.0, np.float64(2), -1, None, True, np.True_, "2", [2], float("nan"))


@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint16, torch.tensor, np.array])
def test_whole_numbers_of_any_library_are_ints(kind):
    assert type(whole(kind(3), "n")) is int
    assert whole(kind(3), "n") == 3


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(UsageError, match="n must be a whole number of at least 1, not "):
        whole(value, "n")


@pytest.mark.parametrize("name", ["seed", "n", "tile", "draws", "batch_size", "shard_size"])
def test_numpy_integers_give_the_run_of_plain_ones(name, tmp_path):
    model, x, y = linear_case(20)

    def run(kind):
        record = evaluate(
            model, (x, y), "pgd:steps=2", eps=0.05, out=tmp_path / f"{name}{kind.__name__}", **{name: kind(4)}
        )
        return record.job["id"], record.samples["status"].tolist(), record.job["seed"]

    assert run(np.int64) == run(int)


@pytest.mark.parametrize("name", ["seed", "n", "tile", "draws", "batch_size", "shard_size"])
@pytest.mark.parametrize("value", [1.5, 4.0, -1, True, "4"], ids=repr)
def test_other_scalars_are_one_line(name, value):
    model, x, y = linear_case(20)
    with pytest.raises(UsageError, match=name) as caught:
        evaluate(model, (x, y), "fgsm", eps=0.05, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [1.5, -1, None, True, "0"], ids=repr)
def test_a_seed_is_passed_on_nowhere(seed):
    model, x, y = linear_case(20)
    audit = importlib.import_module("robustkit.audit.run").audit
    calls = [
        lambda: evaluate(model, (x, y), "fgsm", eps=0.05, seed=seed),
        lambda: audit(model, (x, y), eps=0.05, seed=seed),
        lambda: Corrupted(robustkit.datasets.Pair(x, y), seed=seed),
        lambda: Scenes(seed=seed),
        lambda: Request("standard", "cnn", "digits", seed=seed),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="seed must be a whole number of at least 0, not"):
            call()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: PGD(steps=2.5), "PGD: steps must be a whole number, not 2.5"),
        (lambda: PGD(steps=np.float64(5)), "PGD: steps must be a whole number"),
        (lambda: PGD(restarts=True), "PGD: restarts must be a whole number, not True"),
        (lambda: PGD(step=True), "PGD: step must be a number, not True"),
        (lambda: PGD(random_start=1), "PGD: random_start must be True or False, not 1"),
        (lambda: PGD(loss="mse"), "PGD: loss must be one of ce, .*, not 'mse'"),
    ],
)
def test_settings_made_in_python_are_typed_as_text_is(made, message):
    model, x, y = linear_case(20)
    for attack in (made(), [made()]):
        with pytest.raises(UsageError, match=message):
            evaluate(model, (x, y), attack, eps=0.05)


def test_settings_of_a_defense_are_typed_too():
    model, x, y = linear_case(20)
    with pytest.raises(UsageError, match=r"BitDepth: bits must be a whole number, not 2.5"):
        evaluate(model, (x, y), "fgsm", eps=0.05, defense=BitDepth(bits=2.5))


def test_numpy_settings_have_the_name_that_makes_them_again():
    model, x, y = linear_case(20)

    def names(attack):
        return evaluate(model, (x, y), attack, eps=0.05).job["attacks"]

    assert names(PGD(steps=np.int64(3), step=np.float64(0.25), random_start=np.False_)) == [
        "pgd:steps=3,step=0.25,random_start=false"
    ]
    name = text_of(np.float32(0.1))  # its own value, not that of 0.1
    assert float(name) == float(np.float32(0.1)) != 0.1
    assert (text_of(np.True_), text_of(np.int64(3)), text_of(0.1)) == ("true", "3", "0.1")


def test_an_eps_is_a_number():
    for eps in (np.float32(0.25), torch.tensor(0.25), np.array(0.25), "1/4", 0.25):
        assert threat_of("linf", eps).eps == 0.25
    for eps in (True, [0.1], float("nan"), {}, "nan"):
        with pytest.raises(UsageError, match=r"8/255"):
            threat_of("linf", eps)


@pytest.mark.parametrize(
    "indices", [[True, False], np.arange(20) < 5, torch.arange(20) < 5, [0.0, 1.0], 5, ["0"]], ids=repr
)
def test_a_mask_or_fractions_are_no_indices(indices):
    model, x, y = linear_case(20)
    with pytest.raises(UsageError, match="indices must be whole numbers or text such as '0-199,400', not") as caught:
        evaluate(model, (x, y), "fgsm", eps=0.05, indices=indices)
    assert "\n" not in str(caught.value)


def test_indices_of_any_library_are_taken():
    model, x, y = linear_case(20)
    for indices in (np.array([3, 1]), torch.tensor([3, 1]), iter([3, 1]), (np.int64(3), 1), "3,1"):
        assert evaluate(model, (x, y), "fgsm", eps=0.05, indices=indices).job["indices"] == [3, 1]


def test_a_target_in_other_digits_is_refused():
    model, x, y = linear_case(20)
    with pytest.raises(UsageError, match="target '²' must be a class"):
        evaluate(model, (x, y), "fgsm", eps=0.05, target="²")


def test_a_count_that_is_not_given_is_no_fault():
    check_counts(tile=None, draws=np.int64(1))
    assert load_dataset("scenes:n=3,seed=1").seed == 1
