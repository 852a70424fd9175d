"""A part that stands for the whole: n images of data that lie class by class are a class-balanced draw."""

import importlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils import data as torch_data

from robustkit import evaluate, load_dataset
from robustkit.cli import main
from robustkit.datasets import Pair, resolve
from robustkit.datasets.choice import choose_indices, choose_samples
from robustkit.datasets.corrupted import Corrupted
from robustkit.datasets.subset import balanced, by_class

SORTED = torch.arange(10).repeat_interleave(20)
X = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Bare:
    """A dataset of one's own, whose labels are known by reading it only."""

    name, classes = "bare", 10

    def __len__(self):
        return 200

    def batch(self, indices):
        return X[list(indices)], SORTED[list(indices)]


def of_folder(tmp_path, per_class=(8, 8, 8)):
    pillow = pytest.importorskip("PIL.Image")
    for label, n in enumerate(per_class):
        folder = tmp_path / "d" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = np.full((4, 4, 3), 60 * label + i, dtype=np.uint8)
            pillow.fromarray(pixels).save(folder / f"{i}.png")
    return load_dataset(f"folder/{tmp_path}/d")


def linear(classes=3, channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, classes))


@pytest.mark.parametrize("n", [1, 3, 7, 10, 11, 25, 137, 200])
def test_each_class_has_as_many_and_a_larger_part_begins_with_a_smaller(n):
    chosen = balanced(SORTED, n)
    counts = SORTED[chosen].bincount(minlength=10)
    assert len(set(chosen)) == n
    assert counts.max() - counts.min() <= 1
    assert balanced(SORTED, 200)[:n] == chosen
    assert chosen != sorted(chosen) or n == 1


def test_a_class_of_few_images_gives_them_all():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    assert labels[balanced(labels, 31)].bincount().tolist() == [14, 3, 14]


def test_fewer_images_than_classes_are_a_fair_sample_of_the_classes():
    labels = torch.arange(1000).repeat_interleave(50)
    few = labels[balanced(labels, 100)]
    assert len(few.unique()) == 100
    assert 380 < few.double().mean() < 620  # not the first classes


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (SORTED, True),
        (SORTED.flip(0), True),
        (torch.cat([SORTED, SORTED]), True),  # two folders, one behind the other
        (torch.tensor([0] * 950 + [1] * 50), True),
        (SORTED[torch.randperm(200, generator=torch.Generator().manual_seed(0))], False),
        (torch.arange(200) % 10, False),
        (torch.arange(20), False),  # one image a class: no order shows
        (torch.zeros(20), False),
        (torch.tensor([3]), False),
    ],
)
def test_an_order_by_class_is_recognised(labels, wanted):
    assert by_class(labels.long()) is wanted


def test_the_order_of_the_usual_data_is_not_by_class():
    for spec in ("digits", "scenes:n=200"):
        data = load_dataset(spec)
        assert choose_indices(data, 50, None) == tuple(range(50))
        assert choose_samples(data, 50, None).rule == ""


def test_every_source_that_lies_by_class_is_balanced(tmp_path):
    folder = of_folder(tmp_path)
    np.savez(tmp_path / "sorted.npz", x=X.numpy(), y=SORTED.numpy())
    pair = Pair(X, SORTED)
    tensors = torch_data.TensorDataset(X, SORTED)

    class Targets(list):
        targets = SORTED.tolist()

    named = resolve(Targets([(X[i], int(SORTED[i])) for i in range(200)]))
    twice = resolve(torch_data.ConcatDataset([tensors] * 2))  # tells nothing of its labels
    assert choose_indices(twice, 5, None) == (0, 1, 2, 3, 4)
    sources = [pair, load_dataset(f"{tmp_path}/sorted.npz"), resolve(tensors), named, Corrupted(pair, "brightness", 1),
               resolve(torch_data.Subset(tensors, range(0, 200, 2)))]  # fmt: skip
    for data in sources:
        counts = choose_samples(data, 30, None).labels.bincount(minlength=10)
        assert counts.tolist() == [3] * 10, data
    assert choose_samples(folder, 6, None).labels.bincount().tolist() == [2, 2, 2]
    assert choose_indices(pair, None, None) == tuple(range(200))
    assert choose_indices(pair, 200, None) == tuple(range(200))
    assert choose_indices(pair, None, "0-29") == tuple(range(30))


def test_a_table_of_hugging_face_is_balanced():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [np.zeros((4, 4), np.uint8)] * 200, "label": SORTED.tolist()}
    table = resolve(datasets.Dataset.from_dict(rows, features))
    assert choose_samples(table, 20, None).labels.bincount(minlength=10).tolist() == [2] * 10


def test_the_rule_stands_in_the_record_and_the_seed_of_the_run_does_not_change_it(tmp_path):
    data = of_folder(tmp_path)
    record = evaluate(linear(), data, "fgsm", eps=0.1, n=6)
    assert np.bincount(record.samples["label"]).tolist() == [2, 2, 2]
    rules = [flag["message"] for flag in record.to_json()["flags"] if flag["kind"] == "n-rule"]
    assert rules == [
        "the data lie class by class, so n = 6 of 24 is a class-balanced draw (seed 0); indices 0-5 would be the first"
    ]
    assert f"note: {rules[0]}" in record.summary()
    again = evaluate(linear(), data, "fgsm", eps=0.1, n=6, seed=5)
    assert again.job["indices"] == record.job["indices"]
    exact = evaluate(linear(), data, "fgsm", eps=0.1, indices=record.job["indices"])
    assert exact.job["data_sha256"] == record.job["data_sha256"]
    assert not [flag for flag in exact.flags if flag["kind"] == "n-rule"]


def test_fewer_classes_than_the_model_has_are_said(tmp_path):
    def said(data, n=None, classes=10, **more):
        record = evaluate(linear(classes, 1), data, "fgsm", eps=0.1, n=n, **more)
        return [flag["message"] for flag in record.flags if flag["kind"] == "few-classes"]

    few = "the samples are of {} of the model's 10 classes; the figures say nothing of the others"
    assert said(Bare(), 40) == [few.format(2)]  # its order cannot be known before it is read
    assert said(Pair(X, SORTED), 40) == []
    assert said(Pair(X, SORTED), 7) == [few.format(7)]
    assert said(Pair(X, SORTED), 200, target=3) == []  # the target's samples are left out, which is said


def test_an_audit_looks_at_a_part_of_a_run_that_stands_for_it(monkeypatch):
    run = importlib.import_module("robustkit.audit.run")
    seen = []

    class Looked:
        def __init__(self, opened, *rest):
            seen.append(opened.samples.labels.bincount(minlength=10).tolist())

        def checks(self):
            return []

    monkeypatch.setattr(run, "_Audit", Looked)
    evaluate(linear(10, 1), Bare(), "fgsm", eps=0.1, audit=True)
    run.audit(linear(10, 1), Pair(X, SORTED), n=20)
    assert seen[1] == [2] * 10
    assert max(seen[0]) - min(seen[0]) <= 1
    assert sum(seen[0]) == 128
    shuffled = choose_samples(Pair(X, torch.arange(200) % 10), None, None)
    assert shuffled.some(50).indices == tuple(range(50))
    assert shuffled.some(500).indices == shuffled.indices


def test_the_command_says_it_and_takes_exact_indices(tmp_path):
    of_folder(tmp_path)
    command = ["eval", "--model", "python/tests.test_subset.linear", "--dataset", f"folder/{tmp_path}/d", "--attack",
               "fgsm", "--eps", "0.1", "--no-doctor", "--quiet", "--json", "-"]  # fmt: skip
    found = []
    for more in (["-n", "6"], ["--indices", "0-5"]):
        run = CliRunner().invoke(main, [*command, *more, "--out", str(tmp_path / "-".join(more))])
        assert run.exit_code == 0, run.output
        found.append(json.loads(run.stdout))
    kinds = [{flag["kind"] for flag in record["flags"]} & {"n-rule", "few-classes"} for record in found]
    assert kinds == [{"n-rule"}, {"few-classes"}]
    assert found[1]["job"]["indices"] == [0, 1, 2, 3, 4, 5]
