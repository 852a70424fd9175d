"""Transfer runs: known answers on linear models, the check of adversarials, what is reused, what does not matter."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import robustkit
from robustkit import plugins
from robustkit.errors import UsageError
from robustkit.models.oracle import Network
from robustkit.records.files import write_arrays
from robustkit.records.transfer_folder import load_transfer
from robustkit.stats import Proportion
from tests import toys

EPS = 0.1
PLAIN = "pgd:steps=1,step=1.0,random_start=false"  # for a linear model of two classes the strongest there is


class TwoClasses(torch.nn.Module):
    """Logits (s, −s), s = w·(x − ½): the distance to the boundary is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        self.calls = self.gradients = 0

    def forward(self, x):
        self.calls += 1
        self.gradients += x.requires_grad
        score = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


def half(first):
    """Weights on one half of the pixels only."""
    weight = torch.randn(1, 4, 4, generator=toys.seeded(3))
    weight[:, :2] *= first
    weight[:, 2:] *= not first
    return weight


def problem(n=60):
    """Images inside the box by more than eps, with the labels of a model that looks at all pixels."""
    x = 0.2 + 0.6 * torch.rand(n, 1, 4, 4, generator=toys.seeded(5))
    y = TwoClasses(half(True) + half(False))(x).argmax(1)
    return x, y


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def test_a_victim_that_is_the_surrogate_falls_as_theory_says_and_one_that_looks_elsewhere_only_errs():
    surrogate, orthogonal = TwoClasses(half(True)), TwoClasses(half(False))
    x, y = problem()
    record = robustkit.transfer(
        {"surrogate": surrogate}, {"twin": TwoClasses(half(True)), "orthogonal": orthogonal}, PLAIN, (x, y), eps=EPS
    )
    score = ((x.double() - 0.5) * half(True)).flatten(1).sum(1) * torch.where(y == 0, 1.0, -1.0)
    falls = score - EPS * half(True).double().abs().sum() < 0
    twin, itself = (record.cells["surrogate", PLAIN, name] for name in ("twin", "surrogate"))
    assert twin.of_all == itself.of_all == Proportion(int(falls.sum()), 60)
    assert 10 < twin.of_all.k < 60
    assert twin.white_box
    assert itself.white_box
    other = record.cells["surrogate", PLAIN, "orthogonal"]
    errors = wrong(orthogonal, x, y)
    assert errors.any()
    assert other.of_all == Proportion(int(errors.sum()), 60)
    assert other.of_correct == Proportion(0, int((~errors).sum()))
    assert not other.white_box
    assert record.established


def test_what_is_stored_is_what_the_victims_say_of_images_in_the_ball(tmp_path):
    victims = {"a": toys.Linear(seed=1), "b": toys.Linear(seed=2)}
    x, y = torch.rand(50, 1, 4, 4, generator=toys.seeded(1)), torch.arange(50) % 5
    surrogates = [toys.Linear(seed=s) for s in (0, 1)]
    record = robustkit.transfer(
        dict(zip("st", surrogates, strict=True)), victims, "pgd:steps=4", (x, y), eps=EPS, tile=8, out=tmp_path / "run"
    )
    parts = sorted((tmp_path / "run/journal").glob("adversarials-*.npz"))
    adv = torch.from_numpy(np.concatenate([np.load(part)["adv"] for part in parts]))
    assert adv.dtype == torch.float32
    distance = (adv.double() - x.double()).abs().flatten(1).amax(1)
    assert 0 < distance.max() <= EPS * (1 + 1e-6) + 1e-7
    assert adv.min() >= 0
    assert adv.max() <= 1
    for name, victim in victims.items():
        here = record.transfer["victim"] == name
        with torch.no_grad():
            assert record.transfer["prediction"][here].tolist() == victim(adv).argmax(1).tolist()
            assert record.samples[f"clean:{name}"].tolist() == victim(x).argmax(1).tolist()
        assert np.allclose(record.transfer["distance"][here].astype(float), distance.numpy(), atol=0)
    again = load_transfer(tmp_path / "run")
    assert again.summary() == record.summary()
    stored = json.loads((tmp_path / "run/transfer.json").read_text())
    assert {**again.to_json(), "files": stored["files"], "digest": stored["digest"]} == stored
    assert list(record.transfer)[:4] == ["index", "surrogates", "attack", "victim"]
    # Two surrogates, four steps of the ensemble: eight passes of members, and two more for each offer and the end.
    assert record.attacks["backwards"].tolist() == [8] * 50
    assert set(record.attacks["forwards"].tolist()) <= {8, 10, 12, 14, 16}


@pytest.mark.parametrize("cheat", toys.CHEATERS, ids=lambda a: type(a).__name__)
def test_no_cheat_of_an_attack_gives_a_rate(cheat):
    model, victim = toys.Linear(seed=0).train(), toys.Linear(seed=1).eval()
    before = model.weight.clone()
    x, y = torch.rand(20, 1, 4, 4, generator=toys.seeded()), torch.arange(20) % 5
    record = robustkit.transfer({"s": model}, {"v": victim}, [cheat, PLAIN], (x, y), eps=EPS, tile=8)
    assert torch.equal(model.weight, before)
    assert model.training
    assert not victim.training
    cheated, honest = (record.cells["s", attack, "v"] for attack in record.job["attacks"])
    assert cheated.of_all is None
    assert "are violated (" in cheated.why
    assert honest.of_all is not None
    assert not record.established
    assert {e["attack"] for e in record.errors} == {cheated.attack}


def test_the_ball_is_measured_in_float64_around_the_original():
    @dataclass(frozen=True)
    class Beyond(toys._Settings):
        by: float = 0.0

        def __call__(self, case):
            return (case.x.double() + case.threat.eps + self.by).float()

    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    for by, violated in ((0.0, 0), (1e-7, 0), (5e-7, 4)):  # the rule: eps·(1 + 1e-6) + 1e-7
        record = robustkit.transfer({"s": toys.Linear()}, {"v": toys.Linear(seed=1)}, Beyond(by), (x, y), eps=EPS)
        assert int(record.attacks["violated"].sum()) == violated, by


def test_a_victim_whose_outputs_are_not_finite_has_no_rate_but_the_others_have():
    class Breaks(TwoClasses):
        """NaN for images whose every pixel is eps away from a clean one, which are ¼ or ¾."""

        def forward(self, x):
            moved = (((x - 0.5).abs() - 0.25).abs() - EPS).abs().flatten(1).amax(1) < 1e-3
            return torch.where(moved[:, None], torch.nan, super().forward(x))

    x = torch.where(torch.rand(16, 1, 4, 4, generator=toys.seeded()) < 0.5, 0.25, 0.75)
    weight = half(True) + half(False)
    victims = {"breaks": Breaks(weight), "v": TwoClasses(half(False))}
    record = robustkit.transfer({"s": TwoClasses(weight)}, victims, PLAIN, (x, torch.arange(16) % 2), eps=EPS)
    cell = record.cells["s", PLAIN, "breaks"]
    assert cell.of_all is None
    assert cell.why == "16 of 16 adversarials are violated (the victim's outputs are not finite)"
    assert record.cells["s", PLAIN, "v"].of_all is not None
    assert not record.attacks["violated"].any()


@dataclass(frozen=True)
class Counting:
    """A plain sign step that says when it is called."""

    norms: ClassVar = frozenset({"linf"})
    goal: ClassVar = "bounded"
    access: ClassVar = "white-box"
    calls: ClassVar = []

    def __call__(self, case):
        self.calls.append(len(case.x))
        grad = case.oracle.gradient(case.x, lambda o: o.logits.logsumexp(1) - o.logits[:, 0]).grad
        assert not case.submit(case.x).any()  # no victim tells
        return case.threat.project(case.x, case.x + case.threat.eps * grad.sign())

    def cost(self, classes):
        return 1, 1


def test_a_further_victim_or_attack_reuses_what_the_folder_holds(tmp_path):
    x, y = problem()
    surrogate, out = TwoClasses(half(True)), tmp_path / "run"
    Counting.calls.clear()

    def run(victims, *attacks):
        return robustkit.transfer(
            {"s": surrogate}, victims, [Counting(), *attacks], (x, y), eps=EPS, tile=8, shard_size=32, out=out
        )

    first = run({"v": TwoClasses(half(False))})
    assert Counting.calls == [32, 28]
    written = {path: path.stat().st_mtime_ns for path in (out / "journal").iterdir()}
    calls = surrogate.calls
    more = run({"v": TwoClasses(half(False)), "w": TwoClasses(half(True) + half(False))}, PLAIN)
    assert Counting.calls == [32, 28]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert surrogate.calls > calls  # it is examined again, and attacked by the new attack
    for key, cell in first.cells.items():
        assert more.cells[key] == cell
    assert set(more.cells) == {("s", a, v) for a in ("counting", PLAIN) for v in "vws"}
    gradients = surrogate.gradients
    again = run({"v": TwoClasses(half(False)), "w": TwoClasses(half(True) + half(False))}, PLAIN)
    assert again.to_json()["summary"] == more.to_json()["summary"]
    assert surrogate.gradients - gradients <= 4  # the examination's, none of an attack
    # Other weights, or another threat model, are another thing.
    surrogate.weight.data.neg_()
    run({"v": TwoClasses(half(False))})
    assert Counting.calls == [32, 28] * 2
    with pytest.raises(UsageError, match="eps differs"):
        robustkit.transfer({"s": surrogate}, {"v": surrogate}, PLAIN, (x, y), eps=EPS / 2, tile=8, out=out)


def test_a_part_whose_adversarials_were_replaced_is_judged_again(tmp_path):
    x, y = problem()
    out = tmp_path / "run"
    arguments = {"eps": EPS, "tile": 8, "out": out}
    robustkit.transfer({"s": TwoClasses(half(True))}, {"v": TwoClasses(half(True))}, PLAIN, (x, y), **arguments)
    (part,) = (out / "journal").glob("adversarials-*.npz")
    facts = dict(np.load(part))
    facts["adv"], facts["sha256"] = x.numpy(), np.array("another")
    write_arrays(part, facts)
    record = robustkit.transfer(
        {"s": TwoClasses(half(True))}, {"v": TwoClasses(half(True))}, PLAIN, (x, y), **arguments
    )
    assert record.cells["s", PLAIN, "v"].of_all.k == int(wrong(TwoClasses(half(True)), x, y).sum())


@pytest.mark.parametrize("settings", [{"shard_size": 40}, {"batch_size": 1}, {"shard_size": 16, "batch_size": 48}],
                         ids=str)  # fmt: skip
def test_neither_batch_nor_shard_size_changes_a_fact(settings):
    def run(**more):
        return robustkit.transfer(
            ["digits-cnn", "digits-cnn-at"], {"noisy": toys.Randomised(Digits()), "at": "digits-cnn-at"},
            ["pgd:steps=3"], "digits", n=90, eps=0.1, tile=16, device="cpu", **more,
        )  # fmt: skip

    same(run(), run(**settings))


class Digits(toys.Linear):
    def __init__(self):
        super().__init__((1, 8, 8), 10)


def same(one, other):
    for table in ("samples", "attacks", "transfer"):
        first, second = getattr(one, table), getattr(other, table)
        assert list(first) == list(second)
        for name, column in first.items():
            assert np.array_equal(column, second[name], equal_nan=column.dtype.kind == "f"), (table, name)


def test_a_randomised_victim_is_flagged_and_its_answers_repeat():
    def run(seed):
        return robustkit.transfer({"s": Digits()}, {"noisy": toys.Randomised(Digits(), 0.5)}, PLAIN, "digits", n=60,
                                  eps=0.1, seed=seed)  # fmt: skip

    one = run(0)
    same(one, run(0))
    assert [flag["model"] for flag in one.flags] == ["noisy"]
    assert one.randomised("noisy")
    assert "one draw for each image" in one.summary()
    clean = "clean:noisy"
    assert not np.array_equal(one.samples[clean], run(1).samples[clean])


@pytest.mark.parametrize("draws", [1, 5])
def test_a_randomised_model_decides_on_what_most_of_its_draws_do(draws):
    module, tile = toys.Randomised(Digits(), 0.5), 16
    record = robustkit.transfer({"s": Digits()}, {"noisy": module, "v": Digits()}, PLAIN, "digits", n=60, eps=0.1,
                                tile=tile, draws=draws, device="cpu")  # fmt: skip
    x, _ = robustkit.load_dataset("digits").batch(range(60))
    network, votes = Network(module, tile, torch.device("cpu")), []
    for place, part in enumerate(torch.split(x, tile)):
        keyed = network.seeded(0, "transfer victim", place)
        said = torch.stack([keyed.logits(part).argmax(1) for _ in range(draws)])
        votes += [np.bincount(each.numpy()).argmax() for each in said.T]
        assert draws == 1 or (said != said[0]).any()
    assert record.samples["clean:noisy"].tolist() == votes
    assert record.samples["clean:v"].tolist() == Digits()(x).argmax(1).tolist()
    assert record.job["draws"] == draws
    assert ("one draw for each" if draws == 1 else "the vote of 5 draws on each") in record.summary()


def test_more_draws_or_a_defense_take_the_adversarials_from_the_folder(tmp_path):
    def parts(**more):
        record = robustkit.transfer({"s": toys.Randomised(Digits())}, {"v": Digits()}, "pgd:steps=2", "digits", n=40,
                                    eps=0.3, tile=16, out=tmp_path, **more)  # fmt: skip
        return record, {path: path.stat().st_mtime_ns for path in (tmp_path / "journal").iterdir()}

    kinds = [{"adversarials": 1, "answers": 2, "clean": 2}, {"answers": 1, "clean": 1}, {"answers": 1, "clean": 1}]
    known, bare = {}, None
    for more, wanted in zip(({}, {"draws": 3}, {"defense": "bit-depth:bits=1"}), kinds, strict=True):
        record, found = parts(**more)
        assert found.items() >= known.items(), "what was there is not written again"
        new = [path.name.partition("-")[0] for path in found.keys() - known.keys()]
        assert {kind: new.count(kind) for kind in set(new)} == wanted, more
        known, bare = found, bare or record
    assert record.job["defense"] == record.job["models"]["v"]["defense"] == "bit-depth:bits=1"
    assert record.job["models"]["s"]["defense"] == ""
    (part,) = (tmp_path / "journal").glob("adversarials-*.npz")
    adv = torch.from_numpy(np.load(part)["adv"])
    here = record.transfer["victim"] == "v"
    behind = plugins.load("defenses", "bit-depth")(bits=1).protect(Digits())(adv).argmax(1)
    assert record.transfer["prediction"][here].tolist() == behind.tolist()
    assert bare.transfer["prediction"][here].tolist() == Digits()(adv).argmax(1).tolist() != behind.tolist()


def test_declared_probabilities_are_what_their_logits_are(tmp_path):
    a, b, v = (toys.Linear(seed=seed, scale=0.5) for seed in range(3))
    x, y = torch.rand(20, 1, 4, 4, generator=toys.seeded()), torch.arange(20) % 5

    def made(surrogates, victim, out, **more):
        sets = {"one": ["b"], "both": ["a", "b"]}
        record = robustkit.transfer(
            surrogates, {"v": victim}, "pgd:steps=3", (x, y), eps=EPS, sets=sets, out=out, **more
        )
        parts = sorted(np.load(part)["adv"].tobytes() for part in (out / "journal").glob("adversarials-*.npz"))
        return record, parts

    soft = [torch.nn.Sequential(model, torch.nn.Softmax(1)) for model in (b, v)]
    plain, images = made({"a": a, "b": b}, v, tmp_path / "logits")
    record, same_images = made(
        {"a": a, "b": soft[0]}, soft[1], tmp_path / "probs", outputs={"b": "probs", "v": "probs"}
    )
    assert images == same_images
    same(plain, record)
    assert [model["outputs"] for model in record.job["models"].values()] == ["probs", "logits", "probs"]
    soft.append(torch.nn.Sequential(a, torch.nn.Softmax(1)))
    record, same_images = made({"a": soft[2], "b": soft[0]}, soft[1], tmp_path / "all", outputs="probs")
    assert images == same_images


def test_a_randomised_surrogate_gives_the_same_in_any_batch():
    def run(**more):
        return robustkit.transfer(
            {"s": toys.Randomised(Digits()), "t": Digits()}, "digits-cnn", "pgd:steps=2", "digits", n=50, eps=0.1,
            tile=16, device="cpu", **more,
        )  # fmt: skip

    same(run(), run(batch_size=32, shard_size=16))


@pytest.mark.parametrize("target", ["3", "random", "least-likely"])
def test_a_targeted_success_is_the_target_alone(target):
    record = robustkit.transfer({"s": "digits-cnn"}, {"at": "digits-cnn-at"}, "pgd:steps=10", "digits", n=60, eps=0.3,
                                target=target)  # fmt: skip
    wanted = record.attacks["target"]
    label = record.samples["label"]
    assert (wanted != label).all()
    if target == "3":
        assert (wanted == 3).all()
        assert any(flag["kind"] == "left-out" for flag in record.flags)
    for name in ("at", "s"):
        here = record.transfer["victim"] == name
        hits = record.transfer["prediction"][here] == wanted
        assert record.cells["s", "pgd:steps=10", name].of_all.k == int(hits.sum())
        other = (record.transfer["prediction"][here] != label) & ~hits
        assert (record.transfer["outcome"][here][other] == "resisted").all()
    assert record.cells["s", "pgd:steps=10", "s"].of_all.k > 10
    assert "decided as the target" in record.summary()


class Turned(TwoClasses):
    """The same answers with another backward pass."""

    def forward(self, x):
        logits = super().forward(x)
        return 2 * logits.detach() - logits


def test_adversarials_of_a_backward_pass_that_was_changed_are_made_again(tmp_path):
    x, y = problem()

    def rate(surrogate, **more):
        record = robustkit.transfer({"s": surrogate}, {"v": TwoClasses(half(True))}, PLAIN, (x, y), eps=EPS, **more)
        return float(record.cells["s", PLAIN, "v"].of_all)

    there, turned = rate(TwoClasses(half(True)), out=tmp_path), rate(Turned(half(True)))
    assert turned < there
    assert rate(Turned(half(True)), out=tmp_path) == turned


@pytest.mark.parametrize("spec", ["mora:steps=10", "multi-targeted:steps=10", "apgd:steps=10,restarts=5",
                                  "surrogate-swap:steps=10", "pgd:steps=10,restarts=5"])  # fmt: skip
def test_further_runs_of_an_attack_take_nothing_from_what_the_first_reached(spec):
    net = toys.Linear(classes=10)
    x = torch.rand(24, 1, 4, 4, generator=toys.seeded(0))
    y = net(x).argmax(1)
    record = robustkit.transfer({"s": net}, {"v": net}, {"one": "pgd:steps=10", "more": spec}, (x, y), eps=0.04)
    one, more = (record.cells["s", label, "v"].of_all for label in ("one", "more"))
    assert one.k > 5
    assert more.k >= one.k - 1


@dataclass(frozen=True)
class Bold:
    """Offers what is outside the ball, then the image itself."""

    norms, goal, access = frozenset({"linf"}), "bounded", "white-box"

    def __call__(self, case):
        case.submit(torch.rand_like(case.x))
        return case.x

    def cost(self, classes):
        return 1, 0


def test_an_offer_outside_the_threat_model_is_not_taken():
    x, y = problem()
    record = robustkit.transfer({"s": TwoClasses(half(True))}, {"v": TwoClasses(half(True))}, Bold(), (x, y), eps=EPS)
    assert (record.attacks["distance"] == 0).all()
    assert not record.attacks["violated"].any()


def test_every_attack_heads_for_the_same_targets_on_a_randomised_surrogate():
    surrogate = toys.Randomised(toys.Linear(classes=10))
    x = torch.rand(24, 1, 4, 4, generator=toys.seeded(0))
    record = robustkit.transfer({"s": surrogate}, {"v": toys.Linear(classes=10)}, ["fgsm", "mi:steps=1"],
                                (x, torch.zeros(24, dtype=torch.int64)), eps=EPS, target="least-likely")  # fmt: skip
    by = [record.attacks["target"][record.attacks["attack"] == name].tolist() for name in ("fgsm", "mi:steps=1")]
    assert by[0] == by[1]


def test_a_victim_may_stand_behind_defenses(tmp_path):
    spec = "defended/(digits-cnn):by=(bit-depth:bits=2)+(median)"
    record = robustkit.transfer("digits-cnn", {"defended": spec}, "pgd:steps=5", "digits", n=32, eps=0.2, out=tmp_path)
    (part,) = (tmp_path / "journal").glob("adversarials-*.npz")
    module, card = robustkit.load_model(spec)
    assert "behind (bit-depth:bits=2)+(median)" in card.name
    with torch.no_grad():
        expected = module(torch.from_numpy(np.load(part)["adv"])).argmax(1)
    here = record.transfer["victim"] == "defended"
    assert record.transfer["prediction"][here].tolist() == expected.tolist()
    assert not record.white_box("digits-cnn", "defended")
    for wrong_spec, words in (("defended/digits-cnn", "names no defense"), ("defended/(digits-cnn):by=jpg", "jpeg")):
        with pytest.raises(UsageError, match=words):
            robustkit.load_model(wrong_spec)


def test_several_surrogate_sets_mark_white_box_by_set():
    models = {"a": toys.Linear(seed=0), "b": toys.Linear(seed=1)}
    x, y = torch.rand(20, 1, 4, 4, generator=toys.seeded()), torch.arange(20) % 5
    record = robustkit.transfer(
        models, {"v": toys.Linear(seed=2)}, PLAIN, (x, y), eps=EPS, sets={"one": ["a"], "both": ["a", "b"]}
    )
    marks = {(cell.surrogates, cell.victim): cell.white_box for cell in record.cells.values()}
    assert marks == {
        ("one", "v"): False, ("one", "a"): True, ("one", "b"): False,
        ("both", "v"): False, ("both", "a"): True, ("both", "b"): True,
    }  # fmt: skip
    assert record.columns == ["v", "a", "b"]
    assert record.costs["both", PLAIN].backwards == 2 * record.costs["one", PLAIN].backwards == 2


X, Y = torch.rand(8, 1, 4, 4, generator=toys.seeded()), torch.arange(8) % 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"victims": []}, "no victim was named"),
        ({"surrogates": {}}, "no surrogate was named"),
        ({"attacks": []}, "no attack was named"),
        ({"surrogates": [toys.Linear(), toys.Linear(seed=1)]}, "'tests.toys.Linear' is named twice"),
        ({"victims": ["digits-cnn", "digits-cnn"]}, "'digits-cnn' is named twice"),
        ({"victims": {"s": toys.Linear(seed=9)}}, "both called 's'"),
        ({"victims": {"v": toys.Linear(classes=7)}}, "classes"),
        ({"victims": {"v": toys.Linear(shape=(3, 9, 9))}}, "v: the model does not accept images of shape (1, 4, 4)"),
        ({"surrogates": {"s": toys.HardLabels(toys.Linear())}}, "no gradient flows through the surrogate s"),
        ({"attacks": "autoattack"}, "is a suite"),
        ({"attacks": "fab"}, "nearest adversarial"),
        ({"attacks": "fgsm", "norm": "l1", "eps": 1.0}, "does not work in l1"),
        ({"attacks": ["pgd", "pgd"]}, "named twice"),
        ({"attacks": {"a": "pgd", "b": "pgd"}}, "named twice"),
        ({"attacks": "pgdd"}, "did you mean pgd"),
        ({"attacks": type(Counting())}, "is a class"),
        ({"sets": {"one": ["s", "x"]}}, "no surrogate called 'x'"),
        ({"sets": {"one": []}}, "at least one surrogate"),
        ({"sets": {}}, "in no set"),
        ({"eps": 8}, "8/255"),
        ({"target": 5}, "0 to 4"),
        ({"n": 9}, "8 samples"),
        ({"device": "tpu"}, "unknown device"),
        ({"shard_size": 0}, "at least 1"),
        ({"draws": 0}, "draws must be a whole number of at least 1"),
        ({"outputs": "probits"}, "there are: logits, probs"),
        ({"outputs": {"x": "probs"}}, "no model called 'x'"),
        ({"outputs": {"v": "probs"}}, "v: outputs='probs' was said"),
        (
            {"victims": {"v": torch.nn.Sequential(toys.Linear(), torch.nn.Softmax(1))}},
            "v: the model's outputs are prob",
        ),
        ({"defense": "jpg"}, "did you mean jpeg"),
        ({"defense": "jpeg", "surrogates": "digits-cnn", "victims": "digits-cnn"}, "a name of its own"),
        ({"surrogates": {"s": toys.Linear(), "t": toys.Linear(seed=4).double()}}, "different precision"),
    ],
    ids=lambda a: str(list(a))[:40] if isinstance(a, dict) else a[:30],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path, arguments, words):
    asked = {"surrogates": {"s": toys.Linear()}, "victims": {"v": toys.Linear(seed=1)}, "attacks": PLAIN, "eps": EPS}
    with pytest.raises(UsageError) as refused:
        robustkit.transfer(data=(X, Y), **{**asked, **arguments}, out=tmp_path / "run")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_progress_rises_to_the_end():
    seen = []
    robustkit.transfer({"s": Digits()}, "digits-cnn", ["pgd:steps=3", "fgsm"], "digits", n=70, eps=0.1, tile=16,
                       shard_size=32, batch_size=16, on_event=seen.append)  # fmt: skip
    kinds = [type(event).__name__ for event in seen]
    assert (kinds[0], kinds[-1]) == ("Started", "Finished")
    fractions = [event.fraction for event in seen if type(event).__name__ == "Making"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_an_error_of_the_caller_s_callback_is_the_caller_s():
    def fail(event):
        if type(event).__name__ == "Making":
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        robustkit.transfer({"s": Digits()}, "digits-cnn", "pgd:steps=3", "digits", n=20, eps=0.1, on_event=fail)


def test_the_transfer_attacks_climb_on_the_members_and_keep_to_their_budget():
    names = [name for name in ("mi", "svre", "mi-cwa") if name in plugins.table("attacks")]
    if not names:
        pytest.skip("no transfer attack is installed")
    record = robustkit.transfer(
        {"a": "digits-cnn", "b": "digits-cnn-at"}, {"v": Digits()},
        {name: f"{name}:budget=40" for name in names}, "digits", n=60, eps=0.2,
    )  # fmt: skip
    for name in names:
        cost = record.costs["a+b", name]
        assert 20 <= cost.most_backwards <= 40, name
        assert record.cells["a+b", name, "a"].of_all.k > 30, name
