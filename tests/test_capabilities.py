import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from robustkit_attacks.pgd import PGD
from robustkit_defenses.crossmax import CrossMax
from robustkit_defenses.probes import Probed
from torch import nn

import robustkit
from robustkit.models import capabilities
from robustkit.models.capabilities import (
    AnswersFirstMembers,
    AnswersWithMembers,
    HasMembers,
    HasSurrogates,
    Randomised,
    Reseeds,
)
from robustkit.models.ensembles import Ensemble
from robustkit.models.wrapping import Prepared
from tests.toys import Linear, seeded

PROTOCOLS = [Randomised, Reseeds, HasMembers, HasSurrogates, AnswersWithMembers, AnswersFirstMembers]
NAMES = {"randomised", "reseed", "members", "surrogates", "forward_with_members", "first_members"}
ROOT = Path(__file__).parent.parent


def images(n: int = 6):
    return torch.rand(n, 1, 4, 4, generator=seeded(3))


class Counted(Linear):
    """A classifier that counts its passes."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def impostor(**attributes):
    """A plain classifier that has something else under a capability's name."""
    module = type("Impostor", (Linear,), {k: v for k, v in attributes.items() if not isinstance(v, nn.Module)})()
    for name, value in attributes.items():
        if isinstance(value, nn.Module):
            setattr(module, name, value)
    return module


IMPOSTORS = {
    "sub-modules": lambda: impostor(
        members=nn.ModuleList([nn.Linear(2, 2)]), surrogates=nn.ModuleDict({"a": nn.Linear(2, 2)}),
        reseed=nn.Identity(), forward_with_members=nn.Identity(), first_members=nn.Identity(),
    ),
    "methods that want arguments": lambda: impostor(
        members=lambda self, kind: [self], surrogates=lambda self, kind: {"a": self}, reseed=lambda self: 1 / 0,
        forward_with_members=lambda self, x, y: x, first_members=lambda self, x: x,
    ),
    "other answers": lambda: impostor(
        members=lambda self: ["Ann", "Bob"], surrogates=lambda self: [self], randomised=lambda self: True,
        forward_with_members=lambda self, x: Linear.forward(self, x), first_members=lambda self, x, n: None,
    ),
    "names of another kind": lambda: impostor(
        members=lambda self: 3, surrogates=lambda self: {1: self}, randomised="uniform",
        forward_with_members=lambda self, x: (Linear.forward(self, x), x),
    ),
    "values": lambda: impostor(members=[Linear()], surrogates={"a": Linear()}, reseed=3, forward_with_members=None),
}  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Prepared(nn.Identity(), m)], ids=["bare", "prepared"])
@pytest.mark.parametrize("kind", IMPOSTORS)
def test_what_does_not_answer_as_documented_is_no_capability(kind, wrap):
    module, plain, x = wrap(IMPOSTORS[kind]()), Linear(), images()
    assert not capabilities.randomised(module)
    assert list(capabilities.members(module)) == []
    assert dict(capabilities.surrogates(module)) == {}
    capabilities.reseed(module, 1)
    logits, members = capabilities.forward_with_members(module, x)
    assert torch.equal(logits, plain(x))
    assert members is None


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor_is_evaluated_as_the_plain_model_that_it_is(kind):
    x = images()
    y = Linear()(x).argmax(1)
    given, plain = (robustkit.evaluate(m, (x, y), PGD(steps=5), eps=0.1) for m in (IMPOSTORS[kind](), Linear()))
    for fact in ("status", "distance", "margin"):
        assert np.array_equal(given.samples[fact], plain.samples[fact], equal_nan=fact != "status")
    assert [flag["kind"] for flag in given.flags] == [flag["kind"] for flag in plain.flags]


def test_what_answers_as_documented_is_one():
    pair = [Linear(seed=1), Linear(seed=2)]
    module = impostor(
        randomised=True, members=lambda self: nn.ModuleList(pair), surrogates=lambda self: nn.ModuleDict({"a": pair[0]})
    )
    assert capabilities.randomised(module)
    assert capabilities.members(module) == pair
    assert capabilities.surrogates(module) == {"a": pair[0]}


def test_an_error_inside_a_capability_is_not_swallowed():
    broken = impostor(members=lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capabilities.members(broken)


def test_our_own_modules_keep_the_protocols():
    ensemble = Ensemble([Linear(seed=1), Linear(seed=2)])
    joined = CrossMax().protect(ensemble)
    assert all(isinstance(ensemble, protocol) for protocol in PROTOCOLS)
    assert all(isinstance(joined, protocol) for protocol in PROTOCOLS if protocol is not AnswersFirstMembers)
    assert isinstance(Probed(Linear(), [], []), AnswersFirstMembers)
    assert not any(isinstance(Linear(), protocol) for protocol in PROTOCOLS)


def test_the_members_outputs_are_had_as_cheaply_as_the_ensemble_offers():
    x = images()
    ways = {  # passes of the two networks for the outputs of the first member
        "first_members": (lambda pair: Ensemble(pair), [1, 0]),
        "forward_with_members": (
            lambda pair: impostor(forward_with_members=lambda self, x: Ensemble(pair).forward_with_members(x)),
            [1, 1],
        ),
        "members": (lambda pair: impostor(members=lambda self: pair), [1, 0]),
    }
    for make, passes in ways.values():
        pair = [Counted(seed=1).eval(), Counted(seed=2).eval()]
        found = capabilities.member_outputs(make(pair), x, first=1)
        assert [network.calls for network in pair] == passes
        assert torch.equal(found, Linear(seed=1)(x)[None])
        both = capabilities.member_outputs(make(pair), x)
        assert torch.equal(both, torch.stack([Linear(seed=1)(x), Linear(seed=2)(x)]))


def asked(tree: ast.AST) -> list[int]:
    """The lines that ask for a capability by its name."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in NAMES
    ]


def test_capabilities_are_asked_for_in_one_place():
    assert asked(ast.parse("getattr(module, 'members', None)\nhasattr(module, 'forward')")) == [1]
    files = [path for folder in ("robustkit", "attacks", "defenses") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    places = {str(path): lines for path in files if (lines := asked(ast.parse(path.read_text())))}
    assert {Path(path).name for path in places} == {"capabilities.py"}
