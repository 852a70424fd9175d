"""Defensive distillation as it is: what looks robust is a gradient that is zero, and a loss on the logits undoes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robustkit
from robustkit.models.sources.zoo import Zoo

pytestmark = pytest.mark.skipif("digits-distillation" not in Zoo().names(), reason="digits-distillation is not bundled")
T, EPS, N = 20, 0.1, 150


class Divided(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) / T


@pytest.fixture(scope="module")
def student():
    return robustkit.load_model("digits-distillation")[0]


def zero_share(network):
    x, y = robustkit.load_dataset("digits").batch(range(N))
    x = x.to(next(network.parameters()).dtype).requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)
    return float((grad == 0).flatten(1).all(1).double().mean())


def robust(network, attack):
    return float(robustkit.evaluate(network, "digits", attack, eps=EPS, n=N, doctor=False).robust_accuracy)


def test_the_gradient_of_the_cross_entropy_is_zero_and_that_of_logits_over_t_is_not(student):
    assert zero_share(student) > 0.5
    assert zero_share(Divided(student)) == 0
    assert zero_share(robustkit.load_model("digits-cnn")[0]) == 0


def test_fgsm_is_blind_and_the_same_step_on_logits_over_t_is_not(student):
    blind, seeing = robust(student, "fgsm"), robust(Divided(student), "fgsm")
    assert blind > seeing + 0.2


def test_a_loss_on_the_logits_finds_no_more_robustness_than_in_an_undefended_network(student):
    blind, margin = robust(student, "pgd:steps=20"), robust(student, "pgd:steps=20,loss=margin")
    undefended = robust(robustkit.load_model("digits-cnn")[0], "pgd:steps=20,loss=margin")
    assert blind > margin + 0.2
    assert abs(robust(Divided(student), "pgd:steps=20") - margin) < 0.1
    assert margin < undefended + 0.1


def test_the_teacher_s_images_break_the_student(student):
    x, y = robustkit.load_dataset("digits").batch(range(N))
    teacher = Divided(robustkit.load_model("digits-teacher")[0]).eval()
    record = robustkit.evaluate(
        teacher, (x, y), "pgd:steps=20", eps=EPS, save_adversarial=True, doctor=False
    )  # fmt: skip
    adv = x.clone()
    adv[torch.from_numpy(record.adversarial["index"])] = torch.from_numpy(record.adversarial["adv"])
    transferred = float((student(adv).argmax(1) == y).double().mean())
    assert transferred < robust(student, "fgsm") - 0.1
