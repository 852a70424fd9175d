"""How records look and compare: five lines, a notebook's table, equal by job and facts; and what stands beside."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.datasets.names import NAMES, imagenet_names, names_of
from robustkit.datasets.pair import Pair
from robustkit.datasets.scenes import Scenes
from robustkit.records.about import About, day
from robustkit.records.folder import load_run
from robustkit.records.run import RunRecord
from robustkit.records.sweep import Sweep
from robustkit.spec import number, written
from tests import kinds, records

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("kind", kinds.RECORDS)
def test_printed_a_record_is_five_lines_and_a_notebook_has_a_table(kind):
    record = kinds.RECORDS[kind]()
    lines = str(record).splitlines()
    assert len(lines) == 5
    assert repr(record) == str(record)
    assert max(map(len, lines)) < 250
    assert "array(" not in str(record)
    html = record._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr>") == 4


def test_five_lines_of_five_thousand_samples():
    record = records.random_record(5000)
    assert len(str(record)) < 400  # it was 32,381


def test_markup_in_a_name_is_no_markup_in_the_notebook():
    record = records.random_record(20, model="<script>alert(1)</script>")
    assert "<script>" not in record._repr_html_()


@pytest.mark.parametrize("kind", kinds.RECORDS)
def test_records_compare_and_hash_by_job_and_facts(kind):
    one, other = kinds.RECORDS[kind](), kinds.RECORDS[kind]()
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1
    assert one != "something else"
    if isinstance(one, Sweep):
        renamed = dataclasses.replace(one, records=tuple(dataclasses.replace(r, about=About("x")) for r in one.records))
    else:
        renamed = dataclasses.replace(
            one, about=About("x", finished="2027-01-01T00:00:00Z"), environment={"device": "y"}
        )
    assert renamed == one


def test_another_fact_or_another_job_is_another_record():
    record = kinds.run()
    status = record.samples["status"].copy()
    status[np.flatnonzero(status == "ROBUST")[0]] = "BROKEN"
    assert dataclasses.replace(record, samples={**record.samples, "status": status}) != record
    assert dataclasses.replace(record, job={**record.job, "id": "0" * 64}) != record
    certificate = kinds.certificate()
    moved = (dataclasses.replace(certificate.images[0], radius=9.0), *certificate.images[1:])
    assert dataclasses.replace(certificate, images=moved) != certificate
    assert dataclasses.replace(certificate, radii=(0.0,)) == certificate  # at which radii it is told is no fact
    corruptions = kinds.corruptions()
    assert dataclasses.replace(corruptions, clean=None) != corruptions
    audit = kinds.audit()
    assert kinds.audit(records.AUDIT["checks"][:2]) != audit
    transfer = kinds.transfer()
    assert kinds.transfer(seed=1) != transfer


def test_a_record_that_was_stored_is_the_one_that_was_made():
    """Parquet gives other types back than what was computed: the facts are the same."""
    stored = load_run(FIXTURES / "run-1")
    again = dataclasses.replace(
        stored, samples={name: column.astype(object) if column.dtype.kind == "U" else column
                         for name, column in stored.samples.items()},
    )  # fmt: skip
    assert again == stored
    assert stored.about == About()  # it is from before there was one
    assert isinstance(stored, RunRecord)


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (2 / 255, "2/255"), (0.1, "0.1"), (0.2, "0.2"), (0.5, "0.5"), (12.0, "12"), (1 / 3, "1/3"),
     (16 / 255, "16/255"), (10.0, "10"), (float("inf"), "inf"), (0.0314159265, "0.0314159265")],
)  # fmt: skip
def test_an_eps_is_written_as_one_would(value, text):
    assert written(value) == text


@given(st.floats(1e-6, 100))
def test_a_written_eps_reads_back(value):
    assert number(written(value)) == value


@given(st.integers(1, 255))
def test_so_does_each_level_of_a_pixel(level):
    text = written(level / 255)
    assert number(text) == level / 255
    assert Fraction(text) in (Fraction(level, 255), Fraction(str(level / 255)))
    assert len(text) < 12


def test_an_eps_that_was_given_otherwise_stays_so():
    assert About(eps="51/255").written(0.2) == "51/255"
    assert About(eps="51/255").written(0.1) == "0.1"  # it is of another number
    assert About(eps="nonsense").written(8 / 255) == "8/255"
    record = dataclasses.replace(records.random_record(20, eps=0.2), about=About(eps="51/255"))
    assert "linf eps 51/255," in record.summary()


def test_what_stands_beside_the_facts_survives_its_file_and_takes_no_nonsense():
    about = About("ours", "8/255", "2026-01-31T09:00:00Z", "2026-01-31T12:00:00Z", ("a", "b"))
    assert About.from_json(json.loads(json.dumps(about.to_json()))) == about
    assert About().to_json() == {}
    for damaged in (None, 3, [], {"classes": 3}, {"classes": "ab"}, {"label": None}):
        assert About.from_json(damaged) == About()
    assert day(about.finished) == about.date == "2026-01-31 12:00 UTC"


def test_classes_are_called_by_name_and_twins_by_number_too():
    about = About(classes=("crane", "dog", "crane"))
    assert [about.named(k) for k in (0, 1, 2, 3, -1)] == ["crane (0)", "dog", "crane (2)", "3", "-1"]


def test_data_sets_know_their_names():
    assert names_of(Scenes(n=10))[3] == "plus"
    x = np.zeros((3, 1, 8, 8), dtype=np.float32)
    assert names_of(Pair(x, [0, 1, 2], "digits", 10)) == ()  # numbers are no names
    assert names_of(Pair(np.zeros((2, 3, 32, 32), dtype=np.float32), [0, 1], "cifar10", 10)) == NAMES["cifar10"]
    assert len(set(NAMES["cifar100"])) == 100
    assert list(NAMES["cifar100"]) == sorted(NAMES["cifar100"])  # as the file has them
    if found := imagenet_names():
        assert (found[0], found[207], found[999]) == ("tench", "golden retriever", "toilet tissue")
