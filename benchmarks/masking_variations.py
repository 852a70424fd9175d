"""Masks that the audit's first rules did not see, in variations: none robust, each a kind of fault of its own.

Gradients that reach few pixels, or have wrong signs; hard decisions behind a smooth decoy; answers that are remembered;
another path off the 8-bit grid, while gradients are recorded, in large batches; activations that jump; inner loops.
`python -m benchmarks.audit broken --half variations`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import kit
from benchmarks.masking_zoo import Around, Broken, base, one_hot, seeded

MNIST, CIFAR = "mnist_lenet5_std", "cifar10_resnet20_std"


class Scales(torch.autograd.Function):
    """The identity, whose backward pass is multiplied by something of the gradient's shape."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def drawn(x, seed=11):
    """Uniform numbers of an image's shape, always the same."""
    return torch.rand(x.shape[1:], generator=seeded(seed)).expand_as(x)


def reaching(one_in):
    """Gradients reach one pixel in so many."""

    def change(x):
        first = drawn(x).flatten(1).argsort(1)[:, : x[0].numel() // one_in]
        return Scales.apply(x, torch.zeros_like(x).flatten(1).scatter(1, first, 1).view_as(x))

    return change


def by_image(x):
    """Gradients reach every seventh pixel, another one for each image."""
    number = (x.detach().flatten(1).sum(1) * 97).long() % 7
    place = torch.arange(x[0].numel())[None] % 7
    return Scales.apply(x, (place == number[:, None]).view_as(x).to(x))


def wrong_signs(share):
    """This share of a gradient's signs is wrong."""
    return lambda x: Scales.apply(x, 1 - 2 * (drawn(x, 12) < share).to(x))


def wrong_where_dark(x):
    """The sign is wrong in every pixel that is darker than its image's mean."""
    return Scales.apply(x, 1 - 2 * (x < x.mean((1, 2, 3), keepdim=True)).to(x))


class Inside(nn.Module):
    """A network whose activations are replaced, by position."""

    def __init__(self, network, change):
        super().__init__()
        self.layers, self.change = nn.ModuleList(network.children()), change

    def forward(self, x):
        for layer in self.layers:
            x = self.change(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x


def wrong_features(v):
    """A third of the features' gradients have the wrong sign."""
    return Scales.apply(v.relu(), 1 - 2 * (drawn(v, 13) < 0.33).to(v))


def jumping(v):
    """A unit that is on is on by a good deal more, which no gradient tells (Goodfellow's jump, on a trained net)."""
    step = 0.3 * v.detach().abs().flatten(1).mean(1).view(-1, *[1] * (v.dim() - 1))
    return torch.where(v > 0, v + step, torch.zeros_like(v))


class Decoy(nn.Module):
    """Hard decisions of a hidden network, plus a little of something smooth."""

    def __init__(self, network, smooth, height):
        super().__init__()
        self.hidden, self.smooth, self.height = [network], smooth, height

    def forward(self, x):
        return 10 * one_hot(self.hidden[0](x.detach())) + self.height * self.smooth(x)


def linear_decoy(x):
    return x.flatten(1) @ torch.randn(x[0].numel(), 10, generator=seeded(14)) / x[0].numel() ** 0.5


def quadratic_decoy(x):
    return (x.flatten(1) @ torch.randn(x[0].numel(), 10, generator=seeded(15)) / x[0].numel() ** 0.5).square()


def blurred(network):
    return lambda x: network(F.avg_pool2d(x, 5, 1, 2))


class Votes(nn.Module):
    """The share of fixed noisy copies that a network decides for each class, and a little of its blurred logits."""

    def __init__(self, network, copies=7):
        super().__init__()
        self.hidden, self.copies = [network], copies

    def forward(self, x):
        noise = 0.02 * torch.randn(self.copies, *x.shape[1:], generator=seeded(16))
        votes = torch.stack([one_hot(self.hidden[0]((x + one).detach())) for one in noise]).mean(0)
        return 8 * votes + 0.05 * blurred(self.hidden[0])(x)


class Remembers(nn.Module):
    """Answers for images near one that was asked before as for that; the gradient is the network's."""

    def __init__(self, network, near):
        super().__init__()
        self.network, self.near, self.known = network, near, []

    def forward(self, x):
        z = self.network(x)
        out = z.detach().clone()
        for row, image in enumerate(x.detach()):
            for old, answer in self.known:
                if (old - image).abs().amax() <= self.near:
                    out[row] = answer
                    break
            else:
                self.known.append((image.clone(), out[row].clone()))
        return out + (z - z.detach())


def remembers_outside(network, cells=6):
    """The same by a coarse key, in a closure that no copy of the module parts from."""
    table = {}

    class Closed(nn.Module):
        def forward(self, x):
            z = network(x)
            out = z.detach().clone()
            keys = (F.adaptive_avg_pool2d(x.detach(), 3) * cells).round().flatten(1).tolist()
            for row, key in enumerate(map(tuple, keys)):
                out[row] = table.setdefault(key, out[row].clone())
            return out + (z - z.detach())

    return Closed()


class Switches(nn.Module):
    """One network by `when`, else the same behind a change of its images."""

    def __init__(self, network, when, change):
        super().__init__()
        self.hidden, self.when, self.change = [network], when, change

    def forward(self, x):
        wanted = self.when(x).to(x)
        return wanted * self.hidden[0](self.change(x)) + (1 - wanted) * self.hidden[0](x)


def off_grid(tolerance):
    return lambda x: ((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) > tolerance)[:, None]


def recorded(x):
    return torch.full((len(x), 1), float(x.requires_grad and torch.is_grad_enabled()))


def crowded(most):
    return lambda x: torch.full((len(x), 1), float(len(x) > most))


def coarse(x):
    return (x * 6).round() / 6


def turned(x):
    return x.flip(3).roll(3, 2)


class AntiAdversary(nn.Module):
    """Moves the image towards its own decision first (Alfarra et al. 2022, arXiv:2103.14347), on a trained network."""

    def __init__(self, network, step=0.15):
        super().__init__()
        self.hidden, self.step = [network], step

    def forward(self, x):
        moved = torch.zeros_like(x)
        for _ in range(2):
            at = (x.detach() + moved).requires_grad_(True)
            with torch.enable_grad():
                z = self.hidden[0](at)
                (grad,) = torch.autograd.grad(F.cross_entropy(z, z.argmax(1), reduction="sum"), at)
            moved = moved - self.step * grad.sign()
        return self.hidden[0](x + moved)


def of(make, network="digits"):
    """A mask around one of three networks, and the radius that leaves next to nothing of it."""
    if network == "digits":
        return lambda: make(base()).eval(), base, "digits", 0.3
    data = kit.mnist if network == MNIST else kit.cifar10
    eps = 0.25 if network == MNIST else 4 / 255
    return lambda: make(kit.model(network)).eval(), lambda: kit.model(network), data, eps


def variation(name, make, network="digits"):
    made, bare, data, eps = of(make, network)
    return Broken(name, made, bare, eps, data)


def sealed(before):
    return lambda network: Around(network, before, sealed=True)


VARIATIONS = (
    variation("gradients reach one pixel in 36", sealed(reaching(36))),
    variation("gradients reach one pixel in 12, MNIST", sealed(reaching(12)), MNIST),
    variation("gradients reach every seventh pixel, by image", sealed(by_image)),
    variation("hard decisions, linear decoy", lambda n: Decoy(n, linear_decoy, 0.5)),
    variation("hard decisions, blurred decoy, MNIST", lambda n: Decoy(n, blurred(n), 0.02), MNIST),
    variation("hard decisions, quadratic decoy, CIFAR-10", lambda n: Decoy(n, quadratic_decoy, 0.1), CIFAR),
    variation("votes of fixed copies, blurred decoy", Votes),
    variation("a quarter of the signs wrong", sealed(wrong_signs(0.25))),
    variation("40 % of the signs wrong, CIFAR-10", sealed(wrong_signs(0.4)), CIFAR),
    variation("wrong signs in dark pixels, MNIST", sealed(wrong_where_dark), MNIST),
    variation("wrong signs among features", lambda n: Inside(n, wrong_features)),
    variation("answers kept for neighbours", lambda n: Remembers(n, 0.3)),
    variation("answers kept by a coarse key, in a closure", remembers_outside),
    variation("another path off the grid, MNIST", lambda n: Switches(n, off_grid(1e-3), coarse), MNIST),
    variation("another path a fifth of a level off", lambda n: Switches(n, off_grid(0.2), turned)),
    variation("another path while gradients are recorded", lambda n: Switches(n, recorded, turned)),
    variation("a noisy path while gradients are recorded, CIFAR-10",
              lambda n: Switches(n, recorded, lambda x: (x + 0.1 * (drawn(x, 17) - 0.5)).clamp(0, 1)), CIFAR),
    variation("another answer in batches above 12", lambda n: Switches(n, crowded(12), turned)),
    variation("another answer in batches above 20, CIFAR-10", lambda n: Switches(n, crowded(20), coarse), CIFAR),
    variation("activations that jump", lambda n: Inside(n, jumping)),
    variation("anti-adversary layer", AntiAdversary),
    variation("anti-adversary layer, MNIST", lambda n: AntiAdversary(n, 0.1), MNIST),
)  # fmt: skip
