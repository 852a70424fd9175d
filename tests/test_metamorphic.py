"""What must not change a record: the batch, the shard, a shift or a scale of the logits, the precision."""

import pytest
from robustkit_attacks.apgd import APGD
from robustkit_attacks.pgd import PGD
from robustkit_attacks.square import Square

import robustkit
from robustkit import evaluate
from tests import toys
from tests.test_engine import small_autoattack


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_records_are_bit_identical_for_any_batch_and_shard_size(norm):
    model = robustkit.load_model("digits-cnn-at")[0]
    eps = {"linf": 0.2, "l2": 0.8}[norm]

    def run(**options):
        return evaluate(model, "digits", small_autoattack(), norm=norm, eps=eps, n=90, tile=16, **options)

    first = run()
    for options in ({"batch_size": 16}, {"batch_size": 48, "shard_size": 23}, {"shard_size": 1, "batch_size": 16}):
        other = run(**options)
        assert other.to_frame().equals(first.to_frame())
        assert other.attacks_frame().equals(first.attacks_frame())
        assert other.job == first.job
    assert 0 < first.counts["BROKEN"] < 90


def test_shifted_logits_change_no_status_and_scaled_ones_none_of_the_scale_free_losses():
    model = robustkit.load_model("digits-cnn-at")[0]

    def statuses(module, attack):
        return evaluate(module, "digits", attack, eps=0.2, n=80).to_frame()["status"]

    attack = small_autoattack()
    assert statuses(toys.Wrapped(model, shift=-50.0), attack).equals(statuses(model, attack))
    for free in (APGD("dlr", steps=15), PGD(steps=15, loss="margin"), Square(queries=80)):
        assert statuses(toys.Wrapped(model, scale=1000.0), free).equals(statuses(model, free)), free


def test_a_float64_model_is_called_in_float64_and_gives_the_same_statuses():
    model = robustkit.load_model("digits-cnn-at")[0]
    single = evaluate(model, "digits", small_autoattack(), eps=0.2, n=80)
    double = evaluate(model.double(), "digits", small_autoattack(), eps=0.2, n=80)
    assert double.job["precision"] == "float64"
    assert (double.to_frame()["status"] != single.to_frame()["status"]).sum() <= 1
