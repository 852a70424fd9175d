"""Every device, pretended: each attack in each norm, and each command, give the CPU's numbers and hardly ever wait.

What the matrix is worth is shown by faults: each kind is put into an attack once, and must be caught.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from robustkit_attacks import losses
from robustkit_attacks.apgd import APGD
from robustkit_attacks.pgd import PGD

from robustkit import plugins
from robustkit.api import NORMS, Attack
from robustkit.engine.plan import make_attack
from robustkit.models.ensembles import Ensemble
from robustkit.testing import Failure, attack_batch, check_attack, pretended
from robustkit.testing.conformance import _small_network

STEPS = 12
# At the steps of `parts.checkpoint`, and at the start and the end of a run.
RUN = 1 + sum(step in (1, 2, 4, 7, 10) for step in range(1, STEPS)) + 1
NEVER, EACH_STEP = 0, STEPS
# How an attack is called here, and in how many intervals between two calls of the model it may ask its device.
SETTINGS = {
    "pgd": (f"pgd:steps={STEPS},restarts=2", 2 * RUN),
    "apgd": (f"apgd:steps={STEPS}", RUN),
    "multi-targeted": (f"multi-targeted:steps={STEPS},targets=2", 2 * RUN),
    "cw": (f"cw:steps={2 * STEPS},searches=2,minimise=false", 2 * 10 + 2),
    "fab": (f"fab:steps={STEPS},targets=2,minimise=false", 2 * RUN),
    "square": ("square:queries=70", 10 + 4),
    "accepted": (f"accepted:steps={STEPS},restarts=2", 2 * RUN),
    # Of each trial: who wants it, at checkpoints, and who is left; a rung of 3 steps, one of 6, and the last.
    "search": (f"search:steps=3,most=2,rounds=1,long={STEPS}", 2 * (4 + 5 + RUN)),
    "mora": (f"mora:steps={STEPS},mixes=0.5,targets=1", 2 * RUN),
    "surrogate-swap": (f"surrogate-swap:steps={STEPS}", RUN),
    "descent": (f"descent:steps={STEPS},loss=margin-targeted,start=random,targets=2", RUN),
    "fab-walk": (f"fab-walk:steps={STEPS},block=8,again=false", 2 * (RUN + 8)),
    "square-walk": ("square-walk:queries=40,block=8", 4 * (10 + 4)),
    "nes": ("nes:steps=4,pairs=3", 5),
    "fgsm": ("fgsm", NEVER),
    "vmi": ("vmi:steps=3,gradient=(vmi:samples=2)", NEVER),
    "pgn": ("pgn:steps=3,gradient=(pgn:samples=2)", NEVER),
    "admix": ("admix:steps=3,input=(admix:mixes=2,scales=2)", NEVER),
    "ssa": ("ssa:steps=3,input=(ssa:copies=2)", NEVER),
    "sia": ("sia:steps=3,input=(sia:copies=2)", NEVER),
    "bsr": ("bsr:steps=3,input=(bsr:copies=2,blocks=2,angle=6)", NEVER),
    "vmi-cwa": ("vmi-cwa:steps=3,neighbours=2", NEVER),
    "ssa-cwa": ("ssa-cwa:steps=3,input=(ssa:copies=2)", NEVER),
}
TRANSFER = "{}:steps=3"


def matrix():
    """Every attack in each of its norms; in one of them, in turn, also among the quick tests."""
    for turn, name in enumerate(plugins.table("attacks")):
        attack = make_attack(SETTINGS.get(name, [name])[0])
        norms = [norm for norm in NORMS if isinstance(attack, Attack) and norm in attack.norms]
        for place, norm in enumerate(norms):
            yield pytest.param(name, norm, marks=[] if place == turn % len(norms) else pytest.mark.slow)


@cache
def problem(norm, members=0):
    """A small network, or an ensemble of it and others, and images of which some break on the way."""
    found = _small_network(norm)
    if not members:
        return found
    each = [found.module]
    for seed in range(1, members):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            each.append(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10)).eval())
    return found._replace(module=Ensemble(each).requires_grad_(False))


def attacked(attack, norm, device="cpu", members=0):
    """The result on a device, back on the CPU, and the waits in each interval between two calls of the model."""
    found = problem(norm, members)
    if device == "cpu":
        return attack_batch(attack, *found, tile=8), []
    with pretended(device) as log:
        there = found._replace(module=copy.deepcopy(found.module)).to(torch.device(device))
        at = []
        done = attack_batch(attack, *there, tile=8, on_call=lambda: at.append(log.waited))
        verdicts = replace(done.verdicts, **{k: getattr(done.verdicts, k).cpu() for k in done.verdicts.__slots__})
        counts = (done.forwards.cpu(), done.backwards.cpu())
        assert not done.judge.reasons
    done = done._replace(verdicts=verdicts, forwards=counts[0], backwards=counts[1])
    return done, [after - before for before, after in pairwise(at)]


@cache
def on_the_cpu(attack, norm, members=0):
    return attacked(attack, norm, members=members)[0]


def check(attack, norm, device, busy, members=0):
    """The attack on a device against the CPU's numbers, and against how often it may wait."""
    here, (there, waits) = on_the_cpu(attack, norm, members), attacked(attack, norm, device, members)
    assert torch.equal(here.verdicts.outcome, there.verdicts.outcome)
    if device == "mps" or norm == "l1":  # float32 in place of float64; another order of sums in the projection
        near = (here.verdicts.adv - there.verdicts.adv).abs().flatten(1).amax(1) < 1e-3
        assert int(near.sum()) >= len(near) - 1
    else:
        for name in ("adv", "distance", "margin", "decision"):
            one, other = (getattr(each.verdicts, name) for each in (here, there))
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
        assert torch.equal(here.forwards, there.forwards)
        assert torch.equal(here.backwards, there.backwards)
    most = 2 + (device == "mps")  # the distances, which are measured on the CPU
    assert max(waits, default=0) <= most, waits
    assert sum(map(bool, waits)) <= busy, waits


@pytest.mark.parametrize("device", ["cuda", "mps", pytest.param("xpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "norm"), list(matrix()))
def test_an_attack_gives_the_cpu_s_numbers_and_asks_at_declared_steps_only(name, norm, device):
    spec, busy = SETTINGS.get(name, (TRANSFER.format(name), NEVER))
    check(make_attack(spec), norm, device, busy)


@pytest.mark.parametrize("device", ["cuda", "mps", pytest.param("xpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("spec", "busy"),
    [
        ("svre:steps=2", 2), ("smer:steps=2", 2), ("adaea:steps=2", NEVER), ("mi-cwa:steps=2", NEVER),
        (f"surrogate-swap:steps={STEPS},of=members,only=mean", RUN + 1),
        (f"mora:steps={STEPS},mixes=0.5,targets=1", 2 * RUN),
    ],
)  # fmt: skip
def test_an_attack_on_an_ensemble_does_too(spec, busy, device):
    """SVRE and SMER must know, once a step, how many samples visit which member."""
    check(make_attack(spec), "linf", device, busy, members=2)


@pytest.mark.parametrize("loss", ["margin", "dlr", "dlr-targeted", "ce-rescaled", "ce-float64"])
def test_every_loss_runs_without_float64(loss):
    check(APGD(loss=loss, steps=STEPS, targets=2), "linf", "mps", 2 * RUN)


# One fault of each kind, put into PGD and caught by the same check.


@dataclass(frozen=True, slots=True)
class Faulty:
    """PGD in Linf with a fault."""

    fault: str = ""

    norms: ClassVar = frozenset({"linf"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"

    def cost(self, classes):
        return STEPS, STEPS

    def __call__(self, case):
        adv = case.x
        for _ in range(STEPS):
            _, value, grad = case.oracle.gradient(adv, losses.make("ce", case.y, case.target))
            step = case.threat.eps / 8 * grad.sign()
            if self.fault == "an index of the CPU":
                step = step.gather(0, torch.arange(len(step)).view(-1, 1, 1, 1).expand_as(step))
            elif self.fault == "numpy":
                step = torch.from_numpy(step.numpy())
            elif self.fault == "float64":
                step = (step.double() / 1).float()
            elif self.fault == "a wait in a step" and value.max() > 1e9:
                break
            adv = case.threat.project(case.x, adv + step)
        return adv


def test_the_attack_without_a_fault_passes():
    for device in ("cuda", "mps", "xpu"):
        check(Faulty(), "linf", device, NEVER)


@pytest.mark.parametrize(
    ("fault", "device", "error", "says"),
    [
        ("an index of the CPU", "cuda", RuntimeError, "found at least two devices, cuda:0 and cpu"),
        ("an index of the CPU", "xpu", RuntimeError, "found at least two devices, xpu:0 and cpu"),
        ("numpy", "cuda", TypeError, "can't convert cuda:0 device type tensor to numpy"),
        ("float64", "mps", TypeError, "doesn't support float64"),
        ("a wait in a step", "cuda", AssertionError, r"\[1, 1, 1"),
    ],
)
def test_a_fault_of_each_kind_is_caught(fault, device, error, says):
    with pytest.raises(error, match=says):
        check(Faulty(fault), "linf", device, NEVER)


@pytest.mark.parametrize("fault", ["an index of the CPU", "numpy"])
def test_check_attack_catches_it_too(fault):
    assert any("pretended CUDA" in line for line in check_attack(PGD(steps=10), norms=["linf"]))
    with pytest.raises(Failure, match="does not run on a pretended CUDA device"):
        check_attack(Faulty(fault))
