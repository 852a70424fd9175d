"""The benchmark of DVERGE: its protocol is the paper's, and it writes its tables."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import dverge
from robustkit import plugins, spec
from robustkit.api import Attack, Suite
from robustkit.records.transfer import CLEAN, TransferRecord
from robustkit.training.recipes import Schedule
from tests import needs


def made(text):
    parsed = spec.parse(text)
    return spec.build(plugins.load("attacks", parsed.name), parsed.options, parsed.name)


def test_the_paper_s_scale_is_the_paper_s_protocol():
    scale = dverge.SCALES["paper"]
    assert (scale.blocks, scale.images, dverge.MEMBERS, dverge.MATRIX_EPS) == (3, 40_000, 3, 0.03)
    assert scale.fine_tuned == Schedule(200, 128, "sgd", 0.1, 0.9, 1e-4, "steps", (0.5, 0.75), augment="crop-flip")
    assert scale.black_box_eps == (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)
    assert {eps for *_, eps in scale.white_box} == set(scale.black_box_eps)
    assert {made(text).steps for text in scale.black_box.values()} == {100}
    pgd = made(next(text for _, text, eps in scale.white_box if eps == 0.05))
    assert (pgd.steps, pgd.restarts, pgd.step) == (50, 5, 0.01)


@pytest.mark.parametrize("scale", dverge.SCALES.values(), ids=dverge.SCALES)
def test_every_attack_and_recipe_of_a_scale_is_known(scale):
    for text in [*scale.black_box.values(), *(text for _, text, _ in scale.white_box)]:
        assert isinstance(made(text), Attack | Suite)
    for options in scale.dverge.values():
        parsed = spec.parse(f"dverge{':' if options else ''}{options}")
        spec.build(plugins.load("recipes", "dverge"), parsed.options, "dverge")


def record(victim_wrong, clean_wrong=()):
    """Four images; each (surrogates, attack) has the images that are wrong on the victim."""
    n, rows = 4, list(victim_wrong)
    label = np.arange(n)
    clean = np.where(np.isin(label, clean_wrong), 9, label)
    columns = {
        "index": np.tile(10 + label, len(rows)),
        "surrogates": np.repeat([made_on for made_on, _ in rows], n),
        "attack": np.repeat([attack for _, attack in rows], n),
        "victim": np.full(n * len(rows), "v"),
        "outcome": np.concatenate(
            [np.where(np.isin(label, wrong), "success", "resisted") for wrong in victim_wrong.values()]
        ),
        "clean_wrong": np.tile(clean != label, len(rows)),
    }
    sets = {made_on: [made_on] for made_on, _ in rows}
    models = {name: {"weights_sha256": name, "probe_sha256": ""} for name in ("v", *sets)}
    job = {"surrogates": sets, "attacks": list(dict.fromkeys(a for _, a in rows)), "models": models}
    return TransferRecord(job, {}, {"index": 10 + label, "label": label, CLEAN + "v": clean}, {}, columns)


def test_a_sample_is_robust_only_if_right_clean_and_under_every_attack():
    found = record({("s", "a"): [0], ("s", "b"): [0, 1], ("t", "a"): [], ("t", "b"): [2]})
    assert (dverge.under_all(found, "v").k, dverge.under_all(found, "v").n) == (1, 4)
    assert dverge.under_all(found, "v", ("s",)).k == 2
    assert dverge.under_all(found, "v", ("t",)).k == 3
    assert dverge.under_all(record({("s", "a"): [0], ("t", "a"): []}, clean_wrong=[3]), "v").k == 2


def test_the_matrix_s_mean_is_over_different_members_only():
    share = dverge.Proportion
    rows = [[share(4, 4), share(1, 4), share(0, 4)], [share(3, 4), share(4, 4), share(0, 4)]]
    assert dverge.Matrix(4, rows).between == 0.5


@pytest.mark.slow
@needs.kit
def test_the_benchmark_trains_measures_and_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = Schedule(1, 32)
    scale = replace(
        dverge.SCALES["small"], images=960, plain=tiny, fine_tuned_images=32, fine_tuned=tiny, matrix_n=60,
        black_box_n=4, black_box_eps=(0.03,), black_box={"M-PGD": "mi:steps=1"}, kit=(), white_box_n=4,
        white_box=(("FGSM", "fgsm", 0.03),),
    )  # fmt: skip
    out = tmp_path.relative_to(tmp_path) / "run"
    out.mkdir()
    bench = dverge.Bench(scale, out, "cpu", 1)
    text = dverge.tables(bench)
    assert "| made on member 3 |" in text
    assert "| 0.03 | held-out |" in text
    assert "| 0.03 | FGSM (`fgsm`) |" in text
    file = tmp_path / "README.md"
    file.write_text(f"before\n{dverge.BEGIN}\nold\n{dverge.END}\nafter\n")
    for _ in range(2):
        dverge.write(text, file)
    assert file.read_text() == f"before\n{dverge.BEGIN}\n\n{text}\n\n{dverge.END}\nafter\n"
    assert dverge.tables(bench) == text  # from what the folder holds
