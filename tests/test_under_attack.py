"""What an attack cannot have: another model, another rule, another world; and what the record says of adversarials."""

import asyncio
import functools
import random
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from robustkit_attacks.fgsm import FGSM

from robustkit import evaluate
from robustkit.api import ThreatModel
from robustkit.engine import judge
from robustkit.engine.progress import TELL_EVERY_S
from robustkit.errors import NotEstablishedError
from robustkit.numerics import rows
from robustkit.numerics.bare import bare
from tests import toys


def linear_case(n):
    model = toys.Linear(shape=(1, 4, 4))
    x = torch.rand(n, 1, 4, 4, generator=toys.seeded(5))
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("target", [None, "random"])
def test_the_stored_prediction_is_the_model_s_decision_on_the_kept_adversarial(target, tmp_path):
    model, x, y = linear_case(60)
    record = evaluate(model, (x, y), "(fgsm)+(pgd:steps=20)", eps=0.2, target=target, save_adversarial=True,
                      out=tmp_path / "run", shard_size=16)  # fmt: skip
    kept, rows = record.adversarial, record.attacks
    assert len(kept["index"]) == record.counts["BROKEN"] > 5
    assert np.array_equal(kept["clean"], x.numpy()[kept["index"]])
    decided = dict(zip(kept["index"].tolist(), model(torch.from_numpy(kept["adv"])).argmax(1).tolist(), strict=True))
    broke = rows["outcome"] == "broken"
    said = dict(zip(rows["index"][broke].tolist(), rows["prediction"][broke].tolist(), strict=True))
    assert said == decided
    if target is None:
        assert all(label != said.get(i) for i, label in enumerate(y.tolist()))
        survived = rows["outcome"] == "survived"
        assert np.array_equal(rows["prediction"][survived], y.numpy()[rows["index"][survived]])


def test_what_broke_the_rules_leaves_no_prediction():
    model, x, y = linear_case(12)
    record = evaluate(model, (x, y), toys.LeavesBall(), eps=0.05)
    violated = record.attacks["outcome"] == "violated"
    assert violated.all()
    assert (record.attacks["prediction"] == -1).all()


def test_of_a_randomised_model_it_is_what_the_voting_draws_say_most_often():
    class Coin(torch.nn.Module):
        """Class 2 on any image that was moved, and class 1 in a tenth of the passes; class 0 unattacked."""

        randomised = True

        def forward(self, x):
            noise = torch.rand(len(x)) < 0.1
            moved = (x.flatten(1) != 0.5).any(1)
            decided = torch.where(moved, torch.where(noise, 1, 2), 0)
            return torch.nn.functional.one_hot(decided, 3).float()

    @dataclass(frozen=True)
    class Moves(toys._Settings):
        def __call__(self, case):
            return case.threat.clip(case.x + 0.01)

    x = torch.full((30, 1, 2, 2), 0.5)
    record = evaluate(Coin(), (x, torch.zeros(30, dtype=torch.int64)), Moves(), eps=0.05, draws=9, doctor=False)
    broke = record.attacks["outcome"] == "broken"
    assert broke.sum() > 20
    assert set(record.attacks["prediction"][broke].tolist()) <= {1, 2}
    assert (record.attacks["prediction"][broke] == 2).mean() > 0.9


class Stranger(torch.Tensor):
    """A tensor whose comparisons say yes, and whose distances are none."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.bool:
            return torch.ones_like(found.as_subclass(torch.Tensor))
        return found * 0 if getattr(func, "__name__", "") in ("sub", "__sub__") else found

    @property
    def shape(self):
        return torch.Size((*super().shape,))


class Shapeless(Stranger):
    @property
    def shape(self):
        raise RuntimeError("no shape")


def net():
    """Something of each kind that no state dict holds, and a network that reads it."""

    class Rich(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.Linear()
            self.gain, self.settings = 1.0, {"shift": [0.0]}
            self.register_buffer("scale", torch.ones(1), persistent=False)
            self.mask = torch.ones(1)
            self.calls = 0

        def forward(self, x):
            self.calls += 1  # its own business
            return self.inner(x * self.gain * self.scale * self.mask + self.settings["shift"][0])

    return Rich()


def tampering(change):
    @dataclass(frozen=True)
    class Tampers(toys._Settings):
        def __call__(self, case):
            change(case.oracle.module)
            case.submit(case.x)
            return case.x

    return Tampers()


def inner(module):
    return module.inner if isinstance(module, toys.Randomised) else module


def answers_backwards(module):
    forward = type(module).forward
    module.forward = lambda x: -forward(module, x)


TAMPERING = {
    "attribute": lambda module: setattr(inner(module), "gain", -1.0),
    "nested": lambda module: inner(module).settings["shift"].__setitem__(0, 50.0),
    "buffer not kept": lambda module: inner(module).scale.neg_(),
    "tensor attribute": lambda module: setattr(inner(module), "mask", -torch.ones(1)),
    "hook": lambda module: inner(module).register_forward_hook(lambda m, i, o: -o),
    "method": lambda module: answers_backwards(inner(module)),
    "parameter exchanged": lambda module: setattr(
        inner(module).inner, "weight", torch.nn.Parameter(-inner(module).inner.weight)
    ),
    "memory exchanged": lambda module: setattr(inner(module).inner.weight, "data", torch.zeros(5, 1)),
    "part exchanged": lambda module: setattr(inner(module), "inner", toys.Linear(seed=9)),
    "class": lambda module: setattr(type(inner(module)), "forward", lambda self, x: -self.inner(x)),
}


def state_of(model):
    found = inner(model)
    return (
        found.gain, found.settings, found.scale.tolist(), found.mask.tolist(), found.inner.weight.tolist(),
        sorted(vars(found)), len(found._forward_hooks), type(found).forward, id(found.inner), id(found.inner.weight),
    )  # fmt: skip


@pytest.mark.parametrize("noisy", [False, True], ids=["deterministic", "randomised"])
@pytest.mark.parametrize("kind", TAMPERING)
def test_an_attack_that_changes_the_model_decides_nothing_and_the_model_comes_back(kind, noisy):
    _, x, y = linear_case(12)
    model = toys.Randomised(net(), 0.02) if noisy else net()
    y = model.inner.inner(x).argmax(1) if noisy else model.inner(x).argmax(1)
    before = state_of(model)
    calm = evaluate(model, (x, y), "fgsm", eps=0.05, draws=3)
    record = evaluate(model, (x, y), [tampering(TAMPERING[kind]), FGSM()], eps=0.05, draws=3)
    assert state_of(model) == before
    assert {e["attack"] for e in record.errors} == {"tampers"}
    assert record.counts["BROKEN"] == calm.counts["BROKEN"]
    assert record.counts["ROBUST"] == 0  # what fgsm leaves standing is not known to be robust
    assert inner(model).calls > 0


def test_settings_of_the_noise_are_the_model_s_as_given():
    """The case that was found: 70.8 % became 0 %, and the caller's model kept it."""
    inside, x, y = linear_case(24)
    model = toys.Randomised(inside, 0.02)
    record = evaluate(model, (x, y), tampering(lambda module: setattr(module, "sigma", 30.0)), eps=0.05)
    assert model.sigma == 0.02
    assert record.counts["BROKEN"] == 0
    assert record.unknown == 24 - record.counts["WRONG"]
    assert [e["message"] for e in record.errors][:1] == ["changed the model"]


def test_what_a_model_changes_itself_is_its_own_business():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls, self.seen, self.cache = toys.Linear(), 0, [], {}

        def forward(self, x):
            self.calls += 1
            self.seen.append(len(x))
            self.cache.setdefault(tuple(x.shape), self.calls)
            return self.inner(x)

    _, x, y = linear_case(20)
    model = Counts()
    record = evaluate(model, (x, y), "pgd:steps=3", eps=0.05)
    assert not record.errors
    assert model.calls == len(model.seen) > 4


def test_a_change_that_cannot_be_undone_ends_the_run():
    """What is out of sight of the harness: a value in the closure of a function that stands in a class."""
    sign = [1.0]
    hidden = functools.lru_cache(lambda: sign)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.Linear()

        def forward(self, x):
            return self.inner(x) * hidden()[0]

    _, x, y = linear_case(10)
    with pytest.raises(NotEstablishedError, match="cannot be undone"):
        evaluate(Model(), (x, y), [tampering(lambda module: sign.__setitem__(0, -1.0)), FGSM()], eps=0.05)


@pytest.mark.parametrize("noisy", [False, True], ids=["deterministic", "randomised"])
@pytest.mark.parametrize("kind", [Stranger, Shapeless, torch.nn.Parameter])
@pytest.mark.parametrize("offered", [False, True], ids=["returned", "submitted"])
def test_a_tensor_s_class_has_no_say(kind, noisy, offered):
    model, x, y = linear_case(12)

    @dataclass(frozen=True)
    class Dresses(toys._Settings):
        def __call__(self, case):
            far = 1 - case.x
            dressed = torch.nn.Parameter(far) if kind is torch.nn.Parameter else far.as_subclass(kind)
            if offered:
                case.submit(dressed)
                case.oracle.outputs(dressed)
            return case.x if offered else dressed

    record = evaluate(toys.Randomised(model, 0.01) if noisy else model, (x, y), Dresses(), eps=0.05, draws=3)
    assert record.counts["BROKEN"] == record.counts["ROBUST"] == 0
    said = " ".join(e["message"] for e in record.errors)
    # While tests check shapes, what has none is refused before the judge sees it.
    assert "an image outside the ball" in said or (kind is Shapeless and offered and "TypeCheckError" in said)
    plain = bare(x.as_subclass(Stranger))
    assert type(plain) is torch.Tensor
    assert torch.equal(plain, x)


def patched(where, name, lie):
    """Something that a verdict rests on, changed for as long as the attack submits, or for good."""

    @dataclass(frozen=True)
    class Patches(toys._Settings):
        for_good: bool = False

        def __call__(self, case):
            known = vars(where).get(name)
            setattr(where, name, lie)
            try:
                case.submit(1 - case.x)
            finally:
                if not self.for_good:
                    delattr(where, name) if known is None else setattr(where, name, known)
            return case.x

    return Patches


MEASURE = judge.measure
HARMFUL = {
    "the rule": (judge, "measure", lambda threat, x, adv, goal="bounded": MEASURE(threat, x, x, goal)),
    "a distance": (ThreatModel, "distance", lambda self, x, adv: torch.zeros(len(x), dtype=torch.float64)),
    "what a distance is made of": (rows, "peak", lambda x: torch.zeros(len(x), dtype=x.dtype)),
    "a comparison": (torch.Tensor, "__le__", lambda self, other: torch.ones(self.shape, dtype=torch.bool)),
}
PATCHES = {
    **{(kind, for_good): patch for kind, patch in HARMFUL.items() for for_good in (False, True)},
    ("torch", True): (torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool)),
    ("a builtin before the builtins", True): (judge, "tuple", lambda found: (12, 1, 4, 4)),
}


@pytest.mark.parametrize("noisy", [False, True], ids=["deterministic", "randomised"])
@pytest.mark.parametrize(("kind", "for_good"), PATCHES)
def test_a_patched_harness_breaks_nothing_and_is_put_back(kind, noisy, for_good):
    model, x, y = linear_case(12)
    where, name, _ = PATCHES[kind, for_good]
    before = vars(where).get(name)
    attack = patched(*PATCHES[kind, for_good])(for_good)
    record = evaluate(toys.Randomised(model, 0.01) if noisy else model, (x, y), attack, eps=0.05, draws=3)
    assert vars(where).get(name) is before
    assert record.counts["BROKEN"] == 0
    assert record.unknown > 3
    if for_good:
        assert record.counts["ROBUST"] == 0
        assert f"changed {where.__name__}.{name}" in {e["message"] for e in record.errors}


def test_a_case_leads_to_no_judge():
    model, x, y = linear_case(12)
    seen = []

    @dataclass(frozen=True)
    class Looks(toys._Settings):
        def __call__(self, case):
            todo, known = [case], set()
            while todo:
                item = todo.pop()
                if id(item) in known or isinstance(item, torch.Tensor | type):
                    continue
                known.add(id(item))
                seen.append(type(item).__name__)
                names = {*getattr(item, "__dict__", ()), *getattr(type(item), "__slots__", ()), "__self__", "__func__"}
                todo += [getattr(item, name) for name in names if hasattr(item, name)]
            return case.x

    for noisy in (False, True):
        evaluate(toys.Randomised(model, 0.01) if noisy else model, (x, y), Looks(), eps=0.05, draws=3)
    assert "ModelOracle" in seen
    assert not {"Judge", "VotingJudge", "Bench", "Opened"} & set(seen)


SETTINGS = {
    "the default dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "the number of threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "deterministic mode": (
        torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(True)
    ),
    "the precision of products": (
        torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")
    ),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "cuDNN's settings": (
        lambda: torch.backends.cudnn.benchmark, lambda: setattr(torch.backends.cudnn, "benchmark", True)
    ),
    "how NumPy treats errors": (np.geterr, lambda: np.seterr(all="ignore")),
    "a mode of torch's that it entered": (torch._C._len_torch_function_stack, lambda: Lying().__enter__()),
    "inference": (torch.is_inference_mode_enabled, lambda: KEPT.append(torch.inference_mode()) or KEPT[-1].__enter__()),
}  # fmt: skip
KEPT = []


class Lying(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return ~found if isinstance(found, torch.Tensor) and found.dtype == torch.bool else found


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_the_process_are_put_back_and_who_left_them_changed_is_named(what):
    model, x, y = linear_case(12)
    read, change = SETTINGS[what]
    before = read()

    @dataclass(frozen=True)
    class Leaves(toys._Settings):
        def __call__(self, case):
            change()
            return case.x

    record = evaluate(model, (x, y), [Leaves(), FGSM()], eps=0.05)
    assert read() == before
    calm = evaluate(model, (x, y), FGSM(), eps=0.05)
    assert record.counts["BROKEN"] == calm.counts["BROKEN"]
    if what in ("inference", "autocast"):  # which end with the attack, so that nothing is left
        assert record.counts == calm.counts
    else:
        assert record.counts["ROBUST"] == 0
        assert f"left {what} changed" in {e["message"] for e in record.errors}


def test_numbers_that_an_attack_drew_are_not_missing_after_it():
    model, x, y = linear_case(40)
    states = []

    @dataclass(frozen=True)
    class Draws(toys._Settings):
        turn: int

        def __call__(self, case):
            states.append((torch.rand(1).item(), np.random.rand(), random.random()))
            return case.x

    evaluate(model, (x, y), [Draws(1), Draws(2)], eps=0.05, tile=8, batch_size=8)
    assert len(states) == 10
    assert len(set(states)) == 1


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_an_attack_that_ends_the_process_leaves_its_samples_unknown(error):
    model, x, y = linear_case(12)

    @dataclass(frozen=True)
    class Ends(toys._Settings):
        def __call__(self, case):
            raise error

    record = evaluate(model, (x, y), Ends(), eps=0.05)
    assert record.unknown == 12
    assert record.errors[0]["message"].startswith(f"the attack ended the process: {type(error).__name__}")


def test_an_exit_of_the_caller_s_own_callback_is_the_caller_s():
    model, x, y = linear_case(20)

    told = []

    def leaves(event):
        if type(event).__name__ == "Progress" and event.queries and not told:
            told.append(event)
            raise SystemExit(7)

    @dataclass(frozen=True)
    class Slow(toys._Settings):
        def __call__(self, case):
            time.sleep(1.2 * TELL_EVERY_S)  # so that the callback is told from within the attack
            case.oracle.outputs(case.x)
            return case.x

    with pytest.raises(SystemExit, match="7"):
        evaluate(model, (x, y), Slow(), eps=0.1, on_event=leaves)
