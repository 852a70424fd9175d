"""The engine: what the judge accepts, what decides a status, and that the caller's world is left alone."""

import random
import sys

import numpy as np
import pytest
import torch
from robustkit_attacks.fgsm import FGSM
from robustkit_attacks.pgd import PGD
from torch import nn

import robustkit
from robustkit import UsageError, evaluate
from tests import toys


def linear_case(n=40, **options):
    model = toys.Linear(**options)
    x = torch.rand(n, 1, 4, 4, generator=toys.seeded(3))
    return model, x, model(x).argmax(1).detach()


def small_autoattack(**options):
    from robustkit_attacks.autoattack import AutoAttack

    return AutoAttack(steps=12, queries=60, targets=3, **options)


@pytest.mark.parametrize("cheater", toys.CHEATERS, ids=lambda c: type(c).__name__)
def test_a_cheater_makes_no_sample_broken_or_robust_and_is_named(cheater):
    model, x, y = linear_case(24)
    before = model.weight.clone()
    record = evaluate(model, (x, y), cheater, eps=0.05)
    if isinstance(cheater, toys.RunsOutOfMemory):
        assert record.counts["BROKEN"] == 0
        assert record.unknown >= 1
    else:
        assert record.unknown == 24, record.counts
    assert record.robust_accuracy is None
    assert {e["attack"] for e in record.errors} == {type(cheater).__name__.lower()}
    assert torch.equal(model.weight, before)


def test_a_valid_break_by_a_later_attack_outweighs_an_earlier_violation():
    model, x, y = linear_case()
    alone = evaluate(model, (x, y), PGD(steps=20), eps=0.1)
    after = evaluate(model, (x, y), [toys.Raises(), PGD(steps=20)], eps=0.1)
    assert after.counts["BROKEN"] == alone.counts["BROKEN"] > 0
    assert after.unknown == alone.counts["ROBUST"] > 0


def test_out_of_memory_halves_the_samples_in_flight_and_changes_no_result():
    model, x, y = linear_case(64)

    class Attack(toys._Settings):
        def __call__(self, case):
            if len(case.x) > 16:
                raise torch.OutOfMemoryError("on purpose")
            return FGSM()(case)

    hungry = evaluate(model, (x, y), Attack(), eps=0.05, tile=8)
    plain = evaluate(model, (x, y), FGSM(), eps=0.05, tile=8)
    assert hungry.to_frame()["status"].equals(plain.to_frame()["status"])
    assert not hungry.errors


def test_a_continued_run_computes_what_was_unknown_again(tmp_path):
    model, x, y = linear_case()
    broken_machine = [True]

    class Flaky(toys._Settings):
        def __call__(self, case):
            if broken_machine[0]:
                raise OSError("on purpose")
            return FGSM()(case)

    first = evaluate(model, (x, y), [FGSM("margin"), Flaky()], eps=0.03, out=tmp_path / "run")
    assert first.unknown > 0
    broken_machine[0] = False
    second = evaluate(model, (x, y), [FGSM("margin"), Flaky()], eps=0.03, out=tmp_path / "run")
    calm = evaluate(model, (x, y), [FGSM("margin"), Flaky()], eps=0.03)
    assert second.robust_accuracy is not None
    assert not second.errors
    assert second.to_frame().equals(calm.to_frame())
    assert second.attacks_frame().equals(calm.attacks_frame())


def test_a_dataset_that_augments_at_random_is_refused():
    model, x, y = linear_case(20)

    class Jitter(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return (x[i] + 0.01 * torch.rand(1)).clamp(0, 1), y[i]

    with pytest.raises(UsageError, match="augmentation"):
        evaluate(model, Jitter(), "fgsm", eps=0.1)


def test_the_precision_that_the_caller_chose_comes_back():
    model, x, y = linear_case(8)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            evaluate(model, (x, y), "fgsm", eps=0.1)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_model_whose_answers_depend_on_the_batch_is_refused():
    model, x, y = linear_case(40)
    coupled = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), model)
    with pytest.raises(UsageError, match="other images of its batch"):
        evaluate(coupled, (x, y), "fgsm", eps=0.1)


def test_a_failing_callback_of_the_caller_is_the_caller_s_failure():
    model, x, y = linear_case(20)

    def fails(event):
        if type(event).__name__ == "Progress" and event.queries:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        evaluate(model, (x, y), "square:queries=20", eps=0.1, on_event=fails)


def test_a_model_that_is_moved_by_its_own_forward_or_called_in_inference_mode_is_evaluated():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.Linear()

        def forward(self, x):
            if not hasattr(self, "pos"):
                self.register_buffer("pos", torch.zeros(1))
            return self.inner(x) + self.pos

    _, x, y = linear_case(20)
    model = Late()
    with torch.inference_mode():
        record = evaluate(model, (x, y), "fgsm", eps=0.1)
    assert not record.errors
    assert record.robust_accuracy is not None


def test_a_run_killed_before_its_first_file_or_between_its_last_ones_can_be_continued(tmp_path):
    model, x, y = linear_case(20)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".job.json.abc.part").write_text("{")
    first = evaluate(model, (x, y), "fgsm", eps=0.1, out=folder)
    (folder / "run.json").unlink()
    (folder / "samples.parquet").unlink()
    again = evaluate(model, (x, y), "fgsm", eps=0.1, out=folder)
    assert again.to_frame().equals(first.to_frame())
    assert sorted(p.name for p in folder.iterdir()) == [
        "attacks.parquet", "job.json", "journal", "report.html", "report.md", "run.json", "samples.parquet",
        "tables.csv", "tables.tex",
    ]  # fmt: skip


def test_a_truncated_journal_file_is_named(tmp_path):
    model, x, y = linear_case(20)
    evaluate(model, (x, y), "fgsm", eps=0.1, out=tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    (tmp_path / "run/journal/shard-00000-01.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="shard-00000-01"):
        evaluate(model, (x, y), "fgsm", eps=0.1, out=tmp_path / "run")


def test_the_caller_s_world_is_left_as_it_was():
    model, x, y = linear_case()
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), model)
    model.train()
    model[1].eval()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    model[2].bias.requires_grad_(False)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    traced = sys.gettrace()

    evaluate(model, (x, y), PGD(steps=5), eps=0.1)

    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert sys.gettrace() is traced
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert model[2].weight.requires_grad
    assert not model[2].bias.requires_grad
    assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_randomised_model_is_detected_and_voted_on():
    model, x, y = linear_case()
    record = evaluate(toys.Randomised(model), (x, y), "pgd:steps=5,eot=3", eps=0.1)
    assert record.randomised
    assert "majority vote over 10 fresh draws" in record.rule
    passes = record.attacks_frame().set_index("outcome")["forwards"]
    assert set(passes["survived"]) == {3 * 5}
    assert set(passes["broken"]) <= {3, 6, 12, 15}  # a broken sample leaves after step 1, 2 or 4
    again = evaluate(toys.Randomised(model), (x, y), "pgd:steps=5,eot=3", eps=0.1)
    assert again.to_frame().equals(record.to_frame())


@pytest.mark.parametrize("wrapper", [toys.HardLabels, toys.Detached])
def test_without_gradients_gradient_attacks_establish_nothing_and_query_attacks_run(wrapper):
    model, x, y = linear_case()
    record = evaluate(wrapper(model), (x, y), PGD(), eps=0.1)
    assert record.robust_accuracy is None
    assert {"no-gradient", "insufficient"} <= {flag["kind"] for flag in record.flags}
    assert not record.unknown  # the attack broke no rule
    assert "no gradient flows" in record.why_no_robust_accuracy
    queried = evaluate(wrapper(model), (x, y), "square:queries=50", eps=0.3)
    assert queried.robust_accuracy is not None
    assert wrapper is toys.HardLabels or queried.counts["BROKEN"] > 0


def test_an_ensemble_with_a_shared_backbone_shows_its_members():
    model = toys.SharedBackbone()
    x = torch.rand(20, 1, 4, 4, generator=toys.seeded())
    y = model(x).argmax(1)
    seen = {}

    class Looks(toys._Settings):
        def __call__(self, case):
            gradient = case.oracle.gradient(case.x, lambda o: o.members.logsumexp(2).sum(0))
            seen.update(members=len(case.oracle.members), shape=gradient.outputs.members.shape)
            member = case.oracle.members[0].outputs(case.x).logits
            assert torch.allclose(member, gradient.outputs.members[0], atol=1e-6)
            return case.threat.project(case.x, case.x + gradient.grad.sign())

    record = evaluate(model, (x, y), Looks(), eps=0.02)
    assert seen == {"members": 3, "shape": (3, 20, 5)}
    assert not record.errors


def test_two_classes_run_through_the_whole_suite():
    model = toys.Linear(classes=2)
    x = torch.rand(30, 1, 4, 4, generator=toys.seeded())
    record = evaluate(model, (x, model(x).argmax(1)), small_autoattack(), eps=0.05)
    assert record.robust_accuracy is not None
    assert not record.errors


@pytest.mark.parametrize("classes", [3, 4])
def test_few_classes_run_through_plus(classes):
    model = toys.Linear(classes=classes)
    x = torch.rand(10, 1, 4, 4, generator=toys.seeded())
    record = evaluate(model, (x, model(x).argmax(1)), small_autoattack(version="plus"), eps=0.05)
    assert record.robust_accuracy is not None
    assert not record.errors


def test_large_images_run():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 7))
    x = torch.rand(3, 3, 224, 224, generator=toys.seeded())
    record = evaluate(model, (x, model(x).argmax(1)), small_autoattack(), eps=1 / 255)
    assert record.job["tile"] == 16
    assert record.robust_accuracy is not None


def test_linear_models_are_broken_exactly_where_they_can_be():
    model, _, _ = linear_case()
    x = 0.3 + 0.4 * torch.rand(200, 1, 4, 4, generator=toys.seeded(9))  # the box is out of reach
    logits = model(x).detach()
    y = logits.argmax(1)
    w = model.weight.detach()
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (w[y][:, None] - w[None]).abs().sum(2)
    radius = torch.where(lengths > 0, gaps / lengths.clamp_min(1e-9), torch.inf).amin(1)
    eps = float(radius.median())
    clear = (radius - eps).abs() > 1e-4 * eps
    for attack in (PGD(steps=40, loss="margin", restarts=3), "apgd:loss=dlr-targeted,targets=4"):
        record = evaluate(model, (x, y), attack, eps=eps)
        broken = torch.from_numpy((record.samples["status"] == "BROKEN").copy())
        assert torch.equal(broken[clear], (radius < eps)[clear]), attack


def test_images_at_the_ends_of_the_range_move():
    model = toys.Linear(shape=(1, 4, 4))
    x = (torch.rand(60, 1, 4, 4, generator=toys.seeded(2)) > 0.5).float()
    y = model(x).argmax(1)
    record = evaluate(model, (x, y), small_autoattack(), eps=0.3, save_adversarial=True)
    assert record.counts["BROKEN"] > 10
    moved = np.abs(record.adversarial["adv"] - x.numpy()[record.adversarial["index"]])
    assert (moved.reshape(len(moved), -1).max(1) > 0).all()


@pytest.mark.parametrize("target", [2, "least-likely", "random"])
def test_a_targeted_run_breaks_a_sample_only_by_its_target(target):
    model, x, y = linear_case(60)
    record = evaluate(model, (x, y), "pgd:steps=30", eps=0.3, target=target, save_adversarial=True)
    frame = record.to_frame().set_index("index")
    assert record.counts["BROKEN"] > 0
    decided = model(torch.from_numpy(record.adversarial["adv"])).argmax(1).numpy()
    assert (decided == frame.loc[record.adversarial["index"], "target"].to_numpy()).all()
    assert (frame["target"] != frame["label"]).all()
    if target == 2:
        assert len(frame) == int((y != 2).sum())
        assert record.flags[0]["kind"] == "left-out"


def test_a_targeted_suite_breaks_no_more_than_an_untargeted_one():
    model, x, y = linear_case(60)
    targeted = evaluate(model, (x, y), small_autoattack(), eps=0.15, target="random")
    free = evaluate(model, (x, y), small_autoattack(), eps=0.15)
    assert 0 < targeted.counts["BROKEN"] <= free.counts["BROKEN"]
    assert not targeted.errors


def test_quantised_adversarials_are_judged_in_a_column_of_their_own():
    model, x, y = linear_case(60)
    x = (x * 255).round() / 255
    y = model(x).argmax(1)
    record = evaluate(model, (x, y), "pgd", eps=0.6 / 255, quantize="8bit")
    assert record.counts["BROKEN"] > 0
    # No image on the 8-bit grid other than x is within 0.6/255 of it: rounding undoes every adversarial.
    assert set(record.samples["quantized_status"]) == {"ROBUST"}
    assert float(record.quantized_robust_accuracy) == 1
    generous = evaluate(model, (x, y), "pgd", eps=8 / 255, quantize="8bit")
    assert (generous.samples["quantized_status"] == "BROKEN").sum() > 0


def test_a_minimal_attack_may_end_beyond_eps_and_its_sample_stands():
    model, x, y = linear_case(20)
    record = evaluate(model, (x, y), "fab:targets=4,steps=40", norm="l2", eps=1e-4)
    assert record.counts["ROBUST"] == 20
    assert (record.attacks["distance"] > 1e-4).all()
    assert (record.attacks["margin"] <= 0).all()


def test_a_minimal_attack_that_finds_nothing_has_no_distance():
    x = torch.rand(5, 1, 4, 4, generator=toys.seeded())
    model = toys.Linear(scale=0.0)  # nothing an image can do changes the decision
    model.bias.data[2] = 1.0
    record = evaluate(model, (x, model(x).argmax(1)), "fab:steps=3", eps=0.1)
    assert np.isnan(record.attacks["distance"]).all()


def test_passes_are_counted_for_every_sample():
    model, x, y = linear_case(20)
    record = evaluate(model, (x, y), "fgsm", eps=1e-6)
    assert (record.attacks["forwards"] == 1).all()
    assert (record.attacks["backwards"] == 1).all()
    record = evaluate(model, (x, y), "square:queries=30", eps=1e-6)
    assert (record.attacks["forwards"] == 31).all()


def test_arrays_callables_and_torch_datasets_are_taken():
    model, x, y = linear_case(20)
    first = evaluate(model, (x, y), "fgsm", eps=0.1)
    arrays = evaluate(model, (x.numpy(), y.numpy()), "fgsm", eps=0.1)
    function = evaluate(lambda images: model(images), (x, y), "fgsm", eps="0.1")
    items = evaluate(model, torch.utils.data.TensorDataset(x, y), "fgsm", eps=0.1)
    for other in (arrays, function, items):
        assert other.to_frame().equals(first.to_frame())
    assert float(first.robust_accuracy) == first.counts["ROBUST"] / 20
    assert first.robust_accuracy.low < float(first.robust_accuracy) < first.robust_accuracy.high
    assert "robust accuracy" in first.summary()
    assert "robust accuracy" in first._repr_html_()


def test_another_backward_pass_is_another_run(tmp_path):
    class Turned(toys.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return 2 * logits.detach() - logits

    x, y = torch.rand(20, 1, 4, 4, generator=toys.seeded(0)), torch.zeros(20, dtype=torch.int64)
    first = evaluate(toys.Linear(), (x, y), "fgsm", eps=0.1, out=tmp_path / "run")
    again = evaluate(toys.Linear(), (x, y), "fgsm", eps=0.1)
    assert first.job["id"] == again.job["id"]
    assert len(first.job["gradient_signs"]) == 8 * 16 // 4
    with pytest.raises(UsageError, match=r"holds another run.*gradient_signs"):
        evaluate(Turned(), (x, y), "fgsm", eps=0.1, out=tmp_path / "run")
    hard = evaluate(toys.HardLabels(toys.Linear()), (x, y), "square:queries=2", eps=0.1, doctor=False)
    assert hard.job["gradient_signs"] == ""


SEEDS = """
import random
import numpy as np, torch
from torch import nn

torch.manual_seed(1), np.random.seed(1), random.seed(1)


def net():
    random.random(), np.random.rand()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def images(): return np.random.rand(8, 1, 8, 8).astype(np.float32), np.arange(8)
"""


def test_what_comes_by_a_spec_leaves_the_caller_s_generators_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeding_on_import.py").write_text(SEEDS)

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()[1:]), random.getstate()

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = state()
    model = "python/seeding_on_import.net"
    robustkit.load_model(model)
    robustkit.load_dataset("python/seeding_on_import.images")
    assert state() == before
    evaluate(model, "python/seeding_on_import.images", "fgsm", eps=0.1, doctor=False)
    evaluate(f"ensemble/({model})+(digits-cnn)", "digits", "fgsm", eps=0.1, n=8, doctor=False)
    assert state() == before
    one, other = robustkit.load_model(f"ensemble/({model})+({model})")[0].members()
    assert not torch.equal(one[1].weight, other[1].weight)  # members draw on, as they do without a spec
