import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Outputs
from robustkit.errors import NoGradientError
from robustkit.models.oracle import Counts, ExpectedOracle, ModelOracle, Network, Noise

CPU = torch.device("cpu")


class Cnn(nn.Module):
    """Two convolutions with BatchNorm statistics that are not the default ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Noisy(nn.Module):
    """Adds noise from all three global generators."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        return z * (1 + 0.1 * torch.randn(z.shape)) + random.random() + float(np.random.rand())


class Ensemble(nn.Module):
    """Three heads on one backbone, offered as members, surrogates and in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(3))
        self.backbone_calls = 0

    def forward_with_members(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.backbone_calls += 1
        features = self.backbone(x)
        members = torch.stack([head(features) for head in self.heads])
        return members.amax(0), members

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_members(x)[0]

    def members(self) -> list[nn.Module]:
        return [nn.Sequential(self.backbone, head) for head in self.heads]

    def surrogates(self) -> dict[str, nn.Module]:
        return {"first": nn.Sequential(self.backbone, self.heads[0])}


class Detached(nn.Module):
    """No gradient reaches the images, at the outputs or, with weights that want one, at the input."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.fc = where, nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).detach() if self.where == "outputs" else self.fc(x.detach().flatten(1))


def made(module: nn.Module) -> nn.Module:
    """The module with random weights and statistics, in eval mode and frozen."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.3
            tensor.copy_(drawn.abs() + 0.5 if "var" in name else drawn)
    return module.eval().requires_grad_(False)


def oracle(module: nn.Module, n: int = 10, tile: int = 4, **settings) -> ModelOracle:
    network = Network(module, tile, CPU, **settings)
    return ModelOracle(network, Counts(n, CPU), torch.arange(n), 5)


def images(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 4, 4, generator=generator), torch.randint(0, 5, (n,), generator=generator)


def cross_entropy(y: Tensor):
    return lambda outputs: F.cross_entropy(outputs.logits, y, reduction="none")


@pytest.mark.parametrize("tile", [1, 4, 8, 16])
@pytest.mark.parametrize("module", [Cnn, Ensemble])
def test_in_tiles_no_row_depends_on_the_others_bit_for_bit(module, tile):
    asked = oracle(made(module()), tile=tile)
    x, y = images()
    together = asked.gradient(x, cross_entropy(y))
    for part in (torch.tensor([3]), torch.tensor([9, 0, 4]), torch.arange(7), torch.arange(10).flip(0)):
        alone = asked.select(part).gradient(x[part], cross_entropy(y[part]))
        assert torch.equal(asked.select(part).outputs(x[part]).logits, together.outputs.logits[part])
        assert torch.equal(alone.outputs.logits, together.outputs.logits[part])
        assert torch.equal(alone.loss, together.loss[part])
        assert torch.equal(alone.grad, together.grad[part])
        if together.outputs.members is not None:
            assert torch.equal(alone.outputs.members, together.outputs.members[:, part])


@pytest.mark.parametrize("tile", [3, 16])
def test_the_gradient_is_that_of_plain_autograd_on_the_whole_batch(tile):
    module = made(Cnn())
    x, y = images()
    leaf = x.clone().requires_grad_(True)
    logits = module(leaf)
    loss = F.cross_entropy(logits, y, reduction="none")
    expected = torch.autograd.grad(loss.sum(), leaf)[0]
    found = oracle(module, tile=tile).gradient(x, cross_entropy(y))
    assert torch.allclose(found.outputs.logits, logits, atol=1e-5)
    assert torch.allclose(found.loss, loss, atol=1e-5)
    assert torch.allclose(found.grad, expected, atol=1e-5)
    assert not any(t.requires_grad for t in (found.outputs.logits, found.loss, found.grad, x))


def test_several_losses_take_one_forward_and_a_backward_each():
    asked = oracle(made(Cnn()))
    x, y = images()

    def losses(outputs: Outputs) -> Tensor:
        return torch.stack([F.cross_entropy(outputs.logits, y, reduction="none"), outputs.logits[:, 0]])

    found = asked.gradient(x, losses)
    assert found.loss.shape == (2, 10)
    assert found.grad.shape == (2, 10, 3, 4, 4)
    assert asked.counts.forwards.tolist() == [1] * 10
    assert asked.counts.backwards.tolist() == [2] * 10
    for i, single in enumerate((cross_entropy(y), lambda outputs: outputs.logits[:, 0])):
        assert torch.equal(found.grad[i], asked.gradient(x, single).grad)


def test_a_single_loss_in_a_stack_keeps_its_axis():
    x, y = images()
    found = oracle(made(Cnn())).gradient(x, lambda outputs: cross_entropy(y)(outputs)[None])
    assert found.loss.shape == (1, 10)
    assert found.grad.shape == (1, 10, 3, 4, 4)


def test_members_outputs_come_with_the_ensembles_from_one_pass_of_the_backbone():
    module = made(Ensemble())
    asked = oracle(module, tile=16)
    x, _ = images()
    found = asked.gradient(x, lambda outputs: outputs.members[:, :, 0])
    assert module.backbone_calls == 1
    assert found.outputs.members.shape == (3, 10, 5)
    assert torch.equal(asked.outputs(x).members, found.outputs.members)
    for i, member in enumerate(asked.members):
        alone = member.gradient(x, lambda outputs: outputs.logits[:, 0])
        assert torch.allclose(alone.outputs.logits, found.outputs.members[i], atol=1e-5)
        assert torch.allclose(alone.grad, found.grad[i], atol=1e-5)


def test_a_loss_of_the_members_and_the_logits_together_has_both_gradients():
    asked = oracle(made(Ensemble()))
    x, _ = images()
    both = asked.gradient(x, lambda o: o.logits[:, 1] + o.members[2, :, 0])
    parts = [asked.gradient(x, lambda o: o.logits[:, 1]), asked.gradient(x, lambda o: o.members[2, :, 0])]
    assert torch.allclose(both.grad, parts[0].grad + parts[1].grad, atol=1e-5)


def test_members_and_surrogates_are_counted_for_the_same_samples():
    asked = oracle(made(Ensemble())).select(torch.tensor([1, 7]))
    x, y = (t[[1, 7]] for t in images())
    assert len(asked.members) == 3
    assert list(asked.surrogates) == ["first"]
    asked.members[0].outputs(x)
    asked.surrogates["first"].gradient(x, cross_entropy(y))
    assert asked.counts.forwards.tolist() == [0, 2, 0, 0, 0, 0, 0, 2, 0, 0]
    assert asked.counts.backwards.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    plain = oracle(made(Cnn()))
    assert not plain.members
    assert not plain.surrogates


def test_passes_are_counted_for_each_sample_through_any_selection():
    asked = oracle(made(Cnn()))
    x, y = images()
    asked.outputs(x)
    some = asked.select(torch.arange(10) % 2 == 0)
    some.outputs(x[::2])
    few = some.select(torch.tensor([4, 1]))  # samples 8 and 2
    few.gradient(x[[8, 2]], cross_entropy(y[[8, 2]]))
    assert asked.counts.forwards.tolist() == [2, 1, 3, 1, 2, 1, 2, 1, 3, 1]
    assert asked.counts.backwards.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_a_sample_that_is_selected_twice_is_counted_twice():
    asked = oracle(made(Cnn()))
    rows = torch.tensor([3, 3, 5])
    asked.select(rows).outputs(images()[0][rows])
    assert asked.counts.forwards.tolist() == [0, 0, 0, 2, 0, 1, 0, 0, 0, 0]


def test_progress_is_told_at_every_call():
    calls = []
    counts = Counts(10, CPU, lambda: calls.append(1))
    asked = ModelOracle(Network(made(Cnn()), 4, CPU), counts, torch.arange(10), 5)
    x, y = images()
    asked.outputs(x)
    asked.gradient(x, cross_entropy(y))
    assert len(calls) == 2


def test_no_samples_are_no_error():
    asked = oracle(made(Cnn())).select(torch.zeros(10, dtype=torch.bool))
    x, y = (t[:0] for t in images())
    assert asked.outputs(x).logits.shape == (0, 5)
    assert asked.gradient(x, cross_entropy(y)).grad.shape == x.shape


@pytest.mark.parametrize("where", ["outputs", "input"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_without_a_gradient_is_named_and_never_gives_zeros(where, frozen):
    module = made(Detached(where)).requires_grad_(not frozen)
    x, y = images()
    with pytest.raises(NoGradientError, match="detached"):
        oracle(module).gradient(x, cross_entropy(y))


def test_a_model_declared_as_not_differentiable_is_not_asked():
    network = Network(made(Cnn()), 4, CPU)
    asked = ModelOracle(network, Counts(10, CPU), torch.arange(10), 5, differentiable=False)
    x, y = images()
    with pytest.raises(NoGradientError):
        asked.gradient(x, cross_entropy(y))
    assert asked.counts.forwards.sum() == 0


def test_a_loss_that_is_flat_has_a_gradient_of_zero():
    x, _ = images()
    found = oracle(made(Cnn())).gradient(x, lambda o: (o.logits * 0).sum(1))
    assert torch.equal(found.grad, torch.zeros_like(x))


def test_an_expectation_averages_outputs_losses_and_gradients_and_counts_every_draw():
    module = Noisy(made(Cnn())).eval()
    x, y = images()
    k = 6
    asked = oracle(module, noise=Noise(0, "a")).eot(k)
    assert isinstance(asked, ExpectedOracle)
    found = asked.gradient(x, cross_entropy(y))
    single = oracle(module, noise=Noise(0, "a"))
    draws = [single.gradient(x, cross_entropy(y)) for _ in range(k)]
    assert not torch.equal(draws[0].outputs.logits, draws[1].outputs.logits)
    assert torch.allclose(found.outputs.logits, torch.stack([d.outputs.logits for d in draws]).mean(0), atol=1e-5)
    assert torch.allclose(found.loss, torch.stack([d.loss for d in draws]).mean(0), atol=1e-5)
    assert torch.allclose(found.grad, torch.stack([d.grad for d in draws]).mean(0), atol=1e-5)
    assert asked.base.counts.forwards.tolist() == asked.base.counts.backwards.tolist() == [k] * 10


def test_an_expectation_can_be_selected_and_changed_and_one_draw_is_the_model_itself():
    asked = oracle(made(Ensemble()))
    assert asked.eot(1) is asked
    expected = asked.eot(5)
    assert (expected.classes, expected.randomised, expected.differentiable) == (5, False, True)
    expected.select(torch.tensor([2])).outputs(images()[0][[2]])
    assert asked.counts.forwards.tolist() == [0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    assert expected.eot(1) is asked
    assert [member.k for member in expected.members] == [5, 5, 5]
    assert expected.surrogates["first"].k == 5
    assert expected.module is asked.module


def test_the_mean_of_many_draws_does_not_depend_on_the_other_rows():
    asked = oracle(made(Cnn())).eot(20)
    x, _ = images()
    together = asked.outputs(x).logits
    for part in (torch.tensor([9]), torch.tensor([2, 7, 5])):
        assert torch.equal(asked.select(part).outputs(x[part]).logits, together[part])


def test_a_randomised_models_calls_leave_every_global_generator_alone():
    asked = oracle(Noisy(made(Cnn())).eval(), noise=Noise(0, "a"))
    x, y = images()

    def states() -> tuple[Tensor, str, object]:
        return torch.random.get_rng_state(), str(np.random.get_state()[1:]), random.getstate()

    before = states()
    first = asked.outputs(x).logits
    asked.gradient(x, cross_entropy(y))
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)
    again = oracle(Noisy(made(Cnn())).eval(), noise=Noise(0, "a")).outputs(x).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, oracle(Noisy(made(Cnn())).eval(), noise=Noise(1, "a")).outputs(x).logits)


def test_the_generators_are_restored_even_if_the_model_fails():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3), np.random.rand(3), random.random()
            raise ValueError("as planned")

    before = torch.random.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="as planned"):
        oracle(Failing(), noise=Noise(0)).outputs(images()[0])
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


def test_a_model_that_offers_reseed_is_seeded_for_every_call():
    class Reseeded(nn.Module):
        seeds: list[int] = []  # noqa: RUF012

        def reseed(self, seed: int) -> None:
            self.seeds.append(seed)

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :5]

    oracle(Reseeded(), tile=4, noise=Noise(0)).outputs(images()[0])
    assert len(set(Reseeded.seeds)) == 3


def test_probabilities_become_logarithms_and_a_zero_stays_finite():
    class Softmaxed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            p = x.flatten(1)[:, :5].softmax(1)
            return torch.where(x.flatten(1)[:, :1] > 0.5, torch.eye(5)[0], p)

    x, y = images()
    found = oracle(Softmaxed(), probabilities=True).outputs(x).logits
    expected = x.flatten(1)[:, :5].log_softmax(1)
    hard = x.flatten(1)[:, 0] > 0.5
    assert hard.any()
    assert torch.allclose(found[~hard], expected[~hard], atol=1e-6)
    assert found.isfinite().all()
    assert (found[hard].argmax(1) == 0).all()
    assert oracle(Softmaxed(), probabilities=True).gradient(x, cross_entropy(y)).grad.isfinite().all()


def test_a_float64_model_is_called_in_float64_and_answers_in_the_images_type():
    module = made(Cnn()).double()
    x, y = images()
    asked = oracle(module, dtype=torch.float64)
    found = asked.gradient(x, cross_entropy(y))
    assert found.outputs.logits.dtype == asked.outputs(x).logits.dtype == torch.float32
    assert found.grad.dtype == torch.float32
    leaf = x.double().requires_grad_(True)
    expected = torch.autograd.grad(F.cross_entropy(module(leaf), y, reduction="sum"), leaf)[0]
    assert torch.allclose(found.grad.double(), expected, rtol=1e-6, atol=1e-8)


def test_asking_records_no_graph_and_works_under_no_grad():
    x, y = images()
    asked = oracle(made(Cnn()))
    with torch.no_grad():
        found = asked.gradient(x, cross_entropy(y))
    assert found.grad.abs().sum() > 0
    assert not asked.outputs(x.requires_grad_(True)).logits.requires_grad
