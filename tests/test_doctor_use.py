"""The doctor where it is used: before an evaluation, and on the command line."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robustkit
from robustkit import events, plugins
from robustkit.cli import main
from robustkit.datasets import Pair
from robustkit.doctor import KINDS, machine
from tests.test_doctor import IMAGENET, Counted, Nearest, blobs
from tests.toys import Randomised

WRONG = "digits-cnn:mean=0.6,std=0.25"  # a network that wants plain [0,1] images


def evaluate(model, **more):
    return robustkit.evaluate(model, blobs(), attack="pgd:steps=2", eps=0.02, **more)


def facts(record):
    return {name: column.tolist() for part in (record.samples, record.attacks) for name, column in part.items()}


def test_an_evaluation_flags_a_wrong_input_in_its_summary_and_tells_before_it_attacks():
    heard = []
    record = evaluate(Nearest(IMAGENET), on_event=heard.append)
    (flag,) = [flag for flag in record.flags if flag["kind"] == "normalisation"]
    assert "expect normalised input" in flag["message"]
    assert f"note: {flag['message']}" in record.summary()
    names = [type(event) for event in heard]
    assert names.index(events.Noted) < names.index(events.CleanDone)


@pytest.mark.parametrize("model", [Nearest(), Nearest(IMAGENET), Randomised(Nearest(), sigma=0.2)])
def test_the_numbers_are_the_same_without_it(model):
    with_it, without = evaluate(model), evaluate(model, doctor=False)
    for name, column in facts(with_it).items():
        np.testing.assert_array_equal(column, facts(without)[name])
    assert with_it.job == without.job
    assert not any(flag["kind"] in KINDS for flag in without.flags)


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        (Randomised(Nearest(IMAGENET), sigma=0.2), {"draws": 3}, "randomised"),
        (Nearest(IMAGENET), {"defense": "bit-depth:bits=3"}, "behind a defense"),
        ("defended/(python/tests.test_doctor_use.wrong):by=median", {}, "behind a defense"),
    ],
)
def test_no_other_input_is_proposed_where_it_would_pass_by_a_defense_and_that_is_said(model, options, why):
    heard = []
    record = robustkit.evaluate(model, blobs(), attack="fgsm", eps=0.02, on_event=heard.append, **options)
    assert "normalisation" not in {flag["kind"] for flag in record.flags}
    assert any(
        isinstance(event, events.Noted) and f"the model is {why}, so no other" in event.message for event in heard
    )


def wrong():
    return Nearest(IMAGENET)


def test_a_sweep_asks_once_and_corrupted_images_are_not_asked_about():
    first = evaluate(model := Counted(IMAGENET))
    seen = model.seen
    again = robustkit.evaluate(model, blobs(), attack="pgd:steps=2", eps=0.03, carry=first)
    assert [flag for flag in again.flags if flag["kind"] in KINDS] == first.flags
    assert model.seen < 2 * seen

    class Corrupted(Pair):
        severity = 3

    x, y = blobs()
    assert not robustkit.evaluate(model, Corrupted(x, y), attack="fgsm", eps=0.02).flags


# On the command line


def test_the_command_prints_what_is_there_and_exits_with_0_or_1(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "cache"))
    run = CliRunner().invoke(main, ["doctor"])
    assert run.exit_code == 0, run.output
    assert all(word in run.stdout for word in ("devices   cpu", f"torch {torch.__version__.split('+')[0]}", "cache"))
    well = CliRunner().invoke(main, ["doctor", "--model", "digits-cnn", "-n", "64"])
    assert well.exit_code == 0, well.output
    assert "no finding" in well.stdout
    assert "pixels × 255" in well.stdout  # the table shows every setting
    ill = CliRunner().invoke(main, ["doctor", "--model", WRONG, "--json", "-"])
    assert ill.exit_code == 3, ill.output
    data = json.loads(ill.stdout)
    assert data["diagnosis"]["findings"][0]["kind"] == "normalisation"
    assert data["machine"]["cache"] == str(tmp_path / "cache")
    assert CliRunner().invoke(main, ["doctor", "--model", "digits-cnnn"]).exit_code == 2


def test_the_command_looks_at_the_model_behind_its_defenses():
    asked = ["doctor", "--model", "digits-cnn", "-n", "64", "--tile", "16"]
    plain, blind = (json.loads(CliRunner().invoke(main, [*asked, *more, "--json", "-"]).stdout)
                    for more in ([], ["--defense", "bit-depth:bits=1"]))  # fmt: skip
    assert blind["defense"] == ["bit-depth:bits=1"]
    assert blind["diagnosis"]["trials"][0] != plain["diagnosis"]["trials"][0]
    shown = CliRunner().invoke(main, [*asked, "--defense", "jpeg"])
    assert "clean accuracy of digits-cnn behind jpeg" in shown.stdout


def test_eval_can_do_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["eval", "--model", WRONG, "--attack", "fgsm", "--eps", "0.05", "--quiet"]
    shown = CliRunner().invoke(main, [*asked, "--out", "one"])
    assert "once too often" in shown.output
    assert "once too often" not in CliRunner().invoke(main, [*asked, "--no-doctor", "--out", "two"]).output


def test_missing_extras_and_broken_plugins_are_named(monkeypatch):
    requires = ["torch>=2", "numpy; extra == 'zoo'", "no-such-thing>=1; extra == 'zoo'", "x; extra == 'test'",
                "robustkit-bench[zoo]; extra == 'all'"]  # fmt: skip
    monkeypatch.setattr(machine.metadata, "requires", lambda name: requires)
    assert machine.missing_extras() == {"zoo": ["no-such-thing"]}
    assert machine.install("zoo") == "pip install 'robustkit-bench[zoo]'"

    monkeypatch.setattr(plugins, "broken", lambda: ["plugin 'theirs' does not load: no module named x"])
    assert machine.broken_plugins() == ["plugin 'theirs' does not load: no module named x"]
    run = CliRunner().invoke(main, ["doctor"])
    assert run.exit_code == 3
    assert "broken: plugin 'theirs'" in run.stdout
    assert "pip install 'robustkit-bench[zoo]'" in run.stdout
