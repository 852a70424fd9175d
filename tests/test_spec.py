import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit import spec
from robustkit.errors import UsageError
from robustkit.spec import Job, Spec, parse, parse_indices

WORDS = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)


@st.composite
def specs(draw, depth: int = 2):
    """Any spec that can be written: with a source or without, a file, and specs or lists of them as values."""
    kind = draw(st.sampled_from(["bare", "sourced", "file", "ensemble"] if depth else ["bare", "sourced", "file"]))
    inner = specs(depth - 1).map(str) if depth else WORDS
    listed = st.lists(inner, min_size=2, max_size=3).map(lambda items: "+".join(f"({item})" for item in items))
    values = st.one_of(WORDS, st.integers().map(str), st.just("8/255"), st.just(""), inner, listed)
    options = draw(st.dictionaries(WORDS, values, max_size=3))
    if kind == "bare":
        return Spec("", draw(WORDS), options)
    if kind == "file":
        return Spec("file", draw(st.sampled_from(["./", "/", "~/", "../"])) + draw(WORDS) + ".pt", options)
    if kind == "ensemble":
        return Spec("ensemble", draw(listed), options)
    return Spec(draw(WORDS), draw(WORDS) + draw(st.sampled_from(["", "/net"])), options)


@settings(deadline=None, max_examples=60)
@given(specs())
def test_what_is_written_is_read_back(given_spec):
    assert parse(str(given_spec)) == given_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pgd", Spec("", "pgd", {})),
        ("pgd:steps=40,restarts=5", Spec("", "pgd", {"steps": "40", "restarts": "5"})),
        (" pgd : steps = 40 , restarts=5 ", Spec("", "pgd ", {"steps": "40", "restarts": "5"})),
        ("timm/resnet18", Spec("timm", "resnet18", {})),
        ("hub/owner/net", Spec("hub", "owner/net", {})),
        ("python/package.module.make:width=3", Spec("python", "package.module.make", {"width": "3"})),
        ("./net.safetensors:arch=timm/resnet18", Spec("file", "./net.safetensors", {"arch": "timm/resnet18"})),
        ("~/net.pt", Spec("file", "~/net.pt", {})),
        ("/data/net.pt", Spec("file", "/data/net.pt", {})),
        ("../net.pt", Spec("file", "../net.pt", {})),
        ("./run:3/net.pt:arch=a", Spec("file", "./run:3/net.pt", {"arch": "a"})),
        ("./run:3/net.pt", Spec("file", "./run:3/net.pt", {})),
        ("ensemble/(timm/a)+(file/b.pt):mean=probs", Spec("ensemble", "(timm/a)+(file/b.pt)", {"mean": "probs"})),
        ("(timm/a)+(b)", Spec("", "(timm/a)+(b)", {})),
        ("x:base=(pgd:steps=3,loss=dlr)", Spec("", "x", {"base": "pgd:steps=3,loss=dlr"})),
        ("x:base=(a:b=(c:d=1,e=2),f=3),g=4", Spec("", "x", {"base": "a:b=(c:d=1,e=2),f=3", "g": "4"})),
        ("x:sizes=[1,2]", Spec("", "x", {"sizes": "[1,2]"})),
        ("x:empty=", Spec("", "x", {"empty": ""})),
        ("x:formula=a=b", Spec("", "x", {"formula": "a=b"})),
    ],
)
def test_the_grammar_reads_each_of_its_forms(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing"),
        (":steps=3", "names nothing"),
        ("pgd:steps", "'steps' in 'pgd:steps' is no option; write key=value"),
        ("pgd:=3", "is no option"),
        ("pgd:steps=3,,loss=ce", "is no option"),
        ("pgd:steps=3:loss=ce", "more than one ':'"),
        ("pgd:steps=3,steps=4", "'steps' is given twice"),
        ("x:base=(pgd", "lacks a closing ')'"),
        ("x:base=pgd)", "closes ')' at position 10 without opening it"),
        ("x:base=(pgd]", "closes ']'"),
        ("x:sizes=[1,2", "lacks a closing ']'"),
    ],
)
def test_what_does_not_read_is_refused_with_the_text_and_the_fault(text, said):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert said in str(error.value)
    assert repr(text.strip()) in str(error.value)


def test_lists_are_split_outside_parentheses_only():
    assert spec.listed("a+b") == ["a", "b"]
    assert spec.listed("(a:b=1+2)+(c)+d") == ["a:b=1+2", "c", "d"]
    assert spec.listed("a") == ["a"]
    assert spec.split("a,(b,c),[d,(e,f)],g", ",") == ["a", "(b,c)", "[d,(e,f)]", "g"]


def test_parentheses_around_a_whole_spec_change_nothing():
    assert parse("(pgd:steps=3)") == parse("pgd:steps=3")
    assert parse("(timm/a)") == parse("timm/a")


def test_parentheses_that_are_no_pair_stay():
    assert spec.unwrap("(a):b=(c)") == "(a):b=(c)"


def test_a_value_in_parentheses_is_read_back():
    written = Spec("", "x", {"y": "(a)"})
    assert parse(str(written)) == written


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    eps: float = 0.5
    loss: Literal["ce", "dlr"] = "ce"
    scale: Literal[1, 2] = 1
    start: bool = True
    step: float | None = None
    name: Optional[str] = "a"  # noqa: UP045 - the old spelling is read too
    sizes: tuple[int, ...] = (1, 2)
    ratios: tuple[float, ...] = (0.5,)
    seen: int = dataclasses.field(default=0, init=False)


@dataclass(frozen=True)
class Strict:
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "40", 40),
        ("eps", "8/255", 8 / 255),
        ("eps", "1e-3", 1e-3),
        ("eps", " 1/4 ", 0.25),
        ("eps", "2", 2.0),
        ("loss", "dlr", "dlr"),
        ("scale", "2", 2),
        ("start", "false", False),
        ("start", "No", False),
        ("start", "1", True),
        ("step", "none", None),
        ("step", "2/255", 2 / 255),
        ("name", "null", None),
        ("name", "b", "b"),
        ("sizes", "3", (3,)),
        ("sizes", "3+4+5", (3, 4, 5)),
        ("ratios", "1/2+0.25", (0.5, 0.25)),
    ],
)
def test_text_takes_the_type_of_its_field(key, text, value):
    found = getattr(spec.build(Settings, {key: text}, "pgd"), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": "4.5"}, "pgd: steps must be a whole number, not '4.5'"),
        ({"steps": "1e3"}, "whole number"),
        ({"eps": "much"}, "'much' is no number; write 8/255"),
        ({"eps": "1/0"}, "is no number"),
        ({"eps": "nan"}, "is not finite"),
        ({"eps": "inf"}, "is not finite"),
        ({"loss": "cw"}, "pgd: loss must be one of ce, dlr, not 'cw'"),
        ({"start": "maybe"}, "must be true or false"),
        ({"sizes": "3+x"}, "whole number"),
        ({"lose": "ce"}, "did you mean loss"),
        ({"seen": "3"}, "no option called 'seen'"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_attack_and_the_field(options, said):
    with pytest.raises(UsageError) as error:
        spec.build(Settings, options, "pgd")
    assert said in str(error.value)
    assert str(error.value).startswith("pgd: ")


@pytest.mark.parametrize(("options", "said"), [({"steps": "0"}, "at least 1"), ({}, "steps")])
def test_what_the_settings_themselves_refuse_is_a_usage_error(options, said):
    with pytest.raises(UsageError, match=said):
        spec.build(Strict, options, "strict")


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Settings,
        steps=st.integers(),
        eps=st.floats(allow_nan=False, allow_infinity=False),
        loss=st.sampled_from(["ce", "dlr"]),
        scale=st.sampled_from([1, 2]),
        start=st.booleans(),
        step=st.none() | st.floats(0, 1),
        name=st.none() | WORDS.filter(lambda word: word not in ("none", "null")),
        sizes=st.lists(st.integers(), min_size=1).map(tuple),
        ratios=st.lists(st.floats(-1, 1), min_size=1).map(tuple),
    )
)
def test_settings_written_as_a_spec_make_the_same_settings(chosen):
    changed = {key: text for key, text in spec.settings(chosen).items() if key != "seen"}
    written = str(Spec("", "pgd", changed))
    assert spec.build(Settings, parse(written).options, "pgd") == chosen


def test_only_settings_that_differ_from_the_default_are_written_in_the_order_of_the_fields():
    assert spec.settings(Settings()) == {}
    changed = spec.settings(Settings(start=False, steps=3, sizes=(4, 5)))
    assert list(changed.items()) == [("steps", "3"), ("start", "false"), ("sizes", "4+5")]
    assert spec.settings(Strict(3)) == {"steps": "3"}


def test_an_unknown_name_is_told_what_is_close_and_what_there_is():
    said = spec.suggest("pdg", ["pgd", "square", "fgsm"], "attack")
    assert "no attack called 'pdg'" in said
    assert "did you mean pgd?" in said
    assert "There are: fgsm, pgd, square" in said
    assert "did you mean" not in spec.suggest("zzz", ["pgd"], "attack")
    assert "none" in spec.suggest("pgd", [], "attack")
    assert spec.suggest("x", [f"name{i:03}" for i in range(100)], "attack").endswith("name039 …")


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("0", (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" 5 , 2 - 3 ", (5, 2, 3)),
        ("4-4", (4,)),
        ("[3, 5]", (3, 5)),
        (" [5,0] ", (5, 0)),
    ],
)
def test_samples_are_named_by_ranges_or_a_json_list_in_their_order(text, indices):
    assert parse_indices(text) == indices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write 0-199,400 or a JSON list"),
        ("a", "is no list of samples"),
        ("3-1", "is no list of samples"),
        ("-1", "is no list of samples"),
        ("1,,2", "is no list of samples"),
        ("[1.5]", "is no list of samples"),
        ("[true]", "is no list of samples"),
        ('["3"]', "is no list of samples"),
        ("[1", "is no list of samples"),
        ("[]", "at least one sample"),
        ("[-1]", "none negative"),
        ("1,1", "names a sample twice"),
        ("0-3,2", "names a sample twice"),
    ],
)
def test_samples_that_do_not_read_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        parse_indices(text)


def job(**changes) -> Job:
    fields = {
        "model": "zoo/digits", "model_sha256": "a1", "probe_sha256": "b2", "data": "digits", "data_sha256": "c3",
        "indices": (0, 1, 5), "attack": "auto", "attacks": ("pgd", "square:queries=100"),
        "attack_sources": {"pgd": "d4", "square": "e5"}, "norm": "linf", "eps": 8 / 255, "target": "", "seed": 0,
        "outputs": "logits", "quantize": "", "carried": "",
        "device": "cpu", "threads": 2, "tile": 32, "precision": "float32",
        "versions": {"torch": "2.6", "robustkit": "0.1.0"},
    }  # fmt: skip
    return Job(**{**fields, **changes})


def test_a_job_is_read_back_from_its_json_with_the_same_identity():
    data = json.loads(json.dumps(job().to_json()))
    identity = data.pop("id")
    again = Job(**data)
    assert identity == again.id == job().id
    assert again.to_json() == job().to_json()


def test_a_jobs_identity_is_the_hash_of_its_canonical_json():
    data = dataclasses.asdict(job())
    assert data.pop("certify") == ""  # a run that asked for no certificates has the identity it had before they were
    asked = dataclasses.asdict(job(certify="crown:order=first"))
    for made, whole in ((job(), data), (job(certify="crown:order=first"), asked)):
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        assert made.id == hashlib.sha256(text.encode()).hexdigest()
    assert job(versions={"robustkit": "0.1.0", "torch": "2.6"}).id == job().id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_sha256", "a2"), ("indices", (0, 5, 1)), ("attacks", ("square:queries=100", "pgd")), ("seed", 1),
        ("eps", 8.0000001 / 255), ("threads", 1), ("attack_sources", {"pgd": "d5", "square": "e5"}), ("tile", 16),
        ("versions", {"torch": "2.7", "robustkit": "0.1.0"}), ("target", "random"), ("precision", "tf32"),
        ("certify", "crown:order=first"),
    ],
)  # fmt: skip
def test_whatever_decides_the_numbers_changes_a_jobs_identity(field, value):
    assert job(**{field: value}).id != job().id


def test_equal_values_have_one_canonical_text_and_nan_has_none():
    assert spec.canonical({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert spec.digest({"a": 1, "b": 2}) == spec.digest({"b": 2, "a": 1})
    assert spec.digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    with pytest.raises(ValueError, match="not JSON compliant"):
        spec.canonical({"a": float("nan")})
