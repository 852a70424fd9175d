"""What a wrong word means: the field's other names for a thing, and the nearest spelling."""

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from robustkit import plugins
from robustkit.cli import main
from robustkit.words import distance, nearest

ATTACKS, DEFENSES = tuple(plugins.table("attacks")), tuple(plugins.table("defenses"))
OPTIONS = ("steps", "step", "restarts", "loss", "random_start", "density")
NORMS = ("linf", "l2", "l1", "l0")


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("pdg", ATTACKS, "pgd"), ("PGD", ATTACKS, "pgd"), ("pgdd", ATTACKS, "pgd"), ("sqaure", ATTACKS, "square"),
        ("autoatack", ATTACKS, "autoattack"), ("auto-attack", ATTACKS, "autoattack"), ("AA", ATTACKS, "autoattack"),
        ("carlini", ATTACKS, "cw"), ("C&W", ATTACKS, "cw"), ("bim", ATTACKS, "pgd"), ("MI-FGSM", ATTACKS, "mi"),
        ("fsgm", ATTACKS, "fgsm"), ("auto-pgd", ATTACKS, "apgd"), ("multi", ATTACKS, "multi-targeted"),
        ("jpg", DEFENSES, "jpeg"), ("cross-max", DEFENSES, "crossmax"), ("medain", DEFENSES, "median"),
        ("randomized smoothing", DEFENSES, "gaussian-smoothing"), ("bitdepth", DEFENSES, "bit-depth"),
        ("Linf", NORMS, "linf"), ("inf", NORMS, "linf"), ("L-2", NORMS, "l2"), ("euclidean", NORMS, "l2"),
        ("stpes", OPTIONS, "steps"), ("iterations", OPTIONS, "steps"), ("step_size", OPTIONS, "step"),
        ("nrestarts", OPTIONS, "restarts"), ("randomstart", OPTIONS, "random_start"),
    ],
)  # fmt: skip
def test_the_first_that_is_named_is_the_one_that_is_meant(given, known, meant):
    assert nearest(given, known)[0] == meant


@pytest.mark.parametrize("given", ["xyzzy", "deepfool", "", "?", "zz"])
def test_of_what_is_near_to_nothing_nothing_is_said(given):
    assert nearest(given, ATTACKS) == []


def test_what_is_meant_is_among_what_there_is():
    assert nearest("aa", ["fgsm", "apgd-like"]) == []  # there is no autoattack here


@pytest.mark.parametrize(("a", "b", "apart"), [("pdg", "pgd", 1), ("", "abc", 3), ("abc", "abc", 0), ("ca", "abc", 3),
                                               ("steps", "stpes", 1), ("kitten", "sitting", 3)])  # fmt: skip
def test_the_distance_is_damerau_s(a, b, apart):
    assert distance(a, b) == apart


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_distance_is_symmetric_and_bounded(a, b):
    assert distance(a, b) == distance(b, a)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert (distance(a, b) == 0) == (a == b)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate", "no command called 'evaluate'; did you mean eval?"),
        ("data lst", "no command called 'lst'; did you mean ls?"),
        ("leaderboard rendr", "did you mean render?"),
        ("eval --model digits-cnn --norm Linfinity", "is not one of linf, l2, l1, l0; did you mean linf?"),
        ("eval --model digits-cnn --epsilon 0.1", "no option --epsilon; did you mean --eps?"),
        ("eval --model digits-cnn --outputs softmax", "did you mean probs?"),
        ("list attack", "is not one of attacks, models, datasets, defenses, recipes; did you mean attacks?"),
        ("report x --format markdown", "did you mean md?"),
        ("plot heatmp x -o x.pdf", "is not one of eps, transfer"),
        ("completion zhs", "did you mean zsh?"),
    ],
)
def test_the_command_line_says_what_is_meant_on_one_line(arguments, said):
    done = CliRunner().invoke(main, arguments.split(), prog_name="robustkit")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
