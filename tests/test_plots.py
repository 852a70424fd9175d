"""Figures for papers: the same bytes each time, fonts inside, no state left behind, and what they show is the facts."""

import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit import UsageError
from robustkit.cli import main
from robustkit.records.folder import RunFolder
from robustkit.records.sweep import Sweep, load_sweep
from robustkit.records.transfer_folder import load_transfer
from robustkit.report import facts, sweeps, tables
from robustkit.report.plots import KINDS, source, style
from robustkit.report.plots.source import Source
from tests import records

mpl = pytest.importorskip("matplotlib")
FIXTURES = Path(__file__).parent / "fixtures"
UGLY = "_$x_{1}$<script>alert(1)</script>"


def sources(kind):
    """Something that each kind can draw."""
    run = records.random_record(120, images=True, model=UGLY)
    if kind == "transfer":
        return [Source("t", load_transfer(FIXTURES / "transfer-1"))]
    if kind == "eps":
        return [Source("s", load_sweep(FIXTURES / "sweep-1")), Source(UGLY, records.random_record(80, ("fab",)))]
    if kind == "steps":
        return [Source(f"s{n}", records.random_record(80, (f"pgd:steps={n}",), seed=n)) for n in (1, 10, 100)]
    return [Source(UGLY, run)] + ([] if kind == "grid" else [Source("b", records.random_record(90, seed=1))])


def draw(kind, found, width="one"):
    return import_module(f"robustkit.report.plots.{kind}").draw(found, width)


def drawn(kind, path, width="one"):
    style.check(path)
    with style.paper():
        style.save(draw(kind, sources(kind), width), path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_twice_in_every_format(kind, tmp_path):
    formats = {".pdf": b"%PDF", ".svg": b"<?xml"} | ({".png": b"\x89PNG"} if kind == "attacks" else {})
    for ending, magic in formats.items():
        first = drawn(kind, tmp_path / f"a{ending}")
        assert first == drawn(kind, tmp_path / f"b{ending}")
        assert first.startswith(magic)
    text = (tmp_path / "a.svg").read_text()
    assert "<script" not in text
    assert "<dc:date>" not in text


def test_another_process_draws_the_same_bytes(tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.test_plots import drawn\n"
        "for end in ('pdf', 'svg'): drawn('eps', Path(sys.argv[1]) / f'other.{end}')\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parent.parent)
    for end in ("pdf", "svg"):
        assert (tmp_path / f"other.{end}").read_bytes() == drawn("eps", tmp_path / f"here.{end}")


def test_fonts_are_embedded_truetype_and_the_file_says_no_date(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    drawn("eps", tmp_path / "a.pdf")
    reader = pypdf.PdfReader(tmp_path / "a.pdf")
    fonts = reader.pages[0]["/Resources"]["/Font"].values()
    assert fonts
    for font in fonts:
        inner = (
            font.get_object()["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font.get_object()
        )
        assert font.get_object()["/Subtype"] != "/Type3"
        assert "/FontFile2" in inner["/FontDescriptor"]
    assert not {"/CreationDate", "/Producer", "/Creator"} & set(reader.metadata or {})
    inches = float(reader.pages[0].mediabox.width) / 72
    assert inches == pytest.approx(style.INCHES["one"])


@pytest.mark.parametrize(("width", "inches"), [("one", 3.25), ("two", 6.75)])
def test_a_figure_is_as_wide_as_its_columns(width, inches):
    for kind in KINDS:  # not drawn, so that it is quick
        with style.paper():
            assert draw(kind, sources(kind), width).get_figwidth() == inches


def test_the_reader_s_own_settings_neither_show_nor_change(tmp_path):
    plain = drawn("eps", tmp_path / "a.pdf")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        assert drawn("eps", tmp_path / "b.pdf") == plain
        assert dict(mpl.rcParams) == before


def test_the_lines_are_the_facts():
    with style.paper():
        (axes,) = draw("eps", sources("eps")).axes
        by_name = {line.get_label(): line for line in axes.lines}
    sweep = load_sweep(FIXTURES / "sweep-1")
    assert by_name["s"].get_xydata().tolist() == [[0.0, 1.0], [0.1, 0.9], [0.2, 0.65]]
    assert [float(r.robust_accuracy) for r in sweep.records] == [0.9, 0.65]
    curve = facts.distance_curve(records.random_record(80, ("fab",)))
    assert by_name[f" {UGLY}"].get_ydata().tolist() == [float(share) for share in curve.y]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["s", f" {UGLY}"]
    with style.paper():
        (axes,) = draw("steps", sources("steps")).axes
    robust = [float(source_.found.robust_accuracy) for source_ in sources("steps")]
    assert axes.lines[0].get_xydata().tolist() == [[1.0, robust[0]], [10.0, robust[1]], [100.0, robust[2]]]
    with style.paper():
        (axes,) = draw("scatter", sources("scatter")).axes
    marks = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() in style.MARKS]
    wanted = [[[float(s.found.clean_accuracy), float(s.found.robust_accuracy)]] for s in sources("scatter")]
    assert marks == wanted


def test_the_attacks_figure_has_a_mark_for_each_attack():
    with style.paper():
        (axes,) = draw("attacks", sources("attacks")).axes
    record = sources("attacks")[0].found
    x = next(line for line in axes.lines if line.get_marker() == style.MARKS[0]).get_xdata().tolist()
    assert x == [float(record.clean_accuracy), *(float(row.robust) for row in record.by_attack)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no attack", "apgd", "fab"]


def test_steps_come_from_an_audit_where_there_is_one():
    with style.paper():
        (axes,) = draw("steps", [Source("a", records.random_record(50, audit=records.AUDIT))]).axes
    assert axes.lines[0].get_ydata().tolist() == [0.9, 0.62, 0.55, 0.52]
    assert axes.get_xlabel() == "steps"


def test_runs_at_several_eps_make_a_curve():
    runs = [Source(f"r{eps}", records.record("WBRR", eps=eps)) for eps in (0.2, 0.1)]
    with style.paper():
        (axes,) = draw("eps", runs).axes
    assert axes.lines[0].get_xydata().tolist() == [[0.0, 0.75], [0.1, 0.5], [0.2, 0.5]]


def test_only_runs_that_differ_in_eps_alone_are_joined_by_a_line():
    def at(eps, letters="WBRR", **job):
        return Source(f"{eps} {job}", records.record(letters, eps=eps, **job))

    runs = [at(0.1), at(0.2), at(0.1, "WRRR", seed=1), at(0.2, "WRRB", seed=1), at(0.1, norm="l2"), at(0.3, norm="l2")]
    with style.paper():
        (axes,) = draw("eps", runs).axes
    drawn_lines = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert drawn_lines == {
        "net, linf, seed 0": [0, 0.1, 0.2],
        "net, linf, seed 1": [0, 0.1, 0.2],
        "net, l2, seed 0": [0, 0.1, 0.3],
    }
    with style.paper(), pytest.raises(UsageError, match=r"two runs at eps 0.1 would be one line"):
        draw("eps", [at(0.1), at(0.1, device="cuda"), at(0.2)])


def test_no_line_is_drawn_through_one_eps():
    with style.paper():
        for found in (
            [Source("r", records.record("WBRR"))],
            [Source("a", records.record("WBRR", seed=0)), Source("b", records.record("WBRR", eps=0.2, seed=1))],
            [Source("s", Sweep(("0.1",), (records.record("WBRR"),)))],
            [Source("s", Sweep(("0.1", "0.2"), (records.record("WBRR"), records.record("WURR", eps=0.2))))],
        ):
            with pytest.raises(UsageError, match="gives no curve"):
                draw("eps", found)


def doubted(kind):
    """What a kind draws, with one record that an audit doubts, and nothing else in it."""
    record = records.random_record(90, (f"pgd:steps={5}", "fab"), images=True, audit=records.AUDIT)
    if kind == "eps":
        larger = dataclasses.replace(record, job={**record.job, "eps": 0.2})
        return [Source("s" * 60, Sweep(("0.1", "0.2"), (records.record("WBRR"), larger)))]
    return [Source("s" * 60, record)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transfer"])
def test_every_figure_marks_a_number_that_an_audit_doubts(kind):
    with style.paper():
        figure = draw(kind, doubted(kind))
        texts = [text.get_text() for legend in [*figure.legends, *(a.get_legend() for a in figure.axes)] if legend
                 for text in legend.get_texts()] + [figure.get_suptitle()]  # fmt: skip
    assert any(text.endswith("(invalid)") for text in texts), texts
    assert all(len(text) <= 41 for text in texts)


def test_latex_marks_a_number_that_an_audit_doubts():
    sweep = doubted("eps")[0].found
    run, plain = sweep.records[1], records.random_record(90)
    assert tables.latex(run).count(r"$^{\ddagger}$") == len(run.job["attacks"]) + 10  # and the classes
    assert "double dagger" in tables.latex(run)
    assert sweeps.latex(sweep.eps, sweep.records).count(r"$^{\ddagger}$") == 1
    assert "dagger" not in tables.latex(plain) + sweeps.latex(("0.03",), (plain,))


def colour_distance(a, b, matrix):
    """How far apart two colours look after a linear map of linear light."""
    linear = [
        np.where(np.array(c) <= 0.04045, np.array(c) / 12.92, ((np.array(c) + 0.055) / 1.055) ** 2.4) for c in (a, b)
    ]
    seen = [np.clip(matrix @ c, 0, 1) ** (1 / 2.2) for c in linear]
    return float(np.linalg.norm(seen[0] - seen[1]))


def test_colours_stay_apart_for_colour_blind_readers():
    # Machado, Oliveira, Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia.
    blind = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    with style.paper():
        colours = [mpl.colors.to_rgb(entry["color"]) for entry in mpl.rcParams["axes.prop_cycle"]]
    assert len(colours) == 7
    for matrix in blind:
        pairs = [(a, b) for i, a in enumerate(colours) for b in colours[:i]]
        assert min(colour_distance(a, b, np.array(matrix)) for a, b in pairs) > 0.1
    red_green = colour_distance((0.7, 0.2, 0.2), (0.1, 0.5, 0.1), np.array(blind[1]))
    assert red_green < 0.1  # a pair that is not told apart: the test can fail


def save(path, record):
    path.mkdir()
    RunFolder(path).save(record, {})
    return str(path)


def test_the_command_draws_from_folders(tmp_path):
    one = save(tmp_path / "one", records.random_record(60, model="a", images=True))
    two = save(tmp_path / "two", records.random_record(60, model="b"))
    for words in (["scatter", one, two, "-o", "s.pdf", "--width", "two"], ["grid", one, "-o", "g.png"],
                  ["attacks", one, two, "-o", "a.svg", "--label", "first", "--label", "second"]):  # fmt: skip
        words[words.index("-o") + 1] = str(tmp_path / words[words.index("-o") + 1])
        done = CliRunner().invoke(main, ["plot", *words])
        assert done.exit_code == 0, done.output
        assert Path(done.output.strip()).stat().st_size > 1000
    assert [item.name for item in source.read([Path(one), Path(two)])] == ["a", "b"]
    assert [item.name for item in source.read([Path(one), Path(one)])] == ["one", "one"]
    wrong = [["eps", two, "-o", "x.gif"], ["eps", two, "-o", "nowhere/x.pdf"], ["grid", two, "-o", "x.pdf"],
             ["eps", str(tmp_path / "none"), "-o", "x.pdf"],
             ["scatter", one, "-o", "x.pdf", "--label", "a", "--label", "b"],
             ["transfer", one, "-o", "x.pdf"], ["steps", one, "-o", "x.pdf"]]  # fmt: skip
    for words in wrong:
        done = CliRunner().invoke(main, ["plot", *words])
        assert done.exit_code == 2, words
        assert done.output.startswith("Error: ")
        assert done.output.count("\n") == 1
    assert not Path("x.pdf").exists()


@pytest.mark.parametrize(
    ("kind", "found", "message"),
    [
        ("eps", records.record("WBR"), "gives no curve"),
        ("queries", records.record("RR"), "broke a sample"),
        ("scatter", records.record("RU"), "not established"),
        ("attacks", records.record("RU"), "is established: 1 of 2 samples are UNKNOWN"),
        ("steps", records.record("RR"), "names no steps"),
        ("grid", records.record("RR"), "--save-adversarial"),
        (
            "grid",
            dataclasses.replace(records.random_record(9, images=True), adversarial={"index": 1, "adv": 2}),
            "originals",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(kind, found, message):
    with style.paper(), pytest.raises(UsageError, match=message):
        draw(kind, [Source("r", found)])


def test_a_sweep_is_drawn_as_its_runs_where_runs_are_drawn():
    sweep = Sweep(("0.1", "0.2"), (records.record("BRR", eps=0.1), records.record("BBR", eps=0.2)))
    assert [name for name, _ in source.runs([Source("s", sweep)], "scatter")] == ["s, eps 0.1", "s, eps 0.2"]
