"""Transfer records without a model: both denominators by hand, refused rates, tables that names cannot break."""

import csv
import io
import itertools

import numpy as np
import pytest

from robustkit.errors import UsageError
from robustkit.records.transfer import TransferRecord
from robustkit.report import transfer as report
from robustkit.stats import Proportion
from tests import kinds
from tests.test_report_browser import contrast, luminance


def by_hand(outcomes, clean_wrong, *, names=("v",), attack="mi", errors=(), probes=None):
    """A record of one attack on the surrogate a, with the same outcomes on each victim and on a."""
    names, probes = (*names, "a"), probes or {}
    n, v = len(outcomes), len(names)
    words = {"s": "success", "r": "resisted", "v": "violated"}
    label = np.arange(n) % 3
    return TransferRecord(
        job={
            "id": "0", "data": "toy", "data_sha256": "d", "norm": "linf", "eps": 0.1, "target": "", "seed": 0,
            "device": "cpu", "threads": 1, "tile": 32, "surrogates": {"A": ["a"]}, "victims": list(names[:-1]),
            "attacks": {attack: attack},
            "models": {name: {"weights_sha256": "w", "probe_sha256": probes.get(name, ""), "randomised": False}
                       for name in names},
        },
        environment={},
        samples={"index": np.arange(n), "label": label, "sha256": np.full(n, "x", dtype=object)}
        | {f"clean:{name}": np.where(clean_wrong, label + 1, label) for name in names},
        attacks={
            "index": np.arange(n), "surrogates": np.full(n, "A", dtype=object),
            "attack": np.full(n, attack, dtype=object), "target": np.full(n, -1),
            "violated": np.array([c == "v" for c in outcomes]), "distance": np.full(n, 0.1),
            "forwards": np.full(n, 30), "backwards": np.full(n, 20),
        },
        transfer={
            "index": np.tile(np.arange(n), v), "surrogates": np.full(n * v, "A", dtype=object),
            "attack": np.full(n * v, attack, dtype=object), "victim": np.repeat(np.array(names, dtype=object), n),
            "outcome": np.tile(np.array([words[c] for c in outcomes], dtype=object), v),
            "clean_wrong": np.tile(np.array(clean_wrong), v), "prediction": np.zeros(n * v, dtype=int),
            "distance": np.full(n * v, 0.1),
        },
        seconds={"A": {attack: 1.5}},
        errors=errors,
    )  # fmt: skip


def test_both_denominators_by_hand():
    # Ten images, two clean errors of which one stays an error; three of the eight correct ones fall.
    record = by_hand("srsssrrrrr", [True, True, *[False] * 8])
    cell = record.cells["A", "mi", "v"]
    assert (cell.of_all, cell.of_correct) == (Proportion(4, 10), Proportion(3, 8))
    assert record.clean_accuracy["v"] == Proportion(8, 10)
    assert float(cell.of_all) == 0.4
    assert (round(cell.of_all.low, 3), round(cell.of_all.high, 3)) == (0.168, 0.687)  # Wilson, by an independent table
    assert cell.to_json()["success_rate_of_correct"] == pytest.approx(
        {"value": 0.375, "low": 0.13684, "high": 0.69426, "n": 8}, abs=1e-4
    )
    assert record.costs["A", "mi"].to_json() == {
        "surrogates": "A", "attack": "mi", "violated": 0, "forwards_per_image": 30.0, "backwards_per_image": 20.0,
        "most_backwards": 20, "seconds": 1.5,
    }  # fmt: skip
    text = record.summary()
    assert "all 10 images: the share misclassified; 1 − accuracy, so clean errors count" in text
    assert "that the victim classifies correctly unattacked" in text
    assert "40.0 [16.8, 68.7]" in text
    assert "37.5 [13.7, 69.4]" in text


def test_a_victim_that_is_always_wrong_has_no_rate_of_correct_images():
    cell = by_hand("sss", [True] * 3).cells["A", "mi", "v"]
    assert cell.of_all == Proportion(3, 3)
    assert cell.of_correct is None
    assert "classifies none of the images correctly" in cell.why


@pytest.mark.parametrize(
    ("probes", "white_box"),
    [({"v": "p", "a": "p"}, True), ({"v": "q", "a": "p"}, False), ({}, False)],  # the last: both are randomised
    ids=["the same answers", "other answers", "no fixed answers"],
)
def test_a_victim_with_the_surrogate_s_weights_is_white_box_if_it_gives_its_answers(probes, white_box):
    record = by_hand("s", [False], probes=probes)
    assert record.cells["A", "mi", "v"].white_box is white_box
    assert record.cells["A", "mi", "a"].white_box


def test_one_violation_refuses_the_rates_and_says_why():
    errors = [{"surrogates": "A", "attack": "mi", "victim": "", "message": "an image outside the ball", "indices": [2]}]
    record = by_hand("ssv", [False] * 3, errors=errors)
    cell = record.cells["A", "mi", "v"]
    assert cell.of_all is cell.of_correct is None
    assert cell.why == "1 of 3 adversarials are violated (an image outside the ball)"
    assert not record.established
    assert "not established: A · mi on v" in record.summary()
    assert record.to_json()["summary"]["matrix"][0]["success_rate_of_all"] is None


UGLY = "<script>&_ {%}$x$ | \"'\\,=1+1"


def test_names_cannot_break_out_of_a_table():
    record = by_hand("sr", [False, False], names=(UGLY, "b"), attack="mi:steps=3_&")
    text = report.latex(record)
    assert r"\textless{}script\textgreater{}\&\_ \{\%\}\$x\$ \textbar{} {\char34}'\textbackslash{},=1+1" in text
    assert r"mi:steps=3\_\&" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {row.replace(r"\&", "").count("&") for row in rows} == {4}
    lines = list(csv.DictReader(io.StringIO(report.csv_text(record))))
    assert [line["victim"] for line in lines] == [UGLY, "b", "a"]
    assert lines[0]["success_of_all"] == "0.5"
    page = report.markdown(record)
    assert "<script>" not in page
    table = [line for line in page.splitlines() if line.startswith("| A |")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    assert "&lt;script&gt;" in record._repr_html_()


def test_heat_maps_are_drawn_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    record = by_hand("srv", [False] * 3, names=(UGLY, "b"))
    for ending, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        files = [tmp_path / f"{i}{ending}" for i in (1, 2)]
        for file in files:
            report.heatmap(record, file, "correct")
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[0].read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("models", "width", "inches"),
    [(2, "one", 3.25), (5, "one", 3.25), (5, None, 3.25), (20, None, 6.75), (14, "two", 6.75)],
)
def test_a_heat_map_is_as_wide_as_a_column_and_can_be_read_in_print(models, width, inches):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from robustkit.report.plots import style

    made = kinds.transfer(sets={"one": ["model-0"]}, victims=[f"model-{k}" for k in range(models)])
    with style.paper():
        figure = report.heatmap_figure(made, "all", width)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    assert figure.get_size_inches()[0] == inches
    (axes,) = figure.axes
    (image,) = axes.images
    texts = {text.get_position(): text for text in axes.texts}
    cell = axes.get_window_extent().width / models
    edge = figure.bbox
    for (column, row), text in texts.items():
        found = made.cells[(*made.rows[row], made.columns[column])]
        assert text.get_text() == f"{100 * float(found.of_all):.0f}" + "*" * found.white_box
        assert text.get_fontsize() >= 5.5  # points
        assert text.get_window_extent().width <= cell
        behind = image.cmap(image.norm(100 * float(found.of_all)))[:3]
        assert contrast([0.0] * 3 if text.get_color() == "black" else [1.0] * 3, behind) >= 4.5
    assert len(texts) == len(made.rows) * len(made.columns)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts):
        box = label.get_window_extent()
        assert edge.x0 <= box.x0 <= box.x1 <= edge.x1 + 1, label.get_text()
        assert edge.y0 <= box.y0 <= box.y1 <= edge.y1 + 1, label.get_text()


def test_the_shades_of_a_heat_map_grow_darker_in_grey_print_too():
    pytest.importorskip("matplotlib")
    shades = [luminance(report._shades()(value / 100)[:3]) for value in range(101)]
    assert all(after < before for before, after in itertools.pairwise(shades))


def test_more_models_than_one_column_can_show_are_told_to_take_two():
    pytest.importorskip("matplotlib")
    made = kinds.transfer(victims=[f"model-{k}" for k in range(20)])
    with pytest.raises(UsageError, match="would not be readable; add --width two"):
        report.heatmap_figure(made, "all", "one")
