"""What the record says of adversarials: the class that the model decides on each, and the originals beside the kept."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robustkit import evaluate
from tests import toys


def linear_case(n):
    model = toys.Linear(shape=(1, 4, 4))
    x = torch.rand(n, 1, 4, 4, generator=toys.seeded(5))
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("target", [None, "random"])
def test_the_stored_prediction_is_the_model_s_decision_on_the_kept_adversarial(target, tmp_path):
    model, x, y = linear_case(60)
    record = evaluate(model, (x, y), "(fgsm)+(pgd:steps=20)", eps=0.2, target=target, save_adversarial=True,
                      out=tmp_path / "run", shard_size=16)  # fmt: skip
    kept, rows = record.adversarial, record.attacks
    assert len(kept["index"]) == record.counts["BROKEN"] > 5
    assert np.array_equal(kept["clean"], x.numpy()[kept["index"]])
    decided = dict(zip(kept["index"].tolist(), model(torch.from_numpy(kept["adv"])).argmax(1).tolist(), strict=True))
    broke = rows["outcome"] == "broken"
    said = dict(zip(rows["index"][broke].tolist(), rows["prediction"][broke].tolist(), strict=True))
    assert said == decided
    if target is None:
        assert all(label != said.get(i) for i, label in enumerate(y.tolist()))
        survived = rows["outcome"] == "survived"
        assert np.array_equal(rows["prediction"][survived], y.numpy()[rows["index"][survived]])


def test_what_broke_the_rules_leaves_no_prediction():
    model, x, y = linear_case(12)
    record = evaluate(model, (x, y), toys.LeavesBall(), eps=0.05)
    violated = record.attacks["outcome"] == "violated"
    assert violated.all()
    assert (record.attacks["prediction"] == -1).all()


def test_of_a_randomised_model_it_is_what_the_voting_draws_say_most_often():
    class Coin(torch.nn.Module):
        """Class 2 on any image that was moved, and class 1 in a tenth of the passes; class 0 unattacked."""

        randomised = True

        def forward(self, x):
            noise = torch.rand(len(x)) < 0.1
            moved = (x.flatten(1) != 0.5).any(1)
            decided = torch.where(moved, torch.where(noise, 1, 2), 0)
            return torch.nn.functional.one_hot(decided, 3).float()

    @dataclass(frozen=True)
    class Moves(toys._Settings):
        def __call__(self, case):
            return case.threat.clip(case.x + 0.01)

    x = torch.full((30, 1, 2, 2), 0.5)
    record = evaluate(Coin(), (x, torch.zeros(30, dtype=torch.int64)), Moves(), eps=0.05, draws=9, doctor=False)
    broke = record.attacks["outcome"] == "broken"
    assert broke.sum() > 20
    assert set(record.attacks["prediction"][broke].tolist()) <= {1, 2}
    assert (record.attacks["prediction"][broke] == 2).mean() > 0.9
