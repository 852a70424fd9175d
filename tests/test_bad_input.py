"""Bad input is one line that says what to do, before anything is computed or written."""

import pytest
import torch
from robustkit_attacks.fgsm import FGSM
from torch import nn

from robustkit import UsageError, evaluate
from tests import toys
from tests.test_engine import linear_case


def bad_model(output):
    class Bad(nn.Module):
        def forward(self, x):
            return output(x)

    return Bad()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack": "pgdd"}, "did you mean pgd"),
        ({"attack": "pgd:stepz=3"}, "did you mean step"),
        ({"attack": "pgd:steps=three"}, "whole number"),
        ({"attack": "pgd:loss=mse"}, "must be one of"),
        ({"attack": FGSM}, "FGSM()"),
        ({"attack": []}, "autoattack"),
        ({"attack": "fgsm+fgsm"}, "twice"),
        ({"attack": "square", "norm": "l0", "eps": 3}, "does not work in l0"),
        ({"norm": "l3"}, "unknown norm"),
        ({"eps": 0}, "eps"),
        ({"eps": -1}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": 8}, "8/255"),
        ({"eps": "eight"}, "8/255"),
        ({"n": 0}, "choose 1 to"),
        ({"n": 10**6}, "choose 1 to"),
        ({"indices": [0, 0]}, "different"),
        ({"indices": "3-1"}, "0-199,400"),
        ({"indices": 5}, "0-199,400"),
        ({"batch_size": "64"}, "whole number"),
        ({"device": "meta"}, "not there"),
        ({"attack": "autoattack:version=rand"}, "standard"),
        ({"target": "cat"}, "least-likely"),
        ({"target": 5}, "class"),
        ({"outputs": "probs"}, "do not sum to 1"),
        ({"device": "gpu"}, "cpu"),
        ({"batch_size": 0}, "at least 1"),
        ({"model": "digits-cn"}, "did you mean digits-cnn"),
        ({"model": 3}, "nn.Module"),
        ({"model": bad_model(lambda x: x.flatten(1).softmax(1))}, "probabilities"),
        ({"model": bad_model(lambda x: x.flatten(1) / 0.0 * 0)}, "not finite"),
        ({"model": bad_model(lambda x: x)}, "shape"),
        ({"model": bad_model(lambda x: x.flatten(1).sum(1, keepdim=True))}, "one output"),
        ({"model": bad_model(lambda x: x.flatten(1)[:, :3])}, "labels go up to"),
        ({"model": "digits-cnn"}, "does not accept images"),
        ({"model": "digits-cnn", "data": "digitz"}, "did you mean digits"),
        ({"model": toys.Linear((1, 8, 8)), "data": "digits"}, "10 classes"),
        ({"data": "digits:splt=test"}, "did you mean split"),
        ({"data": 3}, "spec"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_that_says_what_to_do_and_writes_nothing(options, words, tmp_path):
    model, x, y = linear_case(20)
    y[0] = 4
    given = {"model": model, "data": (x, y), "attack": "fgsm", "eps": 0.1, "out": tmp_path / "run", **options}
    with pytest.raises(UsageError) as caught:
        evaluate(given.pop("model"), given.pop("data"), **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.rand(20, 1, 4, 4) * 255, "255"),
        (torch.rand(20, 8, 8, 1), "perm"),
        (torch.full((20, 1, 4, 4), torch.nan), "finite"),
        (torch.rand(19, 1, 4, 4), "label"),
        (torch.rand(20, 16), "shape"),
    ],
)
def test_images_that_are_no_images_are_refused(x, words):
    model, _, y = linear_case(20)
    with pytest.raises(UsageError, match=words):
        evaluate(model, (x, y), "fgsm", eps=0.1)


def test_a_late_nan_leaves_no_folder(tmp_path):
    _, x, y = linear_case(100)
    x[99] = 1.0

    class Late(toys.Linear):
        def forward(self, images):
            return super().forward(images) / (images.flatten(1).min(1).values < 1)[:, None]

    model = Late()
    with pytest.raises(UsageError, match="not finite"):
        evaluate(model, (x, y), "fgsm", eps=0.1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_one_s_own_is_checked_like_any_other():
    model, x, y = linear_case(20)

    class Own:
        name, classes = "own", 0

        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.y)

        def batch(self, indices):
            return self.x[list(indices)], self.y[list(indices)]

    assert evaluate(model, Own(x, y), "fgsm", eps=0.1).n == 20
    with pytest.raises(UsageError, match="own"):
        evaluate(model, Own(2 * x - 1, y), "fab", eps=0.1)
    with pytest.raises(UsageError, match="labels"):
        evaluate(model, Own(x, y - 5), "fgsm", eps=0.1)


def test_a_late_label_that_the_model_has_no_output_for_is_refused():
    model, x, y = linear_case(100)
    y[99] = 7
    with pytest.raises(UsageError, match="labels go up to 7"):
        evaluate(model, (x, y), "fgsm", eps=0.1)
