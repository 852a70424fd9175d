"""The studies in reports/studies: each says where its settings are from, and names only what there is."""

import re
import tomllib
from pathlib import Path

import pytest

from robustkit import plugins, spec
from robustkit.study import grammar
from robustkit.study.check import check

FOLDER = Path(__file__).parent.parent / "reports/studies"
FILES = sorted(FOLDER.glob("*.toml"))


def test_there_is_a_study_for_each_paper():
    names = {file.stem for file in FILES}
    assert {
        "cwa",
        "cwa-imagenet",
        "crossmax",
        "raw",
        "fusion",
        "dverge",
        "distillation",
        "autoattack-robustbench",
    } <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_valid_without_weights(file):
    study = grammar.read(file)
    check(study, files=False)
    assert study.provenance
    assert "\n" not in study.provenance
    assert study.title != file.stem
    assert study.cells() or study.transfers()
    assert file.read_text().startswith("# ")


def test_the_imagenet_protocol_is_the_transfer_command_s():
    config = tomllib.loads((FOLDER.parent / "paper/cwa/imagenet.toml").read_text())
    study = grammar.read(FOLDER / "cwa-imagenet.toml")
    assert study.transfer.attacks == config["attack"]
    assert study.transfer.sets == {name: tuple(members) for name, members in config["surrogates"].items()}
    assert study.options["n"] == 1000
    assert [(t.norm, spec.number(t.eps)) for t in study.threats] == [("linf", 16 / 255)]


def test_cwa_is_the_benchmark_s():
    from benchmarks import cwa

    study = grammar.read(FOLDER / "cwa.toml")
    assert study.transfer.attacks == {label: cwa.with_budget(text, 420) for label, text in cwa.ATTACKS.items()}
    assert tuple(study.transfer.victims) == cwa.VICTIMS
    assert study.transfer.sets == {"normal": cwa.NORMAL, "normal + robust": (*cwa.NORMAL, cwa.ROBUST)}


def test_the_examples_of_the_documentation_are_studies():
    text = (FOLDER.parent.parent / "docs/studies.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    studies = [grammar.parse(tomllib.loads(example), "example") for example in examples]
    for study in studies:
        check(study)
    assert len(studies[0].cells()) == (2 * 3 - 1) * 2 * 3 * 2
    assert len(studies[1].transfers()) == 1
    for key in grammar._KEYS:
        assert f"`{key}`" in text, key


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_recipes_that_are_to_be_trained_first_are_there(file):
    comments = "".join(line[1:] for line in file.read_text().splitlines(True) if line.startswith("#"))
    commands = re.findall(r'robustkit train "?([\w-]+)(?::([^" ]+))?"?', comments)
    for name, options in commands:
        text = options.replace("$T", "2").replace("./trained/teacher-2", "digits-cnn") if options else ""
        made = spec.build(plugins.load("recipes", name), spec.parse(f"{name}:{text}").options if text else {}, name)
        assert made is not None
    assert bool(commands) == (file.stem in ("dverge", "distillation", "crossmax-self"))
