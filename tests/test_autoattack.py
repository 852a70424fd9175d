import pytest
import torch
from robustkit_attacks.autoattack import AutoAttack

from robustkit import evaluate, load_model
from robustkit.api import Expected, ModelFacts, ThreatModel
from robustkit.engine.plan import resolve_attacks
from robustkit.errors import UsageError
from tests import toys

STANDARD = ["apgd", "apgd:loss=dlr-targeted", "fab:minimise=false", "square"]
PLUS = ["apgd:restarts=5", "apgd:loss=dlr,restarts=5", "fab:minimise=false,restarts=5,targeted=false", "square",
        "apgd:loss=dlr-targeted", "fab:minimise=false"]  # fmt: skip
RAND = ["apgd:eot=20", "apgd:eot=20,loss=dlr"]
NAMES = {
    ("linf", "standard"): STANDARD,
    ("l2", "standard"): STANDARD,
    ("l1", "standard"): [
        "apgd:radii=3,restarts=5", "apgd:loss=dlr-targeted,radii=3,targets=5", "fab:minimise=false", "square",
    ],
    ("linf", "plus"): PLUS,
    ("l2", "plus"): PLUS,
    ("l1", "plus"): [
        "apgd:radii=3,restarts=5", "apgd:loss=dlr,radii=3,restarts=5", *PLUS[2:4],
        "apgd:loss=dlr-targeted,radii=3", "fab:minimise=false",
    ],
    ("linf", "rand"): RAND,
    ("l2", "rand"): RAND,
    ("l1", "rand"): RAND,
}  # fmt: skip


def facts(classes=10, randomised=False):
    return ModelFacts(classes, randomised=randomised, differentiable=True, members=0, surrogates=())


def options(name):
    """A name's attack and its set of settings, in whatever order."""
    attack, _, settings = name.partition(":")
    return attack, frozenset(settings.split(",")) if settings else frozenset()


def names(suite, norm, classes=10, randomised=False):
    found = resolve_attacks(suite, ThreatModel(norm, 0.1), facts(classes, randomised))
    return [options(named.name) for named in found]


@pytest.mark.parametrize(("norm", "version"), NAMES)
def test_each_version_is_the_reference_s_in_each_norm(norm, version):
    expected, rand = [options(name) for name in NAMES[norm, version]], version == "rand"
    assert names(AutoAttack(version), norm, randomised=rand) == expected
    assert names(f"autoattack:version={version}", norm, randomised=rand) == expected


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_steps_and_queries_are_the_reference_s(norm):
    ce, targeted, fab, square = AutoAttack().attacks(ThreatModel(norm, 0.1), facts())
    assert (ce.steps, targeted.steps, fab.steps, square.queries) == (100, 100, 100, 5000)
    assert (ce.restarts, ce.radii) == ((5, 3) if norm == "l1" else (1, 1))
    assert (targeted.restarts, targeted.radii, targeted.targets) == ((1, 3, 5) if norm == "l1" else (1, 1, 9))
    assert (fab.targets, fab.restarts, square.p, square.restarts) == (9, 1, 0.8, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rand_is_apgd_on_the_expectation_over_20_draws(norm):
    for attack in AutoAttack("rand").attacks(ThreatModel(norm, 0.1), facts(randomised=True)):
        assert isinstance(attack, Expected)
        assert attack.k == 20
        assert attack.cost(10) == (20 * 101, 20 * 101)


@pytest.mark.parametrize(("classes", "targeted", "fab"), [(2, 1, 1), (4, 3, 3), (7, 5, 6), (1000, 5, 9)])
def test_there_are_no_more_targets_than_wrong_classes(classes, targeted, fab):
    found = AutoAttack().attacks(ThreatModel("l1", 1.0), facts(classes))
    assert (found[1].targets, found[2].targets) == (targeted, fab)
    found = AutoAttack().attacks(ThreatModel("linf", 0.1), facts(classes))
    assert (found[1].targets, found[2].targets) == (fab, fab)


def test_given_targets_hold_for_both_targeted_attacks_in_every_norm():
    for norm in ("linf", "l2", "l1"):
        found = AutoAttack(targets=7).attacks(ThreatModel(norm, 0.1), facts())
        assert (found[1].targets, found[2].targets) == (7, 7)
    assert names("autoattack:targets=2,steps=5,queries=9", "linf") == [
        options(name) for name in
        ["apgd:steps=5", "apgd:loss=dlr-targeted,steps=5,targets=2", "fab:minimise=false,steps=5,targets=2",
         "square:queries=9"]
    ]  # fmt: skip


def test_rand_is_refused_where_nothing_is_random():
    with pytest.raises(UsageError, match="rand is for randomised models and weaker on others"):
        AutoAttack("rand").attacks(ThreatModel("linf", 0.1), facts())


def test_l0_is_refused():
    with pytest.raises(UsageError, match="autoattack has no l0 form; there are: linf, l2, l1"):
        AutoAttack().attacks(ThreatModel("l0", 4), facts())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.5), ("l1", 2.0)])
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_a_small_suite_breaks_at_least_what_each_of_its_attacks_breaks(norm, eps, version):
    model = load_model("digits-cnn-at")[0]
    suite = AutoAttack(version, steps=10, queries=40, targets=2)
    record = evaluate(model, "digits", suite, norm=norm, eps=eps, n=48)
    assert 0 < record.counts["BROKEN"] < 48
    assert not record.counts["UNKNOWN"]
    left = record.samples["status"] == "ROBUST"
    for named in resolve_attacks(suite, ThreatModel(norm, eps), facts()):
        alone = evaluate(model, "digits", named.attack, norm=norm, eps=eps, n=48)
        assert not (left & (alone.samples["status"] == "BROKEN")).any(), named.name


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rand_breaks_a_model_that_hides_behind_noise(norm):
    model = toys.Randomised(toys.Linear((1, 4, 4), 3), sigma=0.05)
    x = torch.rand(12, 1, 4, 4, generator=toys.seeded(1))
    eps = {"linf": 0.3, "l2": 1.0, "l1": 4.0}[norm]
    record = evaluate(model, (x, model.inner(x).argmax(1)), AutoAttack("rand", steps=8), norm=norm, eps=eps)
    assert record.counts["BROKEN"] >= 6
