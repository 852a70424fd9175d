"""The doctor finds a wrong input by its evidence, says nothing where all is well, and leaves no trace."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.api import ModelCard
from robustkit.doctor import KINDS, diagnose, examine_input, settings, trials
from robustkit.doctor.settings import COLOUR, GREY, Setting
from robustkit.errors import UsageError
from robustkit.models.oracle import Network
from tests.toys import seeded

CLASSES, SHAPE = 6, (3, 8, 8)
IMAGENET, HALF = COLOUR[:2]


def prototypes(shape=SHAPE, seed=0):
    """One a class, of different brightness, so that a wrong contrast or range moves images to other classes."""
    brightness = torch.linspace(0.1, 0.6, CLASSES).view(-1, 1, 1, 1)
    return brightness + 0.3 * torch.rand(CLASSES, *shape, generator=seeded(seed))


def blobs(n=256, shape=SHAPE, noise=0.4, seed=1):
    """Images around one prototype a class; `noise` decides how many a nearest-prototype model gets right."""
    generator = seeded(seed)
    y = torch.randint(CLASSES, (n,), generator=generator)
    x = prototypes(shape)[y] + noise * torch.randn(n, *shape, generator=generator)
    return x.clamp(0, 1), y


class Nearest(nn.Module):
    """The nearest prototype by Euclidean distance, in images normalised by mean/std: it wants just these."""

    def __init__(self, mean_std=None, shape=SHAPE):
        super().__init__()
        wanted = Setting(applied=mean_std)(prototypes(shape))
        self.register_buffer("prototypes", wanted.flatten(1))

    def forward(self, x):
        return -(x.flatten(1)[:, None] - self.prototypes).square().mean(2) * 30


class Fed(nn.Module):
    """A model that is given changed images and whose outputs are changed."""

    def __init__(self, model, change=lambda x: x, outputs=lambda z: z):
        super().__init__()
        self.model, self.change, self.outputs = model, change, outputs

    def forward(self, x):
        return self.outputs(self.model(self.change(x)))


def kinds(diagnosis):
    return [finding.kind for finding in diagnosis.findings]


def the(diagnosis, kind="normalisation"):
    (message,) = [finding.message for finding in diagnosis.findings if finding.kind == kind]
    return message


# What it finds


def test_an_accurate_model_costs_one_look_and_gives_no_finding():
    x, y = blobs(noise=0.2)
    found = diagnose(Nearest(), x, y)
    assert found.healthy
    assert found.flags() == []
    assert [(trial.setting, trial.right.k, trial.right.n) for trial in found.trials] == [("as given", 64, 64)]


FAULTS = {
    "expects imagenet's mean/std": (Nearest(IMAGENET), "expect normalised input"),
    "expects [-1, 1]": (Nearest(HALF), "expect normalised input"),
    "normalises once too often": (Fed(Nearest(), Setting(applied=IMAGENET)), "normalise once too often"),
    "normalises twice": (
        Fed(Nearest(HALF), lambda x: Setting(applied=HALF)(Setting(applied=HALF)(x))),
        "once too often",
    ),
    "half in place of imagenet": (Fed(Nearest(IMAGENET), Setting(applied=HALF)), "wrong numbers: use mean="),
    "expects 0–255": (Fed(Nearest(), lambda x: x / 255), "0–255: multiply by 255"),
    "expects 0–255 less the mean": (Nearest(COLOUR[-1]), "expect normalised input"),
    "gets 0–255": (Fed(Nearest(), lambda x: x * 255), "255 times too large"),
    "expects BGR": (Fed(Nearest(), lambda x: x.flip(1)), "expect BGR"),
    "expects BGR, normalised": (Fed(Nearest(IMAGENET), lambda x: x.flip(1)), "expect BGR"),
    "expects width before height": (Fed(Nearest(), lambda x: x.transpose(2, 3)), "height and width swapped"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_wrong_input_is_found_with_the_accuracies_as_evidence(name):
    model, advice = FAULTS[name]
    x, y = blobs()
    right = int((Nearest()(x).argmax(1) == y).sum())
    given = int((model(x).argmax(1) == y).sum())
    assert right > given + 25  # else there is nothing to find
    found = diagnose(model, x, y)
    assert kinds(found) == ["normalisation"]
    assert advice in the(found)
    assert f"{100 * given / 256:.2f} %" in the(found)
    assert max(float(trial.right) for trial in found.trials) >= right / 256 - 0.05


def test_grey_images_have_settings_of_their_own():
    x, y = blobs(shape=(1, 8, 8))
    found = diagnose(Nearest(GREY[0], (1, 8, 8)), x, y)
    assert "mean=mnist" in the(found) or "fashion-mnist" in the(found)
    assert not any("BGR" in trial.setting for trial in found.trials)
    two = diagnose(Fed(Nearest(shape=(2, 8, 8)), lambda x: x / 255), *blobs(shape=(2, 8, 8)))
    assert "multiply by 255" in the(two)


def test_the_mean_and_std_of_the_card_are_tried():
    own = settings.MeanStd("odd", (0.2, 0.7, 0.4), (0.09, 0.6, 0.3))
    card = ModelCard("odd", mean=own.mean, std=own.std)
    x, y = blobs()
    without, with_card = diagnose(Nearest(own), x, y), diagnose(Nearest(own), x, y, card)
    best = max(with_card.trials, key=lambda trial: trial.right.k)
    assert best.setting == "the card's mean/std in front"
    right = int((Nearest(own)(Setting(applied=own)(x)).argmax(1) == y).sum())
    assert best.right.k == right > max(t.right.k for t in without.trials)
    assert "mean=0.2/0.7/0.4,std=0.09/0.6/0.3" in the(with_card)


def test_what_the_model_holds_is_undone_and_held_against_its_card():
    from robustkit.models.sources.normalized import normalized

    x, y = blobs()
    odd = ((0.1, 0.9, 0.3), (0.1, 0.3, 0.2))
    found = diagnose(normalized(Nearest(), *odd), x, y, ModelCard("odd", mean=IMAGENET.mean, std=IMAGENET.std))
    assert "the model's mean/std undone" in the(found)
    assert "mean=0.1/0.9/0.3" in the(found)
    assert any("the card says mean=0.485" in note for note in found.notes)
    twice = diagnose(normalized(normalized(Nearest(), *odd), *odd), x, y)
    assert any("more than once" in note for note in twice.notes)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (lambda z: z.softmax(1), "each row sums to 1: probabilities"),
        (lambda z: z.sigmoid(), "sigmoid"),
        (lambda z: (1e6 * z).softmax(1), "saturated softmax"),
        (lambda z: z * torch.nan, "NaN or infinite"),
    ],
)
def test_outputs_that_are_no_logits_are_a_finding_not_an_error(outputs, text):
    found = diagnose(Fed(Nearest(), outputs=outputs), *blobs(noise=0.2))
    assert text in the(found, "model-outputs")


def test_declared_probabilities_and_log_probabilities_are_fine():
    x, y = blobs(noise=0.2)
    assert diagnose(Fed(Nearest(), outputs=lambda z: z.softmax(1)), x, y, outputs="probs").healthy
    logs = diagnose(Fed(Nearest(), outputs=lambda z: z.log_softmax(1)), x, y)
    assert logs.healthy
    assert any("log-probabilities" in note for note in logs.notes)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (lambda y: y + 1, "labels one lower"),
        (lambda y: y - 1, "labels one higher"),
        (lambda y: torch.tensor([3, 1, 0, 5, 4, 2])[y], "labels renamed (0→2, 2→5, 3→0, 5→3)"),
    ],
)
def test_labels_numbered_otherwise_are_found(labels, text):
    x, y = blobs(noise=0.4)
    found = diagnose(Nearest(), x, labels(y))
    assert kinds(found) == ["labels"]
    assert text in the(found, "labels")


def test_a_model_that_guesses_is_told_so_and_nothing_is_invented():
    x, _ = blobs()
    found = diagnose(Nearest(), x, torch.randint(CLASSES, (256,), generator=seeded(7)))
    assert kinds(found) == ["chance"]
    assert "6 classes" in the(found, "chance")


def test_a_model_that_takes_one_class_for_another_has_no_renamed_labels():
    y = torch.arange(60) % 6
    swallowed = torch.where(y == 0, 1, y)
    assert trials.renaming(swallowed, y) == {}
    assert trials.renaming(torch.zeros_like(y), y) == {}
    assert trials.renaming(torch.tensor([0, 1, 2, 5, 4, 3])[y], y) == {3: 5, 5: 3}
    assert trials.renaming(y + 1, y) == {label: label + 1 for label in range(6)}


def test_batchnorm_without_its_running_statistics_is_found_in_train_mode():
    x, y = blobs(n=256, noise=0.4)
    shifted = nn.BatchNorm2d(3, affine=False)
    shifted.running_mean += 30
    of_batch = settings.MeanStd("batch", tuple(x.mean((0, 2, 3)).tolist()), tuple(x.std((0, 2, 3)).tolist()))
    fresh = nn.Sequential(shifted, Nearest(of_batch))
    found = diagnose(fresh.train(), x, y)
    assert "BatchNorm's running statistics" in the(found, "batch-norm")
    assert "batch-norm" not in kinds(diagnose(fresh.eval(), x, y))


def test_a_model_that_refuses_other_images_is_only_asked():
    class Strict(Nearest):
        def forward(self, x):
            if x.max() > 1 or x.min() < 0:
                raise ValueError("pixels must be in [0,1]\nreally")
            return super().forward(x)

    x, y = blobs()
    found = diagnose(Strict(), x, y, thorough=True)
    assert found.healthy
    assert {t.error for t in found.trials if t.setting == "pixels × 255"} == {"pixels must be in [0,1]"}


@pytest.mark.parametrize(
    ("model", "n", "text"),
    [
        (Nearest(), 0, "no images"),
        (Nearest(shape=(1, 3, 3)), 8, "does not accept images of shape (3, 8, 8)"),
        (Fed(Nearest(), outputs=lambda z: z[:, 0]), 8, r"logits of shape \(1, classes\)"),
    ],
)
def test_what_is_no_classifier_of_the_images_is_refused(model, n, text):
    x, y = blobs()
    with pytest.raises(UsageError, match=text.replace("(3, 8, 8)", r"\(3, 8, 8\)")):
        diagnose(model, x[:n], y[:n])


# Statistics


class Noisy(nn.Module):
    """A network behind noise that would drown if the pixels were 255 times as large."""

    def __init__(self, inner, *, declared):
        super().__init__()
        self.inner = inner
        if declared:
            self.randomised = True

    def forward(self, x):
        return self.inner(x + 0.3 * torch.randn_like(x))


class Direction(nn.Module):
    """Decides by what lies where, whatever the scale of the pixels."""

    def forward(self, x):
        return Nearest()(x / x.flatten(1).amax(1).clamp_min(1e-6).view(-1, 1, 1, 1))


@pytest.mark.parametrize("declared", [True, False])
def test_no_other_input_is_proposed_to_a_randomised_model(declared):
    x, y = blobs()
    model = Noisy(Direction(), declared=declared)
    given = (model(x).argmax(1) == y).sum()
    assert (model(255 * x).argmax(1) == y).sum() > given + 50  # the trap: without noise it is better
    found = diagnose(model, x, y, thorough=True)
    assert not kinds(found)
    assert [trial.setting for trial in found.trials] == ["as given"]
    assert any("the model is randomised, so no other setting of its input was tried" in note for note in found.notes)


def test_no_other_input_is_proposed_to_a_defended_model():
    x, y = blobs()
    model = Fed(Nearest(), lambda x: x / 255)
    assert kinds(diagnose(model, x, y)) == ["normalisation"]
    found = diagnose(model, x, y, defended=True)
    assert "normalisation" not in kinds(found)
    assert any("behind a defense, so no other setting" in note for note in found.notes)


@pytest.mark.parametrize("n", [5, 64])
def test_a_softmax_in_bfloat16_is_found_out_too(n):
    x, y = blobs()
    found = diagnose(Fed(Nearest(), outputs=lambda z: z.bfloat16().softmax(1)), x[:n], y[:n])
    assert "each row sums to 1" in next(f.message for f in found.findings if f.kind == "model-outputs")


def test_few_images_establish_nothing():
    x, y = blobs(n=14)
    found = diagnose(Fed(Nearest(), lambda x: x / 255), x, y)
    assert found.healthy
    assert any("too few" in note for note in found.notes)
    x, y = blobs(n=40, noise=0.4)
    assert kinds(diagnose(Fed(Nearest(), lambda x: x / 255), x, y)) == ["normalisation"]


def test_a_clear_trial_needs_the_margin_and_the_corrected_test_and_more_than_one_class():
    y = torch.arange(1000) % 10
    given = torch.zeros(1000, dtype=torch.bool)
    for flips, tests, clear in [
        (49, 1, False),
        (50, 1, False),
        (150, 1, True),
    ]:  # 50 of 1000: one constant class is 100
        right = given.clone()
        right[:flips] = True
        assert trials.paired("", right, given, y, tests).clear is clear
    right = torch.arange(1000) < 600
    half = torch.arange(1000) < 500
    assert trials.paired("", right, half, y, 26).clear
    assert trials.paired("", right[590:], half[590:], y[590:], 1).p == pytest.approx(2.0**-10)
    assert trials.paired("", right[590:], half[590:], y[590:], 26).p == pytest.approx(26 * 2.0**-10)
    constant = y == 3  # a model that always says 3
    assert not trials.paired("", constant, given, y, 1).clear


def test_the_chance_of_guessing_is_the_binomial_tail():
    stats = pytest.importorskip("scipy.stats")
    for k, n, chance in [(0, 10, 0.1), (3, 64, 0.001), (30, 256, 0.1), (256, 256, 0.5)]:
        assert trials.at_least(k, n, chance) == pytest.approx(stats.binom.sf(k - 1, n, chance), rel=1e-9)


def test_labels_without_a_pattern_raise_no_false_alarm():
    """Random models on random labels, and good models on labels of which a third is wrong: at most 1 in 100."""
    alarms, runs, shape = 0, 100, (3, 4, 4)
    for seed in range(runs):
        generator = seeded(1000 + seed)
        x, y = blobs(shape=shape, noise=0.3, seed=seed)
        wrong = torch.rand(256, generator=generator) < (1 if seed % 2 else 0.35)
        labels = torch.where(wrong, torch.randint(CLASSES, (256,), generator=generator), y)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)) if seed % 4 == 1 else Nearest(shape=shape)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=generator)
        found = diagnose(model, x, labels, thorough=seed % 3 == 0)
        alarms += bool({"normalisation", "labels"} & set(kinds(found)))
    assert alarms <= runs // 100


def test_the_corrected_test_keeps_its_level_when_settings_are_no_better():
    """Settings that flip images by a fair coin: with ALPHA at 1e-3 for 13 at a time, none in 500 or so runs."""
    generator = np.random.default_rng(0)
    clear = 0
    y = torch.arange(256) % 10
    for _ in range(500):
        given = torch.from_numpy(generator.random(256) < 0.6)
        settings_right = [torch.from_numpy(generator.random(256) < 0.6) for _ in range(13)]
        clear += any(trials.paired("", right, given, y, 26).clear for right in settings_right)
    assert clear <= 2


@pytest.mark.parametrize(
    ("setting", "better", "worse", "large", "stays"),
    [
        (Setting(applied=COLOUR[0], undone=COLOUR[1]), 1, 3, False, True),  # one mean/std for another: worth few points
        (Setting(applied=COLOUR[0], undone=COLOUR[1]), 1, 12, False, False),
        (Setting(applied=COLOUR[0], undone=COLOUR[1]), 1, 3, True, False),
        (Setting(applied=COLOUR[0]), 1, 3, False, False),
        (Setting(applied=COLOUR[0]), 4, 2, False, True),
    ],
)
def test_the_first_images_drop_what_is_clearly_no_better(setting, better, worse, large, stays, monkeypatch):
    if large:
        monkeypatch.setattr("robustkit.models.examination.SMALL_IMAGE", 0)
    x, y = blobs(n=64)
    bench = trials.Bench(Network(Nearest(), 16, torch.device("cpu")), lambda a, b: (x[a:b], y[a:b]), 64)
    given = torch.arange(64) < 48
    bench.right[trials.GIVEN] = given
    bench.right[setting] = given ^ (torch.arange(64) < worse) ^ (torch.arange(64) >= 64 - better)
    assert (setting in bench.survivors([setting])) == stays


class Counted(Nearest):
    def __init__(self, mean_std=None, shape=SHAPE):
        super().__init__(mean_std, shape)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("noise", "large", "most"),
    [(0.2, False, 64), (0.2, True, 64), (0.5, True, 5 * 64), (0.5, False, 18 * 64)],
)
def test_the_cost_is_a_few_hundred_forwards_and_fewer_of_large_images(noise, large, most, monkeypatch):
    if large:
        monkeypatch.setattr("robustkit.models.examination.SMALL_IMAGE", 0)
    model = Counted()
    x, y = blobs(n=2000, noise=noise)
    found = examine_input(Network(model, 16, torch.device("cpu")), lambda a, b: (x[a:b], y[a:b]), 1000)
    assert found.healthy
    assert model.seen <= most


# No trace


def test_nothing_of_the_callers_changes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, CLASSES))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    x, y = blobs(noise=0.3)
    images = x.clone()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(3)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    for model[1].training in (False, True):
        modes[2] = model[1].training
        diagnose(model, x, y, thorough=True)
        assert [part.training for part in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, images)
    assert (random.random(), np.random.random()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_json_is_plain_and_says_what_was_tried():
    x, y = blobs()
    data = json.loads(json.dumps(diagnose(Nearest(IMAGENET), x, y).to_json(), allow_nan=False))
    assert data["healthy"] is False
    assert data["findings"][0]["kind"] in KINDS
    assert data["trials"][0]["setting"] == "as given"
    assert {"accuracy", "better", "worse", "p", "clear", "error"} < set(data["trials"][1])
