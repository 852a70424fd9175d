"""The probes of the audit: what each sees of masks whose fault is known, and that it leaves honest models alone."""

import pytest
import torch
from torch import nn

from benchmarks.masking_variations import (
    VARIATIONS,
    Decoy,
    Remembers,
    Switches,
    crowded,
    linear_decoy,
    recorded,
    wrong_signs,
)  # fmt: skip
from benchmarks.masking_zoo import Around, FlipsGradients, base, one_hot, rounded
from robustkit.api import ModelFacts, ThreatModel
from robustkit.audit.probes import boundary, contract, directions, operators, units
from robustkit.audit.probes.asking import Look
from robustkit.audit.probing import Probing
from robustkit.audit.rules import Limits
from robustkit.audit.run import audit
from robustkit.datasets import resolve
from robustkit.models.examination import examine
from robustkit.models.operators import Operators, scan
from robustkit.models.rewrites import Rewritten
from robustkit.models.standins import Features, Without, head_inside, steps_inside
from robustkit.models.views import Views
from robustkit.numerics import rows
from tests import toys

SHAPE, N = (1, 4, 4), 24
X = 0.2 + 0.6 * torch.rand(N, *SHAPE, generator=toys.seeded(5))
L = Limits()
DIGITS = [one for one in VARIATIONS if one.images == "digits"]


class Net(nn.Module):
    """A small honest network with an activation."""

    def __init__(self, classes=10, change=torch.relu):
        super().__init__()
        self.first, self.last = toys.Linear(SHAPE, 12, seed=1), toys.Linear((12,), classes, seed=2)
        self.change = change

    def forward(self, x):
        return self.last(self.change(self.first(x - 0.5)))


class Rounds(nn.Module):
    """A step on images that rounds, its backward pass as if it did not."""

    def forward(self, x):
        return x + (rounded(17)(x) - x).detach()


class Behind(nn.Module):
    """A network behind a step."""

    def __init__(self, step, network):
        super().__init__()
        self.step, self.network = step, network

    def forward(self, x):
        return self.network(self.step(x))


def look(model, x=X, tile=8):
    y = model(x).argmax(1).detach()
    subject = examine(model.eval(), x, y, classes=None, outputs="logits", tile=tile, seed=0, device=torch.device("cpu"))
    return Look(subject.reference, x, torch.arange(len(x)), 0)


def scanned(model):
    seen = look(model)
    return scan(seen.network, seen.x)


def probing(model, x=X, stand_ins=None, tile=8):
    seen = look(model, x, tile)
    return Probing(seen, scan(seen.network, seen.x), stand_ins or {}, bool(stand_ins), L)


def outcomes(model, **more):
    asked = probing(model, **more)
    found = [*asked.function(), *asked.gradients(flows=True)]
    return {one.name: one.outcome for one in found}


@pytest.mark.parametrize("change", [torch.relu, torch.tanh, nn.functional.gelu])
def test_honest_models_pass_every_probe(change):
    assert set(outcomes(Net(change=change)).values()) == {"fine", "skipped"}  # units tell from 32 images


def test_the_slopes_of_a_linear_model_are_its_differences():
    seen = directions.measure(look(toys.Linear(SHAPE)))
    assert seen.cosines == pytest.approx((1, 1), abs=1e-4)
    assert max(seen.kinks) < 1e-3
    assert (seen.n, seen.dead, seen.flat) == (16, 0, 0)


def test_the_cosine_is_that_of_what_autograd_says_with_what_the_forward_does():
    class Half(nn.Module):  # the backward pass of one half of the image alone
        net = toys.Linear(SHAPE)

        def forward(self, x):
            return self.net(torch.cat([x[:, :, :2], x[:, :, 2:].detach()], 2))

    seen = directions.measure(look(Half()))
    assert 0.4 < seen.cosines[1] < 0.95
    w = Half.net.weight.view(5, *SHAPE)
    x = X[:16]
    of, over = Half.net(x).topk(2, 1).indices.T
    whole = (w[of] - w[over]).flatten(1)
    half = whole.clone()
    half[:, 8:] = 0
    wanted = (rows.dot(whole, half) / whole.norm(dim=1) / half.norm(dim=1)).mean().detach()
    assert seen.cosines[1] == pytest.approx(float(wanted), abs=0.15)  # over directions, not over entries


def test_a_jump_is_measured_where_the_decision_changes():
    seen = boundary.measure(look(Decoy(Net(), linear_decoy, 0.5)))
    assert seen.largest > 0.5
    assert boundary.judge(seen, L).outcome == "suspect"
    honest = boundary.measure(look(Net()))
    assert honest.largest < 1e-4
    assert honest.lines >= 8


def test_the_width_of_a_tile_changes_only_the_points_that_are_tried():
    narrow, wide = (boundary.measure(look(Net(), tile=tile)) for tile in (8, 128))
    assert narrow.lines == wide.lines
    assert max(narrow.largest, wide.largest) < 1e-4


def test_one_decision_for_all_has_no_line():
    class Same(Net):
        def forward(self, x):
            return super().forward(x) + 1e3 * torch.eye(10)[0]

    found = boundary.judge(boundary.measure(look(Same())), L)
    assert found.outcome == "skipped"


def test_few_images_that_show_nothing_are_undecided_and_say_how_many_would_do():
    few = look(Net(), X[:5])
    found = directions.judge(directions.measure(few), L)
    assert found.outcome == "undecided"
    assert "5 images are too few to tell, 8 would do" in found.text
    assert boundary.judge(boundary.measure(few), L).outcome == "undecided"


FAULTS = {
    "recorded": (lambda: Switches(Net(), recorded, lambda x: x.flip(3)), "with gradients recorded"),
    "crowded": (lambda: Switches(Net(), crowded(8), lambda x: x.flip(3)), "in batches of other sizes"),
    "remembers": (lambda: Remembers(Net(), 0.05), "after other queries"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_one_function_of_one_image_is_invalid_and_says_how(name):
    make, way = FAULTS[name]
    one, _ = contract.judge(contract.measure(look(make())), L)
    assert one.outcome == "invalid"
    assert way in one.text.split("when asked ")[1]


def test_a_batch_size_that_a_model_refuses_is_told():
    class Only8(Net):
        def forward(self, x):
            if len(x) != 8:
                raise RuntimeError("8 rows")
            return super().forward(x)

    one, grid = contract.judge(contract.measure(look(Only8(), X[:8])), L)
    assert one.outcome == grid.outcome == "fine"
    assert "it takes no batches of 1, 2, 3, 4, 5, 6, 7, 9," in one.text


def test_a_model_that_cannot_be_copied_is_asked_all_else():
    class Once(Net):
        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

    seen = contract.measure(look(Once()))
    assert "one of a kind" in seen.left_out[0]
    assert "of a fresh copy" not in seen.ways
    assert "in batches of other sizes" in seen.ways


def test_the_scan_names_what_hides():
    class Inner(Net):
        def forward(self, x):
            at = x.detach().requires_grad_(True)
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(super().forward(at).logsumexp(1).sum(), at)
            return super().forward(x - 0.01 * grad.sign())

    plain = scanned(Net())
    assert plain == Operators()
    seen = scanned(Behind(Rounds(), Net()))
    assert {"round", "detach"} <= seen.told
    assert seen.quantises
    inner = scanned(Inner())
    assert inner.derivatives
    assert operators.judge(inner, declared=False).outcome == "suspect"
    assert operators.judge(inner, declared=True).outcome == "fine"

    class Sealed(Net):
        def forward(self, x):
            return super().forward(wrong_signs(0.5)(x))

    written = scanned(Sealed())
    assert [kind.__name__ for kind in written.written] == ["Scales"]


def test_steps_on_images_are_found_and_left_out():
    model = Behind(Rounds(), Net())
    assert steps_inside(model, X[:8]) == ["step"]
    assert torch.equal(Without(model, ["step"])(X), model.network(X))
    assert not model.step._forward_hooks


def test_what_rounds_on_purpose_is_excused_by_a_stand_in_that_passes_in_its_place():
    model = Behind(Rounds(), Net())
    alone = outcomes(model)
    assert alone["gradient-check"] == alone["boundary-jump"] == "suspect"
    excused = outcomes(model, stand_ins={"without step": Without(model, ["step"])})
    assert excused["gradient-check"] == excused["boundary-jump"] == "fine"
    unsound = outcomes(model, stand_ins={"itself": Behind(Rounds(), model.network)})
    other = outcomes(model, stand_ins={"another": Net(change=torch.tanh)})  # passes, and decides otherwise
    assert unsound == other == alone | {"operators": "fine"}


def slope(model, x):
    """The gradient of a mixture of the logits."""
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad((model(x) * torch.arange(10.0)).sum(), x)[0]


BLOCKS = {
    "rounds": (rounded(5), lambda z: z),
    "detached": (lambda x: x.detach(), lambda z: z),
    "under no_grad": (torch.no_grad()(lambda x: x * 1), lambda z: z),
    "flips": (FlipsGradients.apply, lambda z: z),
    "scaled by a Function": (wrong_signs(0.5), lambda z: z),
    "clipped": (lambda x: x, lambda z: z.clamp(-1e-3, 1e-3)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_rewritten_backward_pass_goes_through_what_blocks_it_and_the_forward_is_the_model_s(name):
    before, after = BLOCKS[name]
    model = Around(Net(), before, after).eval()
    ours = Rewritten(model, scanned(model).written)
    assert torch.equal(ours(X), model(X))
    assert torch.allclose(slope(ours, X), slope(Net(), before(X).detach()), rtol=1e-4)
    assert FlipsGradients._backward_cls.__name__ == "FlipsGradientsBackward"  # as it was


def test_decisions_signs_and_comparisons_have_smooth_slopes():
    hard = Rewritten(Around(Net(), after=one_hot).eval())
    assert torch.equal(hard(X), one_hot(Net()(X)))
    soft = slope(Around(Net(), after=lambda z: z.softmax(1)), X)
    assert torch.allclose(slope(hard, X), soft, atol=1e-6)
    for step in (torch.sign, lambda x: (x > 0.5).float()):
        assert slope(Rewritten(Around(Net(), lambda x, step=step: step(x - 0.1)).eval()), X).ne(0).any()


def test_features_are_matched_and_show_what_a_head_hides():
    class Hidden(Net):
        def forward(self, x):
            return super().forward(x).round()

    model = Hidden()
    model.last = nn.Linear(12, 10)
    decisions = model(X).argmax(1)
    assert head_inside(model, X, 10) == "last"
    view = Features(model, "last", X, decisions, 10)
    first = {int(k): int((decisions == k).nonzero()[0]) for k in decisions.unique()}
    logits = view(X)
    for k, row in first.items():
        assert logits[row].argmax() == k
        assert logits[row, k] == 0
    assert slope(view, X[5:]).flatten(1).ne(0).any(1).all()


def test_the_views_of_a_model_are_those_that_answer_as_it_does():
    def views(model, **more):
        seen = look(model)
        facts = ModelFacts(10, False, True, 0, ())
        return list(Views(seen.network, seen.x, facts, ThreatModel("linf", 0.1)).found(**more))

    assert views(Net()) == ["smoothed"]
    assert views(Net(), rough=True) == ["smoothed", "smoothed over 0.125 eps", "smoothed over 2 eps"]
    assert views(Behind(Rounds(), Net())) == [
        "plain network",
        "without step",
        "rewritten",
        "inside network",
        "smoothed",
    ]
    assert "plain network" not in views(Behind(Turns(), Net()))  # the plain image is another one to it


class Turns(nn.Module):
    def forward(self, x):
        return 1 - x


def test_a_layer_that_stands_still_is_told_from_dead_units():
    class Saturates(Net):
        def forward(self, x):
            return self.last((100 * self.first(x)).tanh() + 0.01 * self.first(x))

    x = X.repeat(2, 1, 1, 1)[:32] + 0.01 * torch.rand(32, *SHAPE, generator=toys.seeded(9))
    found = units.measure(look(Saturates(), x, tile=32), L)
    assert (found.name, found.place, found.n) == ("tanh", 1, 32)
    assert units.judge(found._replace(still=32), L).outcome == "suspect"
    honest = units.measure(look(Net(), x, tile=32), L)
    assert units.judge(honest, L).outcome == "fine"
    assert units.judge(units.measure(look(toys.Linear(SHAPE), x[:8]), L), L).outcome == "skipped"


DEAR = ("answers kept for neighbours", "anti-adversary layer", "votes of fixed copies, blurred decoy")  # in seconds


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, marks=[pytest.mark.slow] if one.name in DEAR else [], id=one.name) for one in DIGITS],
)
def test_a_variation_is_seen_by_the_probes_alone(one):
    found = outcomes(one.make(), x=resolve("digits").batch(range(32))[0], tile=128)
    assert {"suspect", "invalid"} & set(found.values()), found


def test_the_network_behind_the_variations_passes():
    assert set(outcomes(base(), x=resolve("digits").batch(range(32))[0], tile=128).values()) == {"fine"}


@pytest.mark.slow
@pytest.mark.parametrize("one", VARIATIONS, ids=lambda one: one.name)
def test_no_variation_is_valid(one):
    n = 96 if one.images == "digits" else 48
    assert audit(one.make(), one.data(n), eps=one.eps, n=n).verdict in ("suspect", "invalid")
