"""Attacks of other libraries as they are written, listed, shown and refused."""

import subprocess
import sys
from typing import Literal, Union

import pytest
from click.testing import CliRunner

import robustkit
from robustkit import plugins
from robustkit.cli import cards, main
from robustkit.engine.identity import source_hashes
from robustkit.engine.plan import Named, attack_text, make_attack, name_of
from robustkit.errors import UsageError

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

from robustkit_attacks.foreign import settings as reading

from tests.test_adapters import ALL, LEAVES, NOT_SAFE, SOURCES, named


def test_names_are_specs_that_make_the_attack_again():
    for spec, name in {
        "torchattacks/PGD:steps=20": "torchattacks/PGD:steps=20",
        "torchattacks/PGD:steps=10": "torchattacks/PGD",
        "torchattacks/PGD:random_start=no,alpha=1/255": f"torchattacks/PGD:alpha={1 / 255!r},random_start=false",
        "torchattacks/CW:kappa=0.5,c=1": "torchattacks/CW:kappa=0.5",
        "torchattacks/Pixle:x_dimensions=(2+4)": "torchattacks/Pixle:x_dimensions=(2+4)",
        "foolbox/PGD:steps=3": "foolbox/LinfProjectedGradientDescentAttack:steps=3",
        "foolbox/EADAttack:decision_rule=L1": "foolbox/EADAttack:decision_rule=L1",
        "foolbox/L2PGD:abs_stepsize=0.1": "foolbox/L2ProjectedGradientDescentAttack:abs_stepsize=0.1",
        "pyautoattack/rand": "pyautoattack/rand",
    }.items():
        attack = make_attack(spec)
        assert name_of(attack) == name
        assert make_attack(name) == attack
        assert hash(attack) == hash(make_attack(name))
    both = "(torchattacks/PGD:steps=20)+(foolbox/LinfPGD)"
    assert attack_text(both) == both
    assert attack_text([make_attack("torchattacks/PGD:steps=20")]) == "(torchattacks/PGD:steps=20)"


def test_wrong_names_and_options_say_what_is_right():
    for spec, message in {
        "torchattacks/PDG": "did you mean.* PGD",
        "torchattacks/PGD:step=3": "did you mean steps.*alpha, random_start, steps",
        "torchattacks/PGD:eps=0.1": "no option called 'eps'",
        "torchattacks/PGD:steps=many": "steps must be a whole number",
        "torchattacks/LGV": "training set",
        "foolbox/LinfPGDD": "no attack of foolbox",
        "foolbox/EADAttack:decision_rule=L7": "one of EN, L1",
        "foolbox/os": "no attack of foolbox",
        "pyautoattack/custom": "plus, rand, standard",
        "pyautoattack/rand:seed=1": "no option called 'seed'",
        "foolboks/PGD": "did you mean foolbox",
        "torchattacks/Square:eot=3": "gradient attack",
    }.items():
        with pytest.raises(UsageError, match=message):
            make_attack(spec)
    with pytest.raises(UsageError, match="does not work in l2"):
        robustkit.evaluate("digits-cnn", "digits", "torchattacks/PGD", norm="l2", eps=0.1, n=2)


@pytest.mark.parametrize("spec", ["torchattacks/PGD", "foolbox/PGD", "pyautoattack/standard"])
def test_a_missing_library_is_named_with_what_installs_it(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, spec.split("/")[0], None)
    with pytest.raises(UsageError, match=r"pip install 'robustkit-bench\[attacks\]'"):
        make_attack(spec)


def test_the_library_s_code_is_part_of_the_run_s_identity():
    found = source_hashes([Named("torchattacks/PGD", make_attack("torchattacks/PGD"))])
    assert len(found["torchattacks"]) == len(found["torchattacks/PGD"]) == 64


def test_every_card_shows_norms_level_and_settings():
    for full_name in {*ALL, *named("pyautoattack")} - {*NOT_SAFE} | {*LEAVES}:
        card = cards.attack(full_name)
        source, name = full_name.split("/")
        assert ("not judge-safe: " in card) == (full_name in LEAVES)
        assert "judge-safe" in card
        if source in SOURCES:
            for setting in SOURCES[source]._settings(name):
                assert f"\n  {setting}" in card
            for defect in SOURCES[source].DEFECTS.get(name, ()):
                assert card.index(defect) < card.index("conformance")
    for name in plugins.table("attacks"):
        assert cards.attack(name).startswith(f"{name}: ")
    assert "steps       1000" in cards.attack("cw")


def test_reading_collapses_a_union_of_literals():
    assert reading.of(_Example, {"given"}, {})["mode"].hint == Literal["a", "b"]


class _Example:
    def __init__(self, given: int, mode: Union[Literal["a"], Literal["b"]] = "a") -> None:  # noqa: UP007
        pass


def test_the_command_line_lists_and_shows():
    run = CliRunner().invoke
    listed = run(main, ["list", "attacks", "--source", "torchattacks"])
    assert listed.exit_code == 0
    assert len(listed.output.splitlines()) == 37
    assert "torchattacks/…" in run(main, ["list", "attacks"]).output
    assert "foolbox/L2DeepFoolAttack" in run(main, ["list", "attacks", "deepfool", "--source", "foolbox"]).output
    shown = run(main, ["show", "attack", "torchattacks/CW"])
    assert shown.exit_code == 0
    assert "Known defects" in shown.output
    for arguments, message in {
        ("show", "attack", "torchattacks/XX"): "no attack of torchattacks",
        ("show", "model", "x"): "attack NAME",
        ("show", "attack", "python/mine.make"): "is yours",
        ("list", "attacks", "--source", "art"): "no attack source",
        ("list", "datasets", "--source", "art"): "leave it out",
    }.items():
        wrong = run(main, arguments)
        assert wrong.exit_code == 2
        assert message in wrong.output


def test_completion_imports_no_library():
    program = (
        "import sys\nfrom robustkit.cli.completion import attacks as completed\n"
        "print(completed('torchattacks/PGD'), completed('fool'), len(completed('foolbox/L2')), completed('fgs'))\n"
        "print([m for m in ('torch', 'torchattacks', 'foolbox', 'pyautoattack') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "'torchattacks/PGDL2'" in first
    assert "['foolbox/']" in first
    assert "['fgsm']" in first
    assert second == "[]"
