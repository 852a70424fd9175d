"""The adaptive suite: what it builds of what it knows, that it breaks what hides, and that it costs what it says."""

import pytest
import torch
from click.testing import CliRunner
from robustkit_attacks.adaptive import PARTS, Adaptive
from robustkit_attacks.autoattack import AutoAttack
from robustkit_attacks.nes import NES
from torch import nn

from benchmarks import kit
from robustkit import evaluate, events
from robustkit.api import Expected, ModelFacts, ThreatModel
from robustkit.cli import main
from robustkit.engine.plan import make_attack, name_of, resolve_attacks
from robustkit.errors import UsageError
from robustkit.models.examination import examine
from robustkit.testing import attack_batch
from tests import needs, toys

THREAT = ThreatModel("linf", 0.1)
PLAIN = ModelFacts(5, False, True, 0, ())


def linear(seed=1, classes=3, size=48):
    layer = nn.Linear(size, classes)
    layer.weight.data = torch.randn(classes, size, generator=toys.seeded(seed))
    layer.bias.data = -0.5 * layer.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), layer).eval()


def images(n=40):
    return 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=toys.seeded(0))


def names(facts, suite=None, norm="linf"):
    return [name for name, *_ in resolve_attacks(suite or Adaptive(), ThreatModel(norm, 0.1), facts)]


def small_net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))
    return net


def trained(seed, x, y):
    """A small network that gets the images right."""
    net = small_net(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def crossmax():
    x = images(60)
    y = linear()(x).argmax(1)
    return toys.CrossMaxMedian([trained(seed, x, y) for seed in range(8)]).eval(), x, y


class Members(nn.Module):
    """Hides its stand-ins, and offers its members instead."""

    def __init__(self, ensemble):
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x):
        return self.ensemble(x)

    def members(self):
        return list(self.ensemble.models)


def test_autoattack_is_in_it_whole():
    whole = [name for name, *_ in resolve_attacks(AutoAttack(), THREAT, PLAIN)]
    found = names(PLAIN)
    assert set(whole) <= set(found)
    assert set(found) - set(whole) == {"pgd:steps=500,restarts=5,loss=margin"}
    assert found[-1] == "square"


def test_what_the_model_declares_and_what_is_seen_of_it_decides():
    stands = names(PLAIN._replace(surrogates=("mean", "early probes")))
    assert "surrogate-swap:only=mean" in stands
    assert "surrogate-swap:only=early probes" in stands
    ensemble = names(PLAIN._replace(members=3))
    assert [name for name in ensemble if "of=members" in name] == [
        f"surrogate-swap:only={only},of=members,most=3" for only in ("mean", "0", "1", "2")
    ]
    assert any(name.startswith("mora") for name in ensemble)
    assert not any(name.startswith("mora") for name in names(PLAIN._replace(members=3), norm="l1"))
    for faults in ({"zero_gradient": 0.1}, {"misleading_gradient": 0.5}):
        masked = names(PLAIN._replace(**faults))
        assert {"apgd:loss=ce-float64", "apgd:loss=ce-rescaled", "apgd:loss=margin", "apgd:loss=dlr", "nes"} <= {
            *masked
        }
    assert "nes" not in names(PLAIN._replace(misleading_gradient=0.05))
    blind = names(PLAIN._replace(differentiable=False))
    assert blind == ["nes", "square"]
    assert names(PLAIN._replace(differentiable=False, surrogates=("soft",)))[0] == "surrogate-swap:only=soft"
    noisy = names(PLAIN._replace(randomised=True, surrogates=("mean",), members=2))
    assert all("eot=20" in name for name in noisy if name != "square")
    assert not any("fab" in name for name in noisy)


def test_what_hides_its_gradients_is_first_attacked_through_its_stand_ins_and_each_of_them_once():
    declared = PLAIN._replace(members=2, surrogates=("mean-logits", "early", "member-1", "member-2"))
    found = names(declared)
    assert found[:4] == [f"surrogate-swap:only={only}" for only in declared.surrogates]
    assert not any("of=members" in name for name in found)
    assert found[4] == "apgd"
    alone = names(declared, Adaptive(only=("members",)))
    assert [name.split("only=")[1].split(",")[0] for name in alone] == ["mean", "0", "1"]
    assert names(declared._replace(surrogates=("mean-logits",)))[1] == "surrogate-swap:only=0,of=members,most=2"
    assert names(PLAIN._replace(members=2))[0] == "apgd"  # honest gradients and nothing declared: the usual order
    assert names(PLAIN._replace(members=2, misleading_gradient=0.5))[0].startswith("surrogate-swap:only=mean,of=")
    assert set(found) >= {name for name, *_ in resolve_attacks(AutoAttack(), THREAT, declared)}


@pytest.mark.parametrize("budget", ["quick", "standard", "thorough"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_attack_of_it_has_a_name_that_makes_it_again(budget, norm):
    facts = PLAIN._replace(members=2, surrogates=("a+b", "mean"), zero_gradient=0.5)
    for seen in (facts, facts._replace(randomised=True), facts._replace(differentiable=False)):
        for name, attack, _ in resolve_attacks(Adaptive(budget), ThreatModel(norm, 0.1), seen):
            inner = attack.attack if isinstance(attack, Expected) else attack
            assert norm in inner.norms
            assert make_attack(name) == attack
            assert name_of(attack) == name


def test_parts_can_be_chosen():
    everything = PLAIN._replace(members=2, surrogates=("mean",), zero_gradient=1.0, views=("rewritten",), rejects=True)
    whole = names(everything)
    chosen = [names(everything, Adaptive(only=(part,))) for part in PARTS]
    assert sorted(name for part in chosen for name in part) == sorted(whole)
    assert names(everything, "adaptive:only=mora+query") == [n for n in whole if n[:4] in ("mora", "nes", "squa")]
    with pytest.raises(UsageError, match="no part called 'moar'; did you mean mora"):
        Adaptive(only=("moar",))
    with pytest.raises(UsageError, match="nothing in only=mora applies"):
        names(PLAIN, Adaptive(only=("mora",)))
    with pytest.raises(UsageError, match="adaptive has no l0 form"):
        Adaptive().attacks(ThreatModel("l0", 5), PLAIN)


class Quantised(nn.Module):
    """Logits in steps: the gradient is zero everywhere."""

    def __init__(self, inner, steps=4):
        super().__init__()
        self.inner, self.steps = inner, steps

    def forward(self, x):
        return (self.inner(x) * self.steps).round() / self.steps


class Lies(nn.Module):
    """A straight-through pass with the wrong sign behind it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        z = self.inner(x)
        return z.detach() - (z - z.detach())


class Reversed(nn.Module):
    """As `Lies`, with the gradient of other weights: neither zero nor simply turned round."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.other = inner, linear(9)

    def forward(self, x):
        z = self.other(x)
        return self.inner(x.detach()).detach() + z - z.detach()


MASKED = {
    "steps": lambda: Quantised(linear()),
    "huge logits": lambda: toys.Wrapped(linear(), scale=1e4),
    "turned round": lambda: Lies(linear()),
    "of other weights": lambda: Reversed(linear()),
    "detached": lambda: toys.Detached(linear()),
}


@pytest.mark.parametrize("how", MASKED)
def test_masked_gradients_are_seen_and_do_not_save_a_model(how):
    module, x = MASKED[how](), images()
    y = linear()(x).argmax(1)
    bare = evaluate(linear(), (x, y), "pgd:steps=40,loss=margin", eps=0.06, doctor=False)
    weak = evaluate(
        module, (x, y), "square:queries=1" if how in ("detached", "steps") else "pgd:steps=40", eps=0.06, doctor=False
    )
    found = evaluate(module, (x, y), "adaptive:budget=quick", eps=0.06, doctor=False)
    assert float(weak.robust_accuracy) > float(bare.robust_accuracy) + 0.2
    assert float(found.robust_accuracy) <= float(bare.robust_accuracy) + 0.05
    assert any(name.startswith("nes") for name in found.job["attacks"])


def seen(module, x, y):
    return examine(module.eval(), x, y, classes=None, outputs="logits", tile=None, seed=0, device=x.device).facts


def test_what_is_seen_of_gradients():
    x = images()
    y = linear()(x).argmax(1)
    honest = [linear(), toys.Linear((3, 4, 4)), trained(0, x, y), toys.SharedBackbone((3, 4, 4)),
              toys.Randomised(linear(), 0.02)]  # fmt: skip
    for module in honest:
        facts = seen(module, x, module(x).argmax(1))
        assert (facts.zero_gradient, facts.misleading_gradient) == (0, 0)
    assert not seen(Quantised(linear()), x, y).differentiable
    assert seen(toys.Wrapped(linear(), scale=1e4), x, y).zero_gradient > 0.9
    assert seen(Lies(linear()), x, y).misleading_gradient == 1
    assert seen(Reversed(linear()), x, y).misleading_gradient > 0.1
    assert not seen(toys.Detached(linear()), x, y).differentiable


def test_crossmax_looks_robust_to_a_direct_attack_and_is_not(crossmax):
    module, x, y = crossmax
    direct, stand_in, found = (
        evaluate(module, (x, y), attack, eps=0.06, doctor=False)
        for attack in ("pgd:steps=100", "surrogate-swap:steps=60,direct=0", "adaptive:budget=quick")
    )
    assert float(direct.robust_accuracy) > 0.5
    assert float(stand_in.robust_accuracy) < 0.05
    assert float(found.robust_accuracy) < 0.05


@pytest.mark.parametrize("only", ["mean", "0", ""])
def test_members_serve_where_no_stand_in_is_declared(crossmax, only):
    module, x, y = Members(crossmax[0]), *crossmax[1:]
    swap = f"surrogate-swap:of=members,steps=40,direct=10{',only=' + only if only else ''}"
    direct, found = (evaluate(module, (x, y), a, eps=0.06, n=30, doctor=False) for a in ("pgd:steps=40", swap))
    assert float(found.robust_accuracy) < float(direct.robust_accuracy) - 0.3
    forwards, backwards = make_attack(swap + ",most=8").cost(3)
    assert found.attacks["forwards"].max() <= forwards
    assert found.attacks["backwards"].max() <= backwards
    with pytest.raises(UsageError, match="stand-in among this model's members"):
        evaluate(module, (x, y), "surrogate-swap:of=members,only=men", eps=0.06, doctor=False)


def test_the_mean_of_members_has_the_gradient_of_their_mean_logits(crossmax):
    from robustkit_attacks.mean_of_members import MeanOfMembers

    from robustkit.models.oracle import Counts, ModelOracle, Network

    ensemble, x, y = crossmax
    shared = toys.SharedBackbone((3, 4, 4))
    for module, joint in ((Members(ensemble), False), (shared, True)):
        rows = torch.arange(5)
        oracle = ModelOracle(Network(module.eval(), 8, x.device), Counts(5, x.device), rows, 5)
        mean = MeanOfMembers.of(oracle, x[:5])
        assert mean.joint is joint
        leaf = x[:5].clone().requires_grad_(True)
        logits = torch.stack([member(leaf) for member in module.members()]).mean(0)
        wanted = nn.functional.cross_entropy(logits, y[:5], reduction="none")
        grad = torch.autograd.grad(wanted.sum(), leaf)[0]
        found = mean.gradient(x[:5], lambda o: nn.functional.cross_entropy(o.logits, y[:5], reduction="none"))
        torch.testing.assert_close(found.grad, grad)
        torch.testing.assert_close(found.loss, wanted.detach())
        torch.testing.assert_close(found.outputs.logits, logits.detach())
        torch.testing.assert_close(mean.select(rows[2:4]).outputs(x[2:4]).logits, logits[2:4].detach())


class Blind(nn.Module):
    """An ensemble whose members decide hard: no gradient in any of them."""

    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList(toys.HardLabels(linear(seed)) for seed in (1, 1, 2))

    def forward(self, x):
        return torch.stack([model(x) for model in self.models]).sum(0)

    def members(self):
        return list(self.models)


def test_members_without_gradients_leave_no_sample_undecided():
    x = images(20)
    record = evaluate(Blind(), (x, linear()(x).argmax(1)), "adaptive:budget=quick", eps=0.06, doctor=False)
    assert record.counts["UNKNOWN"] == 0
    assert record.robust_accuracy is not None


def test_it_is_never_weaker_than_autoattack_on_an_ordinary_model():
    x = images(24)
    y = linear()(x).argmax(1)
    model, options = trained(0, x, y), {"eps": 0.03, "doctor": False}
    ours = evaluate(model, (x, y), "adaptive:only=autoattack+query", **options)
    whole = evaluate(model, (x, y), "autoattack", **options)
    stands = set(whole.samples["index"][whole.samples["status"] == "ROBUST"].tolist())
    assert set(ours.samples["index"][ours.samples["status"] == "ROBUST"].tolist()) <= stands
    assert 4 < whole.counts["ROBUST"] < 20


def test_a_randomised_model_meets_eot_and_its_stand_ins():
    x = images(24)
    y = linear()(x).argmax(1)

    class Noisy(Members):
        def forward(self, x):
            z = self.ensemble(x)
            return z + 0.05 * torch.randn_like(z)

        def surrogates(self):
            return self.ensemble.surrogates()

    ensemble = toys.CrossMaxMedian([trained(seed, x, y) for seed in range(4)]).eval()
    record = evaluate(Noisy(ensemble), (x, y), "adaptive:budget=quick,only=surrogates", eps=0.06, doctor=False)
    assert record.job["attacks"] == ["surrogate-swap:only=mean,steps=100,direct=50,eot=5"]
    assert float(record.robust_accuracy) < 0.2
    assert float(record.worst_case_accuracy) <= float(record.robust_accuracy)


def test_nes_needs_scores_only():
    x = images()
    y = linear()(x).argmax(1)
    done = attack_batch(NES(steps=30), toys.Detached(linear()), x, y, ThreatModel("linf", 0.06))
    assert done.broken.double().mean() > 0.9
    assert done.backwards.sum() == 0
    with pytest.raises(UsageError, match="nes"):
        NES(pairs=0)


def test_the_cost_is_told_before_it_starts_and_stands_in_the_record(tmp_path):
    told = []
    attack = "(apgd:steps=30)+(square:queries=400)"
    record = evaluate("digits-cnn", "digits", attack, eps=0.01, n=320, out=tmp_path / "run", on_event=told.append,
                      doctor=False)  # fmt: skip
    kinds = [type(event) for event in told]
    assert kinds.index(events.Predicted) < kinds.index(events.CleanDone)
    predicted = told[kinds.index(events.Predicted)]
    assert (predicted.forwards, predicted.backwards) == (320 * (31 + 401), 320 * 31)
    assert record.to_json()["predicted"]["forwards"] == predicted.forwards
    paid = sum(row.forwards for row in record.by_attack)
    assert predicted.forwards / 2 < paid <= predicted.forwards  # nearly all stand at so small an eps
    spent = sum(record.seconds.values())
    print(f"predicted {predicted.seconds:.2f} s, spent {spent:.2f} s")
    assert 1 / 3 < predicted.seconds / spent < 3  # time on a busy machine is a rough thing


def test_the_command_line_tells_the_cost(tmp_path):
    arguments = ["eval", "--model", "digits-cnn", "--attack", "fgsm", "--eps", "0.05", "-n", "40", "--no-doctor"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "less than 1 s (if nothing breaks: 40 forwards, 40 backwards)" in " ".join(done.stderr.split())


@pytest.mark.slow
@needs.kit
def test_the_kits_crossmax_falls():
    """Linf 2/255, the first 100 test images: the kit says about 66 % directly and 9 % by the mean of the logits."""
    networks = [kit.model(f"cifar10_resnet{depth}_std") for depth in (20, 32, 44, 56)]
    module, (x, y) = toys.CrossMaxMedian(networks).eval(), kit.cifar10(range(100))
    direct = evaluate(module, (x, y), "apgd:steps=30", eps="2/255", doctor=False)
    print(direct.summary(), flush=True)
    found = evaluate(module, (x, y), "adaptive:budget=quick", eps="2/255", doctor=False)
    print(found.summary(), found.predicted, flush=True)
    assert 0.55 < float(direct.robust_accuracy) < 0.75
    assert float(found.robust_accuracy) < 0.1
