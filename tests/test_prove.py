"""VNN-LIB instances: what is read, what is refused, and the three answers with their exit codes."""

import gzip
import json

import pytest
import torch
from torch import nn

from robustkit.certificates import instances, vnnlib
from robustkit.cli import main
from robustkit.errors import UsageError


def text(low: float, high: float, inputs: int, claim: str, outputs: int = 3) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    lines += [f"(assert (<= X_{i} {high}))\n(assert (>= X_{i} {low}))" for i in range(inputs)]
    return "; an instance\n" + "\n".join([*lines, f"(assert {claim})"])


ATTACK = "apgd:loss=margin,steps=10"
ANY = "(or (and (>= Y_1 Y_0)) (and (<= Y_0 Y_2)))"


class Sum(nn.Module):
    """Outputs s, 1 and 0.5 of the sum s of two inputs, through ReLUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = x.flatten(1).relu().sum(1, keepdim=True)
        return torch.cat([s, 0 * s + 1, 0 * s + 0.5], 1)


def ask(low: float, high: float, claim: str = ANY) -> instances.Proof:
    return instances.prove(Sum().eval(), (1, 1, 2), vnnlib.parse(text(low, high, 2, claim)), attack=ATTACK)


def test_an_instance_is_read(tmp_path) -> None:
    found = vnnlib.parse(text(-0.5, 1.5, 2, ANY))
    assert found == vnnlib.Instance((-0.5, -0.5), (1.5, 1.5), 3, (((1, 0),), ((2, 0),)))
    packed = tmp_path / "p.vnnlib.gz"
    packed.write_bytes(gzip.compress(text(-0.5, 1.5, 2, ANY).encode()))
    assert vnnlib.read(packed) == found
    joined = vnnlib.parse(text(0, 1, 2, "(and (>= Y_1 Y_0) (or (>= Y_1 Y_2) (>= Y_2 Y_1)))"))
    assert joined.cases == (((1, 0), (1, 2)), ((1, 0), (2, 1)))
    tighter = vnnlib.parse(text(0, 1, 1, ANY) + "\n(assert (<= X_0 0.25))(assert (>= 0.75 X_0))")
    assert tighter.upper == (0.25,)


def test_what_is_no_classification_is_refused_by_name() -> None:
    for given, message in (
        (text(0, 1, 2, "(<= Y_0 3.5)"), r"\(<= Y_0 3.5\) is not supported"),
        (text(0, 1, 2, "(<= (+ Y_0 Y_1) Y_2)"), r"\(<= \(\+ Y_0 Y_1\) Y_2\) is not supported"),
        (text(0, 1, 2, "(or (and (<= X_0 0.5) (>= Y_1 Y_0)))"), r"\(<= X_0 0.5\) is not supported"),
        (text(0, 1, 2, "(>= Y_7 Y_0)"), "Y_7 is not declared"),
        (text(1, 0, 2, ANY), "the box is empty: X_0"),
        ("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))", "X_0 has no lower and upper bound"),
        ("(check-sat)", r"\(check-sat\) is no declaration"),
        ("(assert", "a parenthesis is not closed"),
        (")", "outside of parentheses"),
        (text(0, 1, 2, "(<= X_0 1)"), "asserts nothing of the outputs"),
    ):
        with pytest.raises(UsageError, match=message):
            vnnlib.parse(given)
    with pytest.raises(UsageError, match="cannot be read"):
        vnnlib.read(vnnlib.Path("nowhere.vnnlib"))


def test_the_three_answers() -> None:
    held = ask(0.6, 0.9)  # the sum is at least 1.2
    assert (held.answer, held.result()) == ("holds", "unsat\n")
    broken = ask(0.3, 0.9)
    assert broken.answer == "violated"
    assert all(0.3 <= value <= 0.9 for value in broken.inputs)
    assert sum(broken.inputs) <= 1.0
    assert broken.outputs[0] <= max(broken.outputs[1:])
    assert broken.result().startswith("sat\n((X_0 0.")
    centre = ask(0.1, 0.3)  # the middle of the box violates already
    assert centre.answer == "violated"
    assert centre.inputs == pytest.approx((0.2, 0.2))
    outside = ask(-2.0, 5.0)  # inputs need not be images
    assert outside.answer == "violated"


def test_a_case_of_several_comparisons_needs_them_all() -> None:
    both = "(and (>= Y_1 Y_0) (>= Y_2 Y_0))"
    broken = ask(0.2, 0.9, both)
    assert broken.answer == "violated"
    assert sum(broken.inputs) <= 0.5
    assert ask(0.3, 0.45, both).answer == "holds"  # the sum lies between 0.6 and 0.9: more than 0.5


def test_what_can_be_neither_is_unknown() -> None:
    class Softmax(Sum):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).softmax(1)

    found = instances.prove(Softmax().eval(), (1, 1, 2), vnnlib.parse(text(0.6, 0.9, 2, ANY)), attack=ATTACK)
    assert (found.answer, found.result()) == ("unknown", "unknown\n")
    assert "Softmax" in found.by
    with pytest.raises(UsageError, match="the instance has 3 inputs, the network 2"):
        instances.prove(Sum().eval(), (1, 1, 2), vnnlib.parse(text(0, 1, 3, ANY)))
    with pytest.raises(UsageError, match="the instance has 4 outputs, the network 3"):
        instances.prove(Sum().eval(), (1, 1, 2), vnnlib.parse(text(0, 1, 2, ANY, outputs=4)))


def test_the_command_ends_as_it_says(tmp_path, capsys) -> None:
    pytest.importorskip("onnx2torch")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.rand(1, 1, 3, 3)
    onnx = tmp_path / "net.onnx"
    torch.onnx.export(
        net, (x,), onnx, dynamo=True, opset_version=18, verbose=False
    )  # for batches of exactly 1, as a competition's are
    y = int(net(x).argmax())
    others = " ".join(f"(and (>= Y_{k} Y_{y}))" for k in range(3) if k != y)
    for width, code, word in ((0.0, 0, "unsat"), (5.0, 0, "sat")):
        box = "\n".join(
            f"(assert (<= X_{i} {v + width!r}))(assert (>= X_{i} {v - width!r}))"
            for i, v in enumerate(x.flatten().tolist())
        )
        declared = text(0, 1, 0, f"(or {others})").replace("; an instance\n", "")
        names = "".join(f"(declare-const X_{i} Real)" for i in range(9))
        (tmp_path / "p.vnnlib").write_text(f"{names}{box}{declared}")
        asked = [
            str(tmp_path / "p.vnnlib"),
            "--onnx",
            str(onnx),
            "--out",
            str(tmp_path / "r.txt"),
            "--json",
            "-",
            "--attack",
            ATTACK,
        ]
        with pytest.raises(SystemExit) as ended:
            main(["prove", *asked, "--quiet"])
        assert ended.value.code == code
        said = json.loads(capsys.readouterr().out)
        assert (said["schema"], said["result"]) == ("robustkit/proof/1", word)
        assert (tmp_path / "r.txt").read_text().splitlines()[0] == word
