"""The facts that a run stores are those that the schema names, of the types it names."""

import numpy as np
import pytest
import torch

from robustkit import evaluate
from robustkit.engine import judge
from robustkit.records import schema
from robustkit.records.folder import load_run
from tests import toys
from tests.test_randomised import Coin

RUNS = {"plain": {}, "quantized": {"quantize": "8bit"}, "randomised": {"draws": 3}}
WHERE = {"plain": (), "quantized": ("quantize",), "randomised": ("draws",)}


def kinds(arrays):
    return {name: np.dtype(values.dtype).kind for name, values in arrays.items()}


def named(columns, where):
    return {c.name: np.dtype(c.dtype).kind for c in columns if c.where in ("always", *where)}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_stores_the_facts_of_the_schema_and_all_its_reports(tmp_path, kind):
    x = torch.rand(12, 1, 4, 4, generator=toys.seeded(1))
    model = Coin() if kind == "randomised" else toys.Linear()
    labels = torch.zeros(12, dtype=torch.int64) if kind == "randomised" else model(x).argmax(1)
    made = evaluate(
        model, (x, labels), "pgd:steps=2", eps=0.2, doctor=False, save_adversarial=True, out=tmp_path, **RUNS[kind]
    )
    for record in (made, load_run(tmp_path)):
        assert kinds(record.samples) == named(schema.SAMPLES, WHERE[kind])
        assert kinds(record.attacks) == named(schema.ATTACKS, WHERE[kind])
        assert set(record.samples["status"]) <= set(schema.STATUSES)
        assert set(record.attacks["outcome"]) <= set(schema.OUTCOMES)
    clean, attack = (dict(np.load(tmp_path / f"journal/shard-00000-0{step}.npz")) for step in (0, 1))
    assert kinds(clean) == named(schema.CLEAN_FACTS, WHERE[kind])
    beside = {"seconds": "f", "adv": "f", "adv_position": "i"}
    assert kinds(attack) == {**named(schema.ATTACK_FACTS, WHERE[kind]), **beside}
    outcome = np.array(schema.OUTCOMES)[attack["outcome"]]
    assert outcome.tolist() == made.attacks["outcome"].tolist()
    assert {"report.md", "report.html", "tables.tex", "tables.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_the_codes_are_those_of_every_journal_written_so_far():
    codes = {"survived": judge.SURVIVED, "broken": judge.BROKEN, "violated": judge.VIOLATED}
    assert codes == {"survived": 0, "broken": 1, "violated": 2}
    assert [codes[word] for word in schema.OUTCOMES] == [0, 1, 2]
