"""Reports say what the facts say, are whole by themselves, and print whatever a name is without obeying it."""

import csv
import dataclasses
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit import UsageError
from robustkit.cli import main
from robustkit.records.folder import RunFolder, load_run
from robustkit.records.sweep import Sweep
from robustkit.report import again, facts, files, gallery, page, svg
from robustkit.report.facts import Curve, LeftOut
from robustkit.report.text import cell, markdown
from tests import records

UGLY = "<script>alert(1)</script>|`*a*`[x](javascript:1)__b__ \\ & {{7*7}} {% x %} $m$ \"'"
FIXTURES = Path(__file__).parent / "fixtures"


def without(record, *columns):
    """The record as an older version stored it, without some columns."""
    drop = lambda table: {name: column for name, column in table.items() if name not in columns}  # noqa: E731
    return dataclasses.replace(record, samples=drop(record.samples), attacks=drop(record.attacks))


def test_every_file_of_a_run_with_ugly_names_shows_them_as_names():
    audit = {**records.AUDIT, "reasons": [UGLY]}
    record = records.random_record(60, (UGLY, "fab"), audit=audit, images=True, model=UGLY, data=UGLY)
    record = dataclasses.replace(record, flags=[{"kind": "x", "message": UGLY}],
                                 errors=[{"attack": UGLY, "message": UGLY, "indices": [1]}])  # fmt: skip
    texts = files.of_run(record)
    assert set(texts) == {"report.html", "report.md", "tables.tex", "tables.csv"}
    html = texts["report.html"]
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{7*7}}" in html  # a template's syntax in a name is a name
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", html)[0]
    assert "<script" not in texts["report.md"]
    assert "](javascript" not in texts["report.md"].replace("\\]", "").replace("\\[", "")
    assert r"\textless{}script\textgreater{}" in texts["tables.tex"]
    assert UGLY in {row["name"] for row in csv.DictReader(io.StringIO(texts["tables.csv"]))}


def test_a_sweep_with_ugly_names_shows_them_as_names():
    runs = [records.random_record(30, model=UGLY, eps=eps) for eps in (0.1, 0.2)]
    texts = files.of_sweep(Sweep(("0.1", "<b>"), tuple(runs)))
    assert "<script" not in texts["report.html"] + texts["report.md"]
    assert "<b>" not in texts["report.html"].replace("<b>not", "").replace("<b>9", "").replace("<b>8", "")
    assert 'href="eps-01/report.html"' in texts["report.html"]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_a_markdown_cell_has_no_live_markup(text):
    shown = cell(text)
    assert "\n" not in shown
    bare = re.sub(r"\\[\\|`*~$\[\]_]", "", shown)  # what is escaped is text
    assert not re.search(r"[|`*\[\]<>]", bare)


def test_a_page_needs_nothing_from_elsewhere():
    html = page.run_page(records.random_record(80, audit=records.AUDIT, images=True))
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "://" not in html
    assert "<script" not in html


def test_the_same_record_gives_the_same_files():
    record = records.random_record(80, audit=records.AUDIT, images=True)
    assert files.of_run(record) == files.of_run(record)


def test_the_verdict_comes_first():
    for audit, verdict in ((records.AUDIT, "invalid"), (None, "not audited")):
        record = records.random_record(40, audit=audit)
        assert record.verdict == record.to_json()["summary"]["verdict"] == verdict
        html = page.run_page(record)
        assert html.index(f">{verdict}</span>") < html.index("Robust accuracy")
        assert ("Do not rely on" in html) == (audit is not None)
        assert verdict in record.summary()
        assert verdict in markdown(record).lower()


def test_an_audit_is_stored_and_read_again(tmp_path):
    record = records.random_record(40, audit=records.AUDIT, images=True)
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    folder.save(record, files.of_run(record))
    read = load_run(tmp_path / "run")
    assert read.audit == records.AUDIT
    assert read.goals == record.goals
    for name, values in record.adversarial.items():
        assert np.array_equal(read.adversarial[name], values)
    made = {name: (tmp_path / "run" / name).read_text() for name in files.of_run(record)}
    assert made == files.of_run(read) == files.of_run(record)


def test_kept_images_are_mapped_not_read_and_a_broken_file_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").save(records.random_record(40, images=True), {})
    file = tmp_path / "run/adversarial.safetensors"
    read = load_run(tmp_path / "run").adversarial
    assert isinstance(read["adv"], np.memmap)
    from safetensors.numpy import load_file

    for name, values in load_file(file).items():
        assert np.array_equal(values, read[name])
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UsageError, match="cannot be read"):
        load_run(tmp_path / "run")


def test_confusion_counts_what_the_model_decides_under_attack():
    record = records.random_record(500)
    found = facts.confusion(record)
    by_hand = np.zeros((10, 10), dtype=int)
    said = dict(zip(record.attacks["index"].tolist(), record.attacks["prediction"].tolist(), strict=True))
    for i in range(record.n):
        status, label = record.samples["status"][i], record.samples["label"][i]
        decided = {"WRONG": record.samples["prediction"][i], "ROBUST": label, "BROKEN": said.get(i)}[status]
        by_hand[label, decided] += 1
    assert np.array_equal(found.counts, by_hand)
    assert found.left == 0
    assert np.trace(found.counts) == record.counts["ROBUST"]
    assert found.pairs(1)[0][2] == max(by_hand[i, j] for i in range(10) for j in range(10) if i != j)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: without(r, "prediction"), "before the class decided under attack was stored"),
        (lambda r: dataclasses.replace(r, job={**r.job, "target": "random"}), "decided as the target"),
    ],
    ids=["an older record", "a targeted run"],
)
def test_what_a_record_cannot_tell_is_left_out_with_the_reason(change, reason):
    record = change(records.random_record(40))
    found = facts.confusion(record)
    assert isinstance(found, LeftOut)
    assert reason in found.reason
    assert reason in page.run_page(record)


def test_a_curve_from_distances_meets_the_clean_and_the_robust_accuracy():
    only = records.random_record(300, ("fab",))
    curve = facts.distance_curve(only)
    assert curve.x[0] == 0
    assert curve.y[0] == only.clean_accuracy
    assert curve.y[curve.x.index(only.job["eps"])] == only.robust_accuracy
    assert [share.k for share in curve.y] == sorted((share.k for share in curve.y), reverse=True)
    assert curve.y[-1].k == 0  # every distance is known, so that at the largest nothing is left
    two = records.random_record(300)
    later = facts.distance_curve(two)
    assert later.x[0] == two.job["eps"]  # what apgd broke first has no nearest distance
    assert later.y[0] == two.robust_accuracy
    assert "it is not known" in later.note


def test_an_older_record_s_minimal_attacks_are_seen_by_their_distances():
    record = records.random_record(100)
    old = dataclasses.replace(record, goals={})
    assert facts.minimal_attacks(old) == facts.minimal_attacks(record) == ["fab"]
    assert facts.distance_curve(old) == facts.distance_curve(record)


def test_no_curve_without_distances_or_without_a_robust_accuracy():
    assert "seeks the nearest" in facts.distance_curve(records.record("WBR")).reason
    undecided = records.random_record(50)
    undecided.samples["status"][np.flatnonzero(undecided.samples["status"] == "ROBUST")[0]] = "UNKNOWN"
    assert "not established" in facts.distance_curve(undecided).reason
    assert "not established" in page.run_page(undecided)


def test_no_curve_of_a_single_eps():
    record = records.random_record(60)  # apgd, and fab on what it left
    beyond = record.attacks["distance"] > record.job["eps"]
    record.attacks["distance"][beyond] = np.nan
    assert "no distance beyond" in facts.distance_curve(record).reason


def test_a_query_curve_counts_the_broken_by_their_passes():
    record = records.random_record(400)
    curve = facts.query_curve(record, "apgd")
    here = (record.attacks["attack"] == "apgd") & (record.attacks["outcome"] == "broken")
    for x, share in zip(curve.x, curve.y, strict=True):
        assert share.k == (record.attacks["forwards"][here] <= x).sum()
    assert curve.y[0].k == 0
    assert curve.y[-1].k == record.by_attack[0].broken
    assert isinstance(facts.query_curve(records.record("RR"), "fgsm"), LeftOut)


def test_classes_add_up_to_the_whole():
    record = records.random_record(300)
    rows = facts.classes(record)
    assert sum(row.clean.k for row in rows) == record.clean_accuracy.k
    assert sum(row.robust.k for row in rows) == record.robust_accuracy.k
    record.samples["status"][np.flatnonzero(record.samples["label"] == 4)[0]] = "UNKNOWN"
    again_ = {row.label: row.robust for row in facts.classes(dataclasses.replace(record))}
    assert again_[4] is None
    assert again_[5] is not None


def test_many_classes_become_the_worst_and_the_most_frequent_mistakes():
    html = page.run_page(records.random_record(3000, classes=300))
    assert "200 more are in tables.csv" in html
    assert "The most frequent mistakes" in html
    assert 'class="heat"' not in html
    assert len({row["name"] for row in csv.DictReader(io.StringIO(files.of_run(records.random_record(900, classes=300))
               ["tables.csv"])) if row["table"] == "robust, by class"}) > 250  # fmt: skip


def test_the_gallery_takes_turns_between_attacks_and_says_how_far_it_amplifies():
    record = records.random_record(200, images=True)
    shown = gallery.shown(record)
    assert len(shown) == gallery.SHOWN
    assert {item.attack for item in shown[:2]} == {"apgd", "fab"}
    for item in shown:
        row = record.adversarial["index"].tolist().index(item.index)
        added = np.abs(record.adversarial["adv"][row].astype(float) - record.adversarial["clean"][row]).max()
        assert item.factor == pytest.approx(0.5 / added)
        assert item.decided == (item.label + 3) % 10
    old = {name: values for name, values in record.adversarial.items() if name != "clean"}
    assert gallery.shown(dataclasses.replace(record, adversarial=old))[0].clean == ""
    assert "--save-adversarial" in gallery.shown(dataclasses.replace(record, adversarial=None)).reason


def test_large_images_do_not_make_a_large_page():
    record = records.random_record(60, images=True, shape=(3, 224, 224))
    html = page.run_page(record)
    assert len(html) < 5_000_000
    assert html.count("<img") >= 3


def test_an_image_comes_back_from_its_data_uri():
    pytest.importorskip("PIL")
    import base64

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    uri = gallery.data_uri(pixels / 255)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert np.array_equal(back.transpose(2, 0, 1), pixels)


def test_the_repeating_command_asks_for_the_same_job():
    assert again.ranges([0, 1, 2, 7, 5, 6]) == "0-2,7,5-6"
    from robustkit.spec import parse_indices

    for indices in ([3], [0, 2, 4], [5, 4, 3], list(range(50)), [9, 10, 1]):
        assert list(parse_indices(again.ranges(indices))) == indices
    record = records.random_record(5, model="a b;c", defense="jpeg", quantize="8bit")
    text = again.command(record.job)
    assert "--model 'a b;c'" in text
    assert "--defense jpeg --quantize 8bit" in text
    assert "--indices 0-4" in text
    assert again.command(record.job, audit=True) == f"{text} --audit"
    shown = CliRunner().invoke(main, ["eval", "--help"]).output
    assert all(word in shown for word in re.findall(r"--[a-z]+", text))


def test_axes_have_round_ticks_inside_their_range():
    for low, high in ((0, 1), (0, 0.0314), (3, 17), (0.2, 0.2), (0, 0), (-3, -3), (-5, 1e6)):
        axis = svg._axis("x", low, high)
        assert 2 <= len(axis.ticks) <= svg.TICKS + 2
        assert all(axis.low - 1e-9 <= tick <= axis.high * (1 + 1e-9) + 1e-9 for tick in axis.ticks)


def test_the_command_writes_the_reports_of_any_stored_run(tmp_path):
    runner = CliRunner()
    done = runner.invoke(main, ["report", str(FIXTURES / "run-1"), "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"report.html", "report.md", "tables.tex", "tables.csv"}
    done = runner.invoke(main, ["report", str(FIXTURES / "sweep-1"), "--out", str(tmp_path / "b"), "--format", "html"])
    assert done.exit_code == 0, done.output
    made = {str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*.*")}
    assert made == {"report.html", "eps-01/report.html", "eps-02/report.html"}
    done = runner.invoke(main, ["report", str(FIXTURES / "transfer-1"), "--out", str(tmp_path / "c")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"report.html", "report.md", "matrix.tex", "matrix.csv"}
    refused = runner.invoke(main, ["report", str(tmp_path)])
    assert refused.exit_code == 2
    assert refused.output.startswith("Error: ")


def test_the_command_writes_into_the_run_s_own_folder_by_default(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "run-1", run)
    before = {file: file.read_bytes() for file in run.iterdir()}
    done = CliRunner().invoke(main, ["report", str(run), "--format", "md", "--format", "csv"])
    assert done.exit_code == 0, done.output
    assert {p.name for p in run.iterdir()} - {p.name for p in before} == {"report.md", "tables.csv"}
    assert all(file.read_bytes() == content for file, content in before.items())


def test_without_jinja2_a_run_is_stored_without_a_page_and_asking_for_one_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert set(files.of_run(records.random_record(20))) == {"report.md", "tables.tex", "tables.csv"}
    done = CliRunner().invoke(main, ["report", str(FIXTURES / "run-1"), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "pip install 'robustkit-bench[plots]'" in done.output


def test_eval_leaves_its_reports_in_the_run_s_folder_and_a_sweep_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["eval", "--model", "digits-cnn-at", "--attack", "pgd:steps=2", "-n", "20", "--quiet"]
    done = CliRunner().invoke(main, [*common, "--eps", "0.2", "--out", "run", "--save-adversarial"])
    assert done.exit_code == 0, done.output
    record = load_run("run")
    assert Path("run/report.html").read_text() == page.run_page(record)
    assert not isinstance(facts.confusion(record), LeftOut)
    words = shlex.split(again.command(record.job))
    assert words[0] == "robustkit"
    assert CliRunner().invoke(main, [*words[1:], "--quiet", "--out", "again"]).exit_code == 0
    repeated = load_run("again")
    assert repeated.job == record.job
    assert all(
        np.array_equal(repeated.attacks[name], record.attacks[name]) for name in ("index", "outcome", "forwards")
    )
    assert CliRunner().invoke(main, [*common, "--eps", "0.1,0.2", "--out", "sweep"]).exit_code == 0
    assert "eps-02/report.html" in Path("sweep/report.html").read_text()
    assert Path("sweep/eps-02/report.html").exists()


def test_a_sweep_s_curve_leaves_out_what_is_not_established():
    good, bad = records.record("BRRR", eps=0.1), records.record("BURR", eps=0.2)
    curve = facts.sweep_curve([good, bad, records.record("BBRR", eps=0.3)])
    assert isinstance(curve, Curve)
    assert curve.x == (0.0, 0.1, 0.3)
    assert "1 of 3 eps" in curve.note
    assert isinstance(facts.sweep_curve([bad]), LeftOut)
    assert facts.sweep_curve([good, bad]).reason == "only eps 0.1 has a robust accuracy, and a line takes two"
    whole = Sweep(("0.1", "0.2"), (good, bad))
    assert "not established" in files.of_sweep(whole)["report.html"]


def test_run_json_stays_plain_json_with_an_audit():
    data = records.random_record(10, audit=records.AUDIT).to_json()
    assert json.loads(json.dumps(data, allow_nan=False))["audit"]["verdict"] == "invalid"
