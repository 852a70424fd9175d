"""benchmarks/fallen: the parts of attacks made by hand that have a closed form, and the page from rows written here."""

import csv

import pytest
import torch
from robustkit_defenses.fallen.mixture import RandomMixture
from torch import nn

from benchmarks.fallen import page
from benchmarks.fallen.arc import ARC, expected, nearest
from benchmarks.fallen.by_hand import Known, lead
from benchmarks.fallen.cases import CASES
from robustkit.api import ThreatModel
from robustkit.models import capabilities
from robustkit.models.ensembles import Ensemble
from robustkit.testing import attack_batch
from tests import toys


def linear(weights, bias=None):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, len(weights)))
    net[1].weight.data = torch.tensor(weights)
    net[1].bias.data = torch.zeros(len(weights)) if bias is None else torch.tensor(bias)
    return net.eval().requires_grad_(False)


def test_the_nearest_linear_boundary_in_closed_form():
    net = linear([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 3.0, 3.0]])
    x = torch.tensor([[0.9, 0.5, 0.1, 0.1]]).view(1, 1, 2, 2)
    far, towards = nearest(net, x, torch.tensor([0]))
    # class 1: (0.9 − 0.5) / (1 + 1); class 2: (0.9 − 0.6) / (1 + 6), which is nearer
    assert float(far) == pytest.approx(0.3 / 7)
    assert towards.flatten().tolist() == [-1, 0, 1, 1]
    moved = net(x + far * towards)
    assert float(moved[0, 0]) == pytest.approx(float(moved[0, 2]), abs=1e-6)


def test_arc_breaks_both_of_two_linear_members_that_cancel():
    """The gradients of the two members point apart: their mean is zero along the axis on which both can be broken."""
    one, two = linear([[4.0, 1, 0, 0], [0, 0, 0, 0]], [-2.0, 0]), linear([[-4.0, 1, 0, 0], [0, 0, 0, 0]], [2.0, 0])
    model = RandomMixture(weights=(0.5, 0.5)).protect(Ensemble([one, two]))
    x, y = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.long)
    x[:, 0, 0, 1] = torch.linspace(0.05, 0.35, 8)
    assert torch.equal(expected(model.members(), torch.tensor([0.5, 0.5]), x, y), torch.ones(8).double())
    found = attack_batch(ARC(steps=10), Known(model, model).eval(), x, y, ThreatModel("linf", 0.1))
    adv = found.verdicts.adv
    assert (expected(model.members(), torch.tensor([0.5, 0.5]), adv, y) <= 0.5).all()
    assert ((adv - x).abs() <= 0.1 + 1e-6).all()


def test_what_is_known_is_declared_and_what_is_judged_answers():
    declared = RandomMixture().protect(Ensemble([linear([[1.0, 0, 0, 0], [0, 1, 0, 0]]) for _ in range(2)]))
    judged = linear([[0.0, 0, 1, 0], [0, 0, 0, 1]])
    known, x = Known(judged, declared), torch.rand(3, 1, 2, 2, generator=toys.seeded(0))
    assert torch.equal(known(x), judged(x))
    assert set(capabilities.surrogates(known)) == {"expected", "itself"}
    assert not capabilities.randomised(known)
    assert capabilities.randomised(Known(declared, declared))
    assert torch.equal(lead(torch.tensor([[1.0, 3, 2], [5, 1, 2]]), torch.tensor([1, 1])), torch.tensor([-1.0, 4.0]))


def test_the_page_counts_what_is_near_what_is_doubted_and_names_what_is_missed(tmp_path):
    def row(name, dress, run, robust, verdict=""):
        return {
            "name": name, "dress": dress, "run": run, "n": 64, "clean": 100.0, "robust": robust, "verdict": verdict,
            "signs": ["queries"] if verdict == "suspect" else [], "flags": [], "forwards": 9.0, "backwards": 5.0,
            "seconds": 1.0, "code": "0",
        }  # fmt: skip

    rows = [row("dknn", "declared", "by-hand", 5.0), row("dknn", "declared", "careless", 80.0)]
    for dress, robust, verdict in (
        ("declared", 8.0, "valid"), ("undeclared", 40.0, "suspect"), ("sealed", 41.0, "valid")
    ):  # fmt: skip
        rows.append(row("dknn", dress, "adaptive", robust, verdict))
    page.write(tmp_path, rows)
    text = (tmp_path / "README.md").read_text()
    assert "**1 of 3**" in text
    assert "calls **1** suspect" in text
    assert "dknn (sealed: 41 left, 5 due, valid)" in text
    assert f"| {CASES['dknn'].title} | no figure seen | 80 |  | 5 | 8 · 40 · 41 | valid · suspect · valid |" in text
    with (tmp_path / "fallen.csv").open() as file:
        assert len(list(csv.reader(file))) == 6
