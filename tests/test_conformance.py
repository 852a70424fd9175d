"""Every attack of every table keeps the contract, and so does a stranger's, found by its entry point."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from robustkit_attacks.fgsm import FGSM

from robustkit import plugins
from robustkit.api import Attack, ModelFacts, Suite, ThreatModel
from robustkit.engine.plan import make_attack, name_of
from robustkit.testing import Failure, check_attack
from tests import toys

QUICK = {
    "pgd": "pgd:steps=15,restarts=2",
    "cw": "cw:steps=60,searches=5,c=1,lr=0.05",
    "apgd": "apgd:steps=15,restarts=2",
    "multi-targeted": "multi-targeted:steps=15,targets=3",
    "fab": "fab:steps=15,restarts=2",
    "square": "square:queries=150",
    "fab-walk": "fab-walk:steps=8,block=8",
    "square-walk": "square-walk:queries=60,block=8",
    "mora": "mora:steps=12,mixes=0.5,targets=2",
    "surrogate-swap": "surrogate-swap:steps=15,direct=5",
    "autoattack": "autoattack:steps=12,queries=120",
    "nes": "nes:steps=20,pairs=20",
    "adaptive": "adaptive:budget=quick",
    "vmi": "vmi:steps=4,gradient=(vmi:samples=3)",
    "pgn": "pgn:steps=4,gradient=(pgn:samples=3)",
    "admix": "admix:steps=4,input=(admix:mixes=2,scales=2)",
    "ssa": "ssa:steps=4,input=(ssa:copies=4)",
    "sia": "sia:steps=4,input=(sia:copies=6)",
    "bsr": "bsr:steps=4,input=(bsr:copies=8,blocks=2,angle=6)",
    "vmi-cwa": "vmi-cwa:steps=5,neighbours=3",
    "ssa-cwa": "ssa-cwa:steps=5,input=(ssa:copies=3)",
}


@pytest.mark.parametrize("name", plugins.table("attacks"))
def test_every_attack_of_the_table_conforms(name):
    made = make_attack(QUICK.get(name, name))
    assert isinstance(plugins.load("attacks", name)(), Attack | Suite)  # the defaults make one
    if isinstance(made, Attack):
        assert len(check_attack(made)) >= 2 + 8 * len(made.norms)
        assert make_attack(name_of(made)) == made
    else:
        for member in made.attacks(ThreatModel("linf", 0.1), ModelFacts(4, False, True, 0, ())):
            check_attack(member, norms=["linf"])
            assert make_attack(name_of(member)) == member


@pytest.mark.parametrize(
    "loss", ["ce", "margin", "dlr", "dlr-targeted", "margin-targeted", "ce-rescaled", "ce-float64"]
)
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_every_loss_conforms(attack, loss):
    check_attack(make_attack(f"{QUICK[attack]},loss={loss}"))


def test_the_lazy_one_and_the_cheaters_fail():
    with pytest.raises(Failure, match="did it return its input"):
        check_attack(toys.Lazy())
    for cheater in toys.CHEATERS:
        if not isinstance(cheater, toys.RunsOutOfMemory | toys.Exits):
            with pytest.raises(Exception, match=r".") as caught:
                check_attack(cheater)
            assert isinstance(caught.value, Failure | ZeroDivisionError | RuntimeError)


def test_a_foreign_attack_that_fools_the_model_only_while_it_runs_is_not_judge_safe():
    import torch

    @dataclass(frozen=True)
    class Swaps(toys.Lazy):
        def __call__(self, case):
            weights = [p for p in case.oracle.module.parameters() if p.dim() > 1]
            with torch.no_grad():
                weights[-1].neg_()
                case.submit(case.x)
                weights[-1].neg_()
            return case.x

    with pytest.raises(Failure, match="only while the attack ran"):
        check_attack(Swaps(), level="judge-safe", norms=["linf"])


def test_what_depends_on_the_batch_or_the_global_generator_fails():
    import torch

    class BatchNormed(FGSM):
        def __call__(self, case):
            grad = case.oracle.gradient(case.x, lambda o: -o.logits.gather(1, case.y[:, None])[:, 0]).grad
            return case.threat.project(case.x, case.x + case.threat.eps * (1.4 * case.x.mean()) * grad.sign())

    class Random(FGSM):
        def __call__(self, case):
            return FGSM()(case) + 0 * torch.rand(1)

    with pytest.raises(Failure, match="without the others"):
        check_attack(BatchNormed(), norms=["linf"])
    with pytest.raises(Failure, match="global random generator"):
        check_attack(Random(), norms=["linf"])


def test_a_stranger_s_plugin_is_found_by_its_entry_point_runs_and_conforms(tmp_path):
    package = Path(__file__).parent / "plugin_package"
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--target", site, package],
        check=True, capture_output=True,
    )  # fmt: skip
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import robustkit\n"
        "from robustkit.plugins import load, table\n"
        "from robustkit.testing import check_attack\n"
        "print(table('attacks')['corner'].plugin, len(check_attack(load('attacks', 'corner')())))\n"
        "print(robustkit.evaluate('digits-cnn', 'digits', 'corner', eps=0.1, n=50).counts)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(site)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("third_party 11\n")
    assert "'UNKNOWN': 0" in done.stdout
