"""Attacks of other libraries: which are judge-safe, what the judge catches, and the defects their cards name."""

import importlib
import importlib.util
import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn

import robustkit
from robustkit import plugins
from robustkit.api import Attack, ForeignAttack, ModelFacts, ThreatModel
from robustkit.cli import cards
from robustkit.engine.plan import make_attack, name_of
from robustkit.errors import UsageError
from robustkit.models.oracle import Counts, ModelOracle, Network
from robustkit.testing import Failure, attack_batch, check_attack
from robustkit.testing.conformance import _small_network

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

from robustkit_attacks.foreign import foolbox as foolbox_source
from robustkit_attacks.foreign import torchattacks as torchattacks_source

SOURCES = {"torchattacks": torchattacks_source, "foolbox": foolbox_source}
FEW = {
    "steps": 6, "n_queries": 30, "nb_sample": 8, "max_iterations": 12, "restarts": 2, "binary_search_steps": 3,
    "repeats": 5, "directions": 20, "popsize": 8, "num_iter_set": 4, "max_gradient_eval_steps": 50,
    "initial_gradient_eval_steps": 10, "random_steps": 5, "num_rotations": 2, "num_translations": 2, "gamma": 0.01,
}  # fmt: skip
FEWER = {
    "OnePixel": {"steps": 1}, "SparseFool": {"steps": 1}, "DeepFool": {"steps": 3}, "FAB": {"steps": 2},
    "APGDT": {"steps": 2}, "JSMA": {"gamma": 0.004}, "HopSkipJumpAttack": {"steps": 2}, "CW": {"steps": 4},
}  # fmt: skip
# Up to minutes at the size their libraries fix: run by hand, with the others.
SLOW = {"torchattacks/AutoAttack", "torchattacks/OnePixel", "torchattacks/SparseFool", "foolbox/PointwiseAttack"}
# Everything that is not judge-safe, with what is seen. Exact: the tests fail for one more and for one less.
HAS_NUMBA = importlib.util.find_spec("numba") is not None
NUMBA = {f"foolbox/{p}BrendelBethgeAttack": "pip install 'numba'" for p in ("L0", "L1", "L2", "Linfinity")}
LEAVES = {
    f"foolbox/{name}": "an image outside the ball"
    for name in (
        "LinfAdditiveUniformNoiseAttack", "LinfRepeatedAdditiveUniformNoiseAttack", "SparseL1DescentAttack"
    )
}  # fmt: skip
if HAS_NUMBA:
    SLOW |= {*NUMBA}  # compiled first
NOT_SAFE = {**LEAVES, **({} if HAS_NUMBA else NUMBA)}
UNUSABLE = {"torchattacks/LGV", "torchattacks/MultiAttack", "foolbox/Attack", "foolbox/BinarizationRefinementAttack"}


def named(source: str) -> list[str]:
    return [f"{source}/{name}" for name in plugins.load("attack_sources", source)().names()]


ALL = named("torchattacks") + named("foolbox")


def quick(full_name: str) -> Attack:
    """The attack with few steps, where it has steps."""
    source, name = full_name.split("/")
    has = SOURCES[source]._settings(name)
    options = {key: value for key, value in {**FEW, **FEWER.get(name, {})}.items() if key in has}
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return make_attack(f"{full_name}:{text}" if text else full_name)


def check(full_name: str, *, every_norm: bool) -> list[str]:
    attack = quick(full_name)
    assert isinstance(attack, ForeignAttack)
    assert make_attack(name_of(attack)) == attack
    # The flexible attacks never look at the norm; one stands for the four.
    norms = ["l1"] if len(attack.norms) == 4 and not every_norm else None
    return check_attack(attack, level="judge-safe", targeted=full_name == "foolbox/GenAttack", norms=norms)


@pytest.mark.parametrize("full_name", [name for name in ALL if name not in SLOW])
def test_each_is_judge_safe_or_stands_in_the_table(full_name):
    if full_name in NOT_SAFE:
        with pytest.raises((Failure, UsageError), match=NOT_SAFE[full_name]):
            check(full_name, every_norm=False)
    else:
        assert len(check(full_name, every_norm=False)) >= 2 + 5


@pytest.mark.slow
@pytest.mark.parametrize("full_name", ALL)
def test_each_is_judge_safe_in_every_norm(full_name):
    if full_name not in NOT_SAFE:
        check(full_name, every_norm=True)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_pyautoattack_is_judge_safe(version):
    for norm in ("linf", "l2", "l1") if version == "standard" else ("linf",):
        check_attack(make_attack(f"pyautoattack/{version}"), level="judge-safe", norms=[norm])


def test_the_tables_are_the_libraries_and_large_enough():
    for source, base in (("torchattacks", "attack"), ("foolbox", "attacks")):
        library = importlib.import_module(source)
        held = library if source == "torchattacks" else getattr(library, base)
        classes = {f"{source}/{c.__name__}" for _, c in inspect.getmembers(held, inspect.isclass)}
        assert classes == set(named(source)) | {name for name in UNUSABLE if name.startswith(source)}
        assert set(SOURCES[source].UNUSABLE) == {n.split("/")[1] for n in UNUSABLE if n.startswith(source)}
        in_cards = {f"{source}/{name}" for name in SOURCES[source].UNSAFE}
        assert in_cards == {name for name in LEAVES if name.startswith(source)}
    safe = [name for name in ALL if name not in {**LEAVES, **NUMBA}]
    assert sum(name.startswith("torchattacks/") for name in safe) == 37 >= 34
    assert sum(name.startswith("foolbox/") for name in safe) == 50 >= 50
    assert set(named("pyautoattack")) == {"pyautoattack/standard", "pyautoattack/plus", "pyautoattack/rand"}
    for name in UNUSABLE:
        with pytest.raises(UsageError, match="cannot be used here"):
            make_attack(name)


def test_what_the_judge_safe_level_refuses():
    """The level fails for what it promises: a planted image outside the ball, a use of the global generator."""

    class Far(torchattacks_source.TorchAttack):
        def __call__(self, case):
            return (case.x + 1.01 * case.threat.eps).clamp(0, 1)

    class Random(torchattacks_source.TorchAttack):
        def __call__(self, case):
            return super().__call__(case) + 0 * torch.rand(1) * np.random.rand()

    class Uncounted(torchattacks_source.TorchAttack):
        def __call__(self, case):
            x = case.x.clone().requires_grad_()
            case.oracle.module(x).gather(1, case.y[:, None]).sum().backward()
            return case.threat.project(case.x, case.x - case.threat.eps * x.grad.sign())

    class Fresh(torchattacks_source.TorchAttack):
        def __call__(self, case):
            noise = torch.rand(
                case.x.shape, generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(40))
            )
            return case.threat.project(case.x, case.x + case.threat.eps * noise)

    for wrong, why in ((Far, "outside the ball"), (Random, "left torch's generator"), (Uncounted, "no forward pass"),
                       (Fresh, "second run with the same seed")):  # fmt: skip
        with pytest.raises(Failure, match=why):
            check_attack(wrong("FGSM"), level="judge-safe")


def test_it_reports_what_it_does_not_require():
    found = check_attack(make_attack("torchattacks/PGD"), level="judge-safe")
    assert "linf: reported: another result for a sample in another batch" in found
    same = check_attack(make_attack("torchattacks/BIM"), level="judge-safe")
    assert "linf: reported: the same result for a sample in another batch" in same
    assert any(line.startswith("linf: reported: broke 8") for line in same)


# --- the judge -------------------------------------------------------------------------------------------------------


def test_a_planted_attack_that_leaves_its_budget_is_caught(monkeypatch):
    import torchattacks

    honest = robustkit.evaluate("digits-cnn", "digits", "torchattacks/FGSM", eps=0.05, n=60)
    assert honest.counts["UNKNOWN"] == 0
    assert honest.counts["BROKEN"] > 0

    def too_far(self, images, labels):
        return (images + 1.001 * self.eps).clamp(0, 1)

    monkeypatch.setattr(torchattacks.FGSM, "forward", too_far)
    caught = robustkit.evaluate("digits-cnn", "digits", "torchattacks/FGSM", eps=0.05, n=60)
    assert caught.counts["BROKEN"] == 0
    assert caught.counts["UNKNOWN"] == 60 - caught.counts["WRONG"]
    assert caught.robust_accuracy is None


def test_a_real_attack_that_leaves_its_budget_is_caught():
    p = _small_network("linf", n=40)
    found = attack_batch(make_attack("foolbox/LinfAdditiveUniformNoiseAttack"), p.module, p.x, p.y, p.threat)
    assert "an image outside the ball" in found.judge.reasons
    assert not found.broken[found.judge.reasons["an image outside the ball"]].any()
    assert bool((p.threat.distance(p.x, found.verdicts.adv) <= p.threat.limit).all())  # what is kept is inside


def test_a_crash_of_a_library_is_a_violation_not_robustness():
    record = robustkit.evaluate("digits-cnn", "digits", "torchattacks/EADL1:max_iterations=5", norm="l1", eps=1, n=20)
    assert record.counts["UNKNOWN"] == 20 - record.counts["WRONG"]


# --- the defects that the cards name ---------------------------------------------------------------------------------


class Shifted(nn.Module):
    """The same decisions: every logit moved by one constant."""

    def __init__(self, base: nn.Module, by: float) -> None:
        super().__init__()
        self.base, self.by = base, by

    def forward(self, x):
        return self.base(x) + self.by


def test_shifted_logits_blind_the_library_s_cw_and_not_ours():
    p = _small_network("l2", n=24)
    wide = ThreatModel("l2", 2.0)
    low = Shifted(p.module, -50.0)
    assert torch.equal(low(p.x).argmax(1), p.y)

    def share(spec: str, module: nn.Module) -> float:
        return float(attack_batch(make_attack(spec), module, p.x, p.y, wide).broken.double().mean())

    theirs = "torchattacks/CW:c=10,steps=100"
    ours = "cw:steps=60,searches=4,c=1,lr=0.02"
    assert share(theirs, p.module) == 1.0
    assert share(theirs, low) == 0.0
    assert share(ours, p.module) == share(ours, low) == 1.0
    card = cards.attack("torchattacks/CW")
    assert card.index("shifted by −50") < card.index("Settings")


def test_the_library_s_autoattack_takes_a_tenth_of_the_steps(monkeypatch):
    """Nothing can be broken at this eps, so every attack runs to its end: compare the gradients, without Square."""
    monkeypatch.setattr("torchattacks.Square.forward", lambda self, images, labels: images)
    monkeypatch.setattr("pyautoattack.square.SquareAttack.perturb", lambda self, x, y: x)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).requires_grad_(False)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y, tiny = module(x).argmax(1), ThreatModel("linf", 1e-7)
    runs = {
        spec: attack_batch(make_attack(spec), module, x, y, tiny, tile=1)
        for spec in ("torchattacks/AutoAttack", "pyautoattack/standard")
    }
    assert not any(run.broken.any() for run in runs.values())
    theirs, authors = (int(run.backwards.max()) for run in runs.values())
    members = make_attack("autoattack").attacks(tiny, ModelFacts(10, False, True, 0, ()))
    gradient = [m for m in members if m.access == "white-box"]
    ours = sum(int(attack_batch(m, module, x, y, tiny, tile=1).backwards.max()) for m in gradient)
    assert theirs < 400
    assert authors > 8 * theirs
    assert ours > 5 * theirs
    card = cards.attack("torchattacks/AutoAttack")
    assert card.index("10 steps, not 100") < card.index("Settings")


def test_the_library_s_deepfool_rests_on_the_boundary():
    p = _small_network("l2")
    wide = ThreatModel("l2", 2.0)
    resting, crossing = (
        attack_batch(make_attack(spec), p.module, p.x, p.y, wide, tile=12)
        for spec in ("torchattacks/DeepFool:steps=20", "foolbox/L2DeepFoolAttack")
    )
    assert crossing.broken.all()
    assert float(resting.broken.double().mean()) < 0.7
    assert float(resting.verdicts.margin.abs().max()) < 1e-5
    assert "boundary itself" in cards.attack("torchattacks/DeepFool")


def test_pyautoattack_crashes_with_three_classes_and_the_card_says_so():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).requires_grad_(False)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(IndexError):
        attack_batch(make_attack("pyautoattack/standard"), module, x, module(x).argmax(1), ThreatModel("linf", 1e-5))
    assert "fewer than 4 classes" in cards.attack("pyautoattack/standard")


# --- against our own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["foolbox/LinfPGD:rel_stepsize=0.1", "torchattacks/PGD:alpha=0.01,steps=20"])
def test_on_a_linear_model_both_break_exactly_what_can_be_broken(theirs):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(2, 3 * 8 * 8, generator=generator) / 10
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).requires_grad_(False)
    module[1].weight.copy_(weight)
    module[1].bias.zero_()
    x = 0.3 + 0.4 * torch.rand(300, 3, 8, 8, generator=generator)
    logits = module(x)
    y = logits.argmax(1)
    reach = (logits.amax(1) - logits.amin(1)) / (weight[0] - weight[1]).abs().sum()  # the box is out of reach
    eps = float(reach.median())
    clear = (reach - eps).abs() > 1e-3 * eps
    for spec in (theirs, "pgd:steps=20"):
        found = attack_batch(make_attack(spec), module, x, y, ThreatModel("linf", eps))
        assert torch.equal(found.broken[clear], (reach < eps)[clear])
    assert int(clear.sum()) > 290


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", ["torchattacks/PGD:steps=5", "foolbox/LinfPGD:steps=5", "torchattacks/Square:n_queries=20"]
)
def test_a_run_repeats_at_any_batch_size_and_leaves_the_generators_alone(attack):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    network = robustkit.load_model("digits-cnn")[0]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    runs = [
        robustkit.evaluate(network, "digits", attack, eps=0.1, n=150, batch_size=size, tile=32) for size in (32, 150)
    ]
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()
    assert state[2] == random.getstate()
    assert runs[0].counts == runs[1].counts
    for name in ("outcome", "distance", "margin", "forwards", "backwards"):
        a, b = (np.asarray(run.attacks[name]) for run in runs)
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    other = robustkit.evaluate("digits-cnn", "digits", attack, eps=0.1, n=150, tile=32, seed=1)
    assert not np.array_equal(np.asarray(other.attacks["margin"]), np.asarray(runs[0].attacks["margin"]))


def test_passes_are_counted_and_eot_multiplies_them():
    p = _small_network("linf")
    once = attack_batch(make_attack("torchattacks/PGD:steps=7"), p.module, p.x, p.y, p.threat)
    assert once.forwards.tolist() == [7] * 12
    assert once.backwards.tolist() == [7] * 12
    three = make_attack("torchattacks/PGD:eot=3,steps=7")
    assert name_of(three) == "torchattacks/PGD:steps=7,eot=3"
    found = attack_batch(three, p.module, p.x, p.y, p.threat)
    assert found.forwards.tolist() == found.backwards.tolist() == [21] * 12
    one_by_one = attack_batch(make_attack("torchattacks/DeepFool:steps=1"), p.module, p.x, p.y, p.threat)
    assert one_by_one.forwards.tolist() == [1] * 12
    assert one_by_one.backwards.tolist() == [10] * 12  # a row of the Jacobian each


def test_the_counted_module_shares_uneven_calls_and_hides_the_network():
    p = _small_network("linf")
    counts = Counts(12, torch.device("cpu"))
    network = Network(p.module, 8, torch.device("cpu"))
    module = ModelOracle(network, counts, torch.tensor([2, 5, 7]), 10).counted_module()
    assert torch.equal(module(p.x[:5]), network.logits(p.x[:5]))
    assert counts.forwards[[2, 5, 7]].tolist() == [2, 2, 1]
    module(p.x[:1])
    assert counts.forwards[[2, 5, 7]].tolist() == [2, 2, 2]
    assert int(counts.forwards.sum()) == 6
    x = p.x[:3].clone().requires_grad_()
    logits = module(x)
    for k in range(4):
        torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
    assert counts.backwards[[2, 5, 7]].tolist() == [4, 4, 4]
    module.train()
    assert not p.module.training
    assert len(list(module.parameters())) == 1
    before = network.logits(p.x)
    for parameter in module.parameters():
        parameter.data.fill_(7.0)
    module(p.x).zero_()
    assert torch.equal(network.logits(p.x), before)


def test_a_targeted_run_reaches_targets_or_is_refused():
    p = _small_network("linf")
    target = (p.y + 1) % 10
    wide = ThreatModel("linf", 0.3)
    for spec in ("torchattacks/PGD:alpha=0.03,steps=20", "foolbox/LinfPGD", "foolbox/GenAttack:steps=5"):
        found = attack_batch(make_attack(spec), p.module, p.x, p.y, wide, target=target)
        reached = p.module(found.verdicts.adv).argmax(1) == target
        assert torch.equal(found.broken, reached)
        assert "GenAttack" in spec or reached.all()
    for spec in ("torchattacks/DeepFool", "foolbox/NewtonFoolAttack", "pyautoattack/standard"):
        with pytest.raises(UsageError, match="no targeted form"):
            robustkit.evaluate("digits-cnn", "digits", spec, norm="l2", eps=0.1, n=4, target=3)
    with pytest.raises(UsageError, match="no untargeted form"):
        robustkit.evaluate("digits-cnn", "digits", "foolbox/GenAttack", eps=0.1, n=4)


@pytest.mark.filterwarnings("ignore:LinearSearchBlended")
def test_one_image_without_a_starting_point_does_not_stop_the_others():
    """The first image keeps its class whatever is done to it; the library's own call gives up on all for that."""
    import foolbox

    p = _small_network("l2")

    rare = (p.y.mode().values + 1) % 10

    class Stubborn(nn.Module):
        def forward(self, x):
            fixed = 100 * nn.functional.one_hot(rare, 10).float()
            marked = (x[:, 0, 0, 0] == x[:, 0, 0, 1])[:, None]
            return torch.where(marked, p.module(x), fixed)

    module = Stubborn()
    x = p.x.clone()
    x[:, 0, 0, :2] = 0.0
    x[0, 0, 0, 1] = 0.9
    y = module(x).argmax(1)
    theirs = foolbox.PyTorchModel(module.eval(), bounds=(0, 1), device="cpu")
    with pytest.raises(ValueError, match="init_attack failed"):
        foolbox.attacks.BoundaryAttack(steps=1)(theirs, x, y, epsilons=None)
    found = attack_batch(make_attack("foolbox/BoundaryAttack:steps=20"), module, x, y, ThreatModel("l2", 100))
    assert not found.judge.reasons
    assert torch.equal(found.broken, y != rare)
    assert int(found.broken.sum()) > 5
