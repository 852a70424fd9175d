"""What a plugin or a caller gives as an attack or a defense is looked at as a whole, and told all it lacks."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from robustkit_attacks.fgsm import FGSM

from robustkit import UsageError, evaluate, transfer
from robustkit.engine import contract
from robustkit.models import defended
from tests.test_engine import linear_case


class Declared:
    norms: ClassVar = frozenset({"linf", "l2"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"

    def __call__(self, case):
        return case.x.clone()

    def cost(self, classes):
        return 1, 1


@dataclass(frozen=True)
class Clean(Declared):
    """Returns what it was given, without a look at the model."""


@dataclass(frozen=True)
class CleanAfterALook(Declared):
    def __call__(self, case):
        case.oracle.outputs(case.x)
        return case.x.clone()


@dataclass(frozen=True)
class Blindly(Declared):
    """Moves the images and asks the model nothing."""

    def __call__(self, case):
        return case.threat.clip(case.x + 0.5 * case.threat.eps * (case.x > 2))  # by nothing

    def cost(self, classes):
        return 0, 0


@dataclass(frozen=True)
class Far(Declared):
    by: float = 1.5
    half: bool = False

    def __call__(self, case):
        adv = case.threat.clip(case.x + self.by * case.threat.eps * (0.5 - case.x).sign())
        return adv.half() if self.half else adv


@dataclass(frozen=True)
class Bare:
    steps: int = 3


@dataclass(frozen=True)
class NoCost:
    norms: ClassVar = frozenset({"linf"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"

    def __call__(self, case):
        return case.x


@dataclass
class Thawed(Declared):
    pass


@dataclass(frozen=True)
class Misdeclared(Declared):
    norms: ClassVar = "linf"
    goal: ClassVar = "nearest"
    access: ClassVar = "whitebox"

    def cost(self, classes):
        return 1


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Bare(), ["no norms, no goal, no access, no cost", "cannot be called with a case"]),
        (NoCost(), ["no cost"]),
        (Thawed(), ["no frozen dataclass"]),
        (Misdeclared(), ["norms is 'linf'", "goal is 'nearest'", "access is 'whitebox'", "cost(classes) must return"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_attack_is_told_all_it_lacks_in_one_line(made, words):
    model, x, y = linear_case(20)
    for asked in (
        lambda: evaluate(model, (x, y), made, eps=0.1),
        lambda: transfer(model, model, made, (x, y), eps=0.1),
    ):
        with pytest.raises(UsageError) as caught:
            asked()
        assert all(word in str(caught.value) for word in words), caught.value
        assert "is no attack" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_attack_of_a_module_is_told_the_same_also_without_a_dataclass(tmp_path, monkeypatch):
    (tmp_path / "plainattack.py").write_text("class Plain:\n    def __call__(self, case):\n        return case.x\n")
    monkeypatch.chdir(tmp_path)
    for text in ("python/plainattack.Plain", "plainattack.py:Plain", "plainattack:Plain"):
        with pytest.raises(UsageError) as caught:
            evaluate("digits-cnn", "digits", text, n=4)
        said = str(caught.value)
        assert "Plain is no dataclass" in said
        assert "no norms, no goal, no access, no cost" in said


def test_what_conforms_has_no_faults():
    assert contract.faults(FGSM()) == contract.faults(Clean()) == []


class Returns:
    def __init__(self, what):
        self.what = what

    def protect(self, model):
        return self if self.what == "self" else self.what


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned nothing; it must return an nn.Module"),
        ("self", "returned the defense itself; it must"),
        (lambda x: x, "returned a function, which is no module; put it into the forward of an nn.Module"),
        (3, "returned an object of type int"),
    ],
)
def test_a_defense_that_gives_no_module_is_told(returned, words):
    model, _, _ = linear_case(4)
    with pytest.raises(UsageError, match="mine: protect") as caught:
        defended.protect(model, [defended.Named("mine", Returns(returned))])
    assert words in str(caught.value)


def test_a_class_without_protect_is_told():
    with pytest.raises(UsageError, match=r"Bare is no defense: it has no protect\(model\)"):
        defended.resolve(Bare())


def test_an_attack_that_does_nothing_is_noted():
    model, x, y = linear_case(20)
    said = {}
    for made in (Clean(), CleanAfterALook(), Blindly(), FGSM()):
        record = evaluate(model, (x, y), made, eps=0.01, norm="linf", doctor=False)
        said[type(made)] = " ".join(flag["message"] for flag in record.flags if flag["kind"] == "idle")
        assert record.robust_accuracy is not None
    assert "clean returned the clean images of all" in said[Clean]
    assert "made no pass through the model" in said[Clean]
    assert "returned the clean images" in said[CleanAfterALook]
    assert "no pass" not in said[CleanAfterALook]
    assert "made no pass" in said[Blindly]
    assert said[FGSM] == ""
    record = transfer(model, model, Clean(), (x, y), eps=0.1)
    (note,) = [flag["message"] for flag in record.flags if flag["kind"] == "idle"]
    assert "returned the clean images of all 20 samples it met" in note


def test_outside_the_ball_says_by_how_much_and_in_which_type():
    model, x, y = linear_case(20)
    record = evaluate(model, (x, y), Far(), eps=0.1, norm="linf", doctor=False)
    (error,) = record.errors
    assert error["message"] == "an image outside the ball, by up to 0.05 (eps is 0.1, the images came in float32)"
    one = evaluate(model, (x, y), Far(), eps=0.1, norm="linf", doctor=False, batch_size=1, shard_size=3)
    assert one.errors == record.errors  # whatever shares a batch
    halved = evaluate(model, (x, y), Far(1.0, half=True), eps=0.1, norm="linf", doctor=False)
    assert "the images came in float16" in halved.errors[0]["message"]
    moved = transfer(model, model, Far(), (x, y), eps=0.1)
    assert moved.errors[0]["message"] == error["message"]
    assert len(moved.errors[0]["indices"]) == 20


def test_none_is_no_defense_everywhere():
    assert defended.resolve("none") == defended.resolve(["none"]) == []
    assert [named.name for named in defended.resolve(["none", "jpeg"])] == ["jpeg"]
