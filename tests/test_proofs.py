"""Certificates within an evaluation: both bounds in one record, in whatever order, and a false proof stops the run."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import robustkit
from robustkit.certificates import ladder
from robustkit.certificates.proofs import evaluate_bounds
from robustkit.cli import main
from robustkit.engine import proofs
from robustkit.engine.plan import resolve_attacks
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import baseline, gate
from robustkit.records.folder import load_run
from robustkit.report import files
from robustkit.report.plots import source

ATTACK, EPS, N = "(fgsm)+(apgd:steps=5)+(square:queries=50)", 0.12, 40


def run(order: str = "", **more):
    given = {"eps": EPS, "n": N, "certify": f"crown{order}", "doctor": False, **more}
    return robustkit.evaluate("digits-cnn-at", "digits", given.pop("attack", ATTACK), **given)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proofs") / "run"
    return run(":order=first", out=folder), folder


@pytest.fixture(scope="module")
def last():
    return run(":order=last")


@pytest.fixture(scope="module")
def plain():
    return run(certify="")


def test_both_bounds_are_of_the_same_samples(first, last, plain) -> None:
    for record in (first[0], last):
        certified = record.samples["certified"]
        assert 5 < certified.sum() < N  # or nothing was asked
        assert (record.samples["status"] == plain.samples["status"]).all()
        assert set(record.samples["status"][certified]) == {"ROBUST"}
        assert float(record.certified_accuracy) <= float(record.robust_accuracy) <= float(record.clean_accuracy)
        assert record.certified_accuracy.k + record.open + record.counts["BROKEN"] + record.counts["WRONG"] == N
        assert (record.samples["bound"][certified] > record.samples["needed"][certified]).all()
    assert (first[0].samples["certified"] == last.samples["certified"]).all()


def test_what_is_proved_first_is_not_attacked_but_for_a_share(first, last) -> None:
    record, _ = first
    proved = record.samples["index"][record.samples["certified"]]
    assert not np.isin(record.attacks["index"], proved).any()
    assert record.samples["checked"].sum() == min(32, len(proved))
    assert (record.samples["checked"] <= record.samples["certified"]).all()
    assert record.certificates["check"]["passes"] > 0
    assert record.certificates["after"] == 0
    assert np.isin(proved, last.attacks["index"]).all()  # every proved sample was attacked, and stands
    assert last.samples["checked"].sum() == 0
    assert last.certificates["after"] == 3


def test_a_stored_run_has_both_bounds_and_continues(first) -> None:
    record, folder = first
    again = load_run(folder)
    assert again.certified_accuracy.k == record.certified_accuracy.k
    for name in ("certified", "rung", "bound", "checked"):
        np.testing.assert_array_equal(again.samples[name], record.samples[name])
    summary = json.loads((folder / "run.json").read_text())
    assert summary["summary"]["certified_accuracy"] == record.certified_accuracy.to_json()
    assert summary["job"]["certify"] == "crown:order=first"
    (folder / "run.json").unlink()
    (folder / "journal" / "shard-00000-02.npz").unlink()
    continued = run(":order=first", out=folder)
    assert (continued.samples["certified"] == record.samples["certified"]).all()
    assert (continued.samples["status"] == record.samples["status"]).all()


def test_a_run_without_certificates_is_the_job_it_was(plain, last) -> None:
    assert "certify" not in plain.job
    assert plain.certified_accuracy is None
    assert "certified_accuracy" not in plain.to_json()["summary"]
    assert plain.job["id"] != last.job["id"]


def test_a_false_proof_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    honest = ladder.prove

    def lying(*given):
        found = honest(*given)
        return found._replace(proved=torch.ones_like(found.proved))

    monkeypatch.setattr(ladder, "prove", lying)
    with pytest.raises(NotEstablishedError, match=r"sample \d+ is both proved and broken.*crown bounds its margin by"):
        run(":order=first", eps=0.3, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_record_that_contradicts_itself_is_refused(first) -> None:
    from robustkit.records.consistency import check_run

    record, _ = first
    certified = record.samples["certified"].copy()
    certified[np.flatnonzero(record.samples["status"] == "BROKEN")[0]] = True
    forged = replace(record, samples={**record.samples, "certified": certified})
    with pytest.raises(UsageError, match="contradicts itself"):
        check_run(forged, {})
    check_run(record, {})


def test_a_model_without_bounds_is_attacked_all_the_same() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()
    record = robustkit.evaluate(network, "digits", "fgsm", n=16, eps=0.1, certify="ibp", outputs="probs", doctor=False)
    assert record.certified_accuracy is None
    assert [f["message"] for f in record.flags if f["kind"] == "not certifiable"] == ["not certifiable: Softmax at 2"]
    with pytest.raises(UsageError, match="not certifiable: Softmax at 2"):
        evaluate_bounds(network, "digits", n=4, method="ibp", eps=0.1, outputs="probs")


def test_requests_that_make_no_sense() -> None:
    for given, message in (
        ({"certify": "crwn"}, "did you mean crown"),
        ({"certify": "crown:order=middle"}, "order=middle; there are: auto, first, last"),
        ({"certify": "crown:steps=3"}, "no option steps"),
        ({"certify": "crown", "norm": "l0", "eps": 3}, "linf, l2, l1, not l0"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**given)


def test_proofs_stand_where_they_save_more_than_they_take() -> None:
    facts = robustkit.api.ModelFacts(10, False, True, 0, ())
    threat = robustkit.api.ThreatModel("linf", 0.1)
    attacks = resolve_attacks("autoattack", threat, facts)
    quick = resolve_attacks("apgd:steps=20", threat, facts)
    assert proofs.best_place(0.8, 100.0, attacks, facts) == 0
    assert proofs.best_place(0.8, 2_000.0, attacks, facts) == 1  # APGD breaks what breaks for less
    assert proofs.best_place(0.01, 2_000.0, attacks, facts) == len(attacks)
    assert proofs.best_place(0.8, 2_000.0, quick, facts) == len(quick)  # a proof takes more than it saves
    assert proofs.best_place(0.9, 12.0, quick, facts) == 0


def test_the_share_to_check_is_seeded_and_at_least_so_many() -> None:
    proved = np.zeros(2_000, dtype=bool)
    proved[::2] = True
    one, same, other = (proofs.chosen(proved, range(2_000), seed) for seed in (0, 0, 1))
    assert len(one) == 50
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert proved[one].all()
    assert len(proofs.chosen(proved[:100], range(100), 0)) == 32
    assert len(proofs.chosen(proved[:10], range(10), 0)) == 5


def test_reports_show_the_bracket(first) -> None:
    record, _ = first
    made = files.of_run(record, ["html", "md", "tex", "csv"])
    proved, rest = record.certified_accuracy.k, record.open
    assert f"certified accuracy {record.certified_accuracy}" in record.summary()
    assert f"proved {proved}, open {rest}, broken {record.counts['BROKEN']}" in made["report.md"]
    assert f"proved {proved}</span>" in made["report.html"]
    assert "Certified accuracy" in made["report.html"]
    assert f"{proved} proved, {rest} open" in made["tables.tex"]
    assert f"bracket,proved,{proved / N!r}" in made["tables.csv"]


def test_the_gate_holds_a_floor_on_either_side(first, plain, tmp_path) -> None:
    record, _ = first
    share = float(record.certified_accuracy)
    assert gate.floors(record, 0.0, share) == []
    (below,) = gate.floors(record, 0.0, share + 0.01)
    assert "the certified accuracy is" in below
    (below,) = gate.floors(record, 1.0, None)
    assert "the robust accuracy is" in below
    with pytest.raises(NotEstablishedError, match="add --certify"):
        gate.floors(plain, None, 0.1)
    file = tmp_path / "base.json"
    baseline.save(record, file)
    kept = baseline.load(file)
    assert kept.certified_accuracy.k == record.certified_accuracy.k
    assert gate.judge(kept, record, Fraction(0)).passed


def test_the_gate_command_fails_below_a_floor(first, tmp_path, capsys) -> None:
    record, folder = first
    file = tmp_path / "base.json"
    baseline.save(record, file)
    for asked, code in (([], 0), (["--min-certified", "99%"], 1), (["--min-robust", "1%"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["gate", "--baseline", str(file), "--run", str(folder), *asked])
        assert ended.value.code == code
    assert "below the floor of 99 %" in capsys.readouterr().out


def test_plots_have_a_row_for_what_is_proved(first) -> None:
    pytest.importorskip("matplotlib")
    from robustkit.report.plots import attacks

    figure = attacks.draw([source.Source("run", first[0])], "one")
    assert "certified" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_a_sweep_shows_what_is_proved_at_each_eps(first) -> None:
    from robustkit.records.sweep import Sweep

    record, _ = first
    made = Sweep(("0.12",), (record,))
    pages = files.of_sweep(made, ["md", "tex", "csv"])
    assert f"{record.certified_accuracy} certified" in made.summary()
    assert "| eps | accuracy | certified | carried | audit |" in pages["report.md"]
    assert f"certified,0.12,{float(record.certified_accuracy)!r}" in pages["tables.csv"]
    assert "certified" in pages["tables.tex"]
