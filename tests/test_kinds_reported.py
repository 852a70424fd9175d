"""Models as users of neighbouring toolkits reported them: each gives its number, or one line that says what to do.

The reports are named beside each kind. The plain network is linear, so that its robust accuracy is known.
"""

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit import UsageError
from robustkit.doctor import diagnose
from tests import toys
from tests.linear import between, distances, lin
from tests.test_models_as_found import EPS, NET, TRUTH, Around, X, Y, evaluate, statuses

BINARY, X2, Y2 = lin(classes=2, n=24, wrong=3)
EPS2 = between(distances(BINARY, X2, Y2, "linf"))
TRUTH2 = [
    "WRONG" if d == 0 else "BROKEN" if d <= EPS2 else "ROBUST" for d in distances(BINARY, X2, Y2, "linf").tolist()
]


def around(forward, net=None):
    """A module that returns `forward` of its network and its images."""
    return type("Reported", (Around,), {"forward": lambda self, x: forward(self.net, x)})(net)


# ART 28, mmsegmentation 2441: dropout that is on at test time, by hand or by a train() of its own.
class DropoutOnInForward(Around):
    def __init__(self, p=0.0):
        super().__init__()
        self.drop = nn.Dropout(p)

    def forward(self, x):
        self.drop.train()
        return self.net(self.drop(x))


class DropoutOnAlways(DropoutOnInForward):
    def train(self, mode=True):
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x):
        return self.net(self.drop(x))


@pytest.mark.parametrize("kind", [DropoutOnInForward, DropoutOnAlways])
def test_dropout_that_stays_on_is_the_models_own_and_said(kind):
    record = evaluate(kind())
    assert record.samples["status"].tolist() == TRUTH  # it drops nothing
    (flag,) = [flag for flag in record.flags if flag["kind"] == "training-mode"]
    assert "stay in training mode after eval() (drop: Dropout)" in flag["message"]
    noisy = evaluate(kind(0.05), attack="fgsm", draws=3)
    assert {flag["kind"] for flag in noisy.flags} >= {"randomised", "training-mode"}
    assert noisy.robust_accuracy is not None
    assert not noisy.errors


def test_dropout_that_stays_on_hides_no_attack_that_changes_the_mode():
    class Trains(toys._Settings):
        def __call__(self, case):
            case.oracle.module.net.train()
            return case.x

    for kind in (DropoutOnInForward, DropoutOnAlways):
        record = evaluate(kind(), attack=Trains())
        assert record.unknown == record.n - TRUTH.count("WRONG")
        assert "changed the model" in str(record.errors)


def test_batch_normalisation_that_stays_in_training_mode_is_refused():
    class Normalises(Around):
        def __init__(self):
            super().__init__(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), NET))

    with pytest.raises(UsageError, match="depend on the other images of its batch"):
        evaluate(Normalises())


@dataclass
class Output:
    logits: Tensor
    attentions: Tensor


REFUSED = {  # what is returned, and what must be said
    # auto-attack 83, ss-ood 16
    "a tuple": (lambda net, x: (net(x), x), "it in a module whose forward returns model(x)[0] alone"),
    "a tuple of two rows": (lambda net, x: (x.flatten(1), net(x)), "forward returns model(x)[0] or model(x)[1] alone"),
    # torchattacks 193 and 201, foolbox 736
    "a dict": (lambda net, x: {"loss": None, "logits": net(x)}, "forward returns model(x)['logits'] alone"),
    "a dataclass": (lambda net, x: Output(net(x), x), "forward returns model(x).logits alone"),
    "nothing": (lambda net, x: None, "it returned NoneType"),
    "an array": (lambda net, x: net(x).detach().numpy(), "returned ndarray; return a tensor"),
    "axes of length 1": (lambda net, x: net(x)[:, :, None, None], "without its axes of length 1: .flatten(1)"),
    "no classes": (lambda net, x: net(x)[:, :0], ", 0)"),
    "a map of labels": (lambda net, x: net(x)[:, :, None, None].expand(-1, -1, 8, 8), ", 5, 8, 8)"),
    "decisions": (lambda net, x: net(x).argmax(1), ",), decisions; return the logits that they are made of"),
    # foolbox 360 and 664, torchattacks 134, ART 306
    "one logit": (lambda net, x: net(x)[:, :1], "at least 2: return torch.cat([-z, z], 1) of the logit z"),
    "one logit, flat": (lambda net, x: net(x)[:, 0], "take it as a column ([:, None]) and return torch.cat([-z, z]"),
    "one sigmoid": (lambda net, x: net(x)[:, :1].sigmoid(), "return torch.cat([1 - p, p], 1) and say outputs='probs'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_nearly_logits_is_refused_with_what_to_do(kind):
    forward, said = REFUSED[kind]
    for ask in (evaluate, lambda model: diagnose(model, X, Y)):
        with pytest.raises(UsageError, match=re.escape(said)) as refused:
            ask(around(forward))
        assert "\n" not in str(refused.value)


def score(net, x):
    """One logit for two classes, as a network for a binary task gives it: the plain network's decision."""
    z = net(x)
    return z[:, 1:] - z[:, :1]


ADVICE = {
    "a logit": (lambda net, x: torch.cat([-score(net, x), score(net, x)], 1), "logits"),
    "a probability": (lambda net, x: torch.cat([1 - score(net, x).sigmoid(), score(net, x).sigmoid()], 1), "probs"),
}


@pytest.mark.parametrize("kind", ADVICE)
def test_the_advice_for_one_score_gives_the_number_of_the_two_classes(kind):
    forward, outputs = ADVICE[kind]
    assert {"WRONG", "BROKEN", "ROBUST"} == set(TRUTH2)
    model = around(forward, BINARY)
    assert statuses(model, (X2, Y2), attack="apgd:steps=20", eps=EPS2, outputs=outputs) == TRUTH2


# tensorflow/tpu 594, mlcommons/inference 550: 1,001 classes, the first of them a background.
class Background(Around):
    def forward(self, x):
        return torch.cat([x.new_full((len(x), 1), -9.0), self.net(x)], 1)


class Named(torch.utils.data.Dataset):
    classes = ("a", "b", "c", "d", "e")

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], int(Y[i])


def test_a_background_class_is_named_where_the_classes_are_known_and_found_where_they_are_not():
    with pytest.raises(UsageError, match=r"6 outputs but the dataset has 5 classes; .* return model\(x\)\[:, 1:\]"):
        evaluate(Background(), Named())
    assert statuses(around(lambda net, x: Background(net)(x)[:, 1:]), Named()) == TRUTH
    net, x, y = lin(n=100, wrong=10)
    flags = robustkit.evaluate(Background(net), (x, y), "fgsm", eps=EPS).flags
    assert any(flag["kind"] == "labels" and "labels one higher" in flag["message"] for flag in flags)


def under(context):
    def run():
        with context():
            return statuses(NET)

    return run


def in_default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        return statuses(around(lambda net, x: net(x - torch.tensor([0.0, 0, 0]).view(1, 3, 1, 1).float())))
    finally:
        torch.set_default_dtype(torch.float32)


RIGHT = {
    # ART 498, advertorch 79: an evaluation loop under no_grad
    "no_grad around it": under(torch.no_grad),
    # auto-attack 51: mixed precision around it (a network's own is its own)
    "autocast around it": under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    # tntorch 4: a package that sets the default type when it is imported
    "another default type": in_default_float64,
    # auto-attack 66: views of images that lie otherwise in memory
    "views of channels_last": lambda: statuses(
        around(lambda net, x: net(x.view(len(x), -1).view(x.shape))), (X.to(memory_format=torch.channels_last), Y)
    ),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_surrounds_it_changes_no_number(kind):
    assert RIGHT[kind]() == TRUTH


# pytorch 61519, vision 4164, captum 837: hooks of a library for attributions on a network with in-place layers.
def test_a_backward_hook_before_an_in_place_layer_is_torchs_own_reason_and_query_attacks_run():
    model = around(lambda net, x: net(x).add_(0.0))
    model.net.register_full_backward_hook(lambda module, inputs, outputs: None)
    record = evaluate(model, attack="(fgsm)+(square:queries=100)")
    (flag,) = [flag for flag in record.flags if flag["kind"] == "no-gradient"]
    assert "is a view and is being modified inplace" in flag["message"]
    assert record.counts["BROKEN"] > 0
    assert record.robust_accuracy is not None


# advertorch 32, pytorch 1204: the number for "no label" of other tasks.
@pytest.mark.parametrize(("label", "said"), [(-1, "they must be 0 or more"), (255, "the model has 5 outputs")])
def test_a_number_for_no_label_is_refused(label, said):
    with pytest.raises(UsageError, match=said):
        evaluate(NET, (X, torch.cat([Y[:-1], torch.tensor([label])])))
