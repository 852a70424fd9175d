"""A linear classifier, whose robust accuracy inside the box has a closed form: the oracle for right numbers.

For a class k, moving pixel i by m towards it gains |w_i|·m, w = W_k − W_y, as far as the box leaves room. The nearest
image that k wins spends this where it gains most: all pixels alike in Linf, in proportion to |w_i| in L2, the largest
|w_i| first in L1. The nearest adversarial of a sample is the nearest over k.
"""

import math

import torch
from torch import nn

from tests.toys import seeded


def lin(shape=(3, 8, 8), classes=5, n=40, seed=0, wrong=5):
    """Flatten + Linear with random weights, n random images, and its own decisions as labels but for `wrong`."""
    draws = seeded(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    x = torch.rand(n, *shape, generator=draws)
    x[:, :, :, :1] = x[:, :, :, :1].round()  # some pixels have room on one side only
    y = network(x).argmax(1).detach()
    y[:wrong] = (y[:wrong] + 1) % classes
    return network.eval(), x, y


def distances(network, x, y, norm):
    """The distance of each sample's nearest adversarial in the box, float64: 0 if it is wrong already, inf if none."""
    weight, bias = (parameter.detach().double() for parameter in (network[1].weight, network[1].bias))
    x = x.flatten(1).double()
    z = x @ weight.T + bias
    found = torch.full_like(z, torch.inf)
    for k in range(len(weight)):
        w = weight[k] - weight[y]
        need = z.gather(1, y[:, None])[:, 0] - z[:, k]
        size, room = w.abs(), torch.where(w > 0, 1 - x, x)
        nearest = {"linf": _linf, "l2": _l2, "l1": _l1}[norm](size, room, need)
        nearest[need <= 0] = 0
        nearest[(size * room).sum(1) < need] = torch.inf
        found[:, k] = torch.where(y == k, torch.inf, nearest)
    return found.amin(1)


def between(found, share=0.5):
    """An eps with about this share of the finite distances below it, in the widest gap there: no sample is on edge."""
    some = found[(found > 0) & found.isfinite()].sort().values
    middle = int(share * len(some))
    low, high = max(0, middle - len(some) // 5), min(len(some) - 1, middle + len(some) // 5 + 1)
    near = some[low : high + 1]
    at = int((near[1:] / near[:-1]).argmax())
    return float((near[at] * near[at + 1]).sqrt())


def _least(gain, most, need):
    """The least t in [0, most] at which a growing gain(t) reaches what is needed, by bisection."""
    low, high = torch.zeros_like(need), most
    for _ in range(80):
        middle = (low + high) / 2
        enough = gain(middle) >= need
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _linf(size, room, need):
    return _least(lambda t: (size * torch.minimum(t[:, None], room)).sum(1), torch.ones_like(need), need)


def _l2(size, room, need):
    most = (room / size.clamp_min(1e-300)).amax(1)
    t = _least(lambda t: (size * torch.minimum(t[:, None] * size, room)).sum(1), most, need)
    return torch.minimum(t[:, None] * size, room).norm(dim=1)


def _l1(size, room, need):
    order = size.argsort(1, descending=True)
    size, room = size.gather(1, order), room.gather(1, order)
    before = (size * room).cumsum(1) - size * room
    spent = torch.minimum(((need[:, None] - before) / size.clamp_min(1e-300)).clamp_min(0), room)
    return spent.sum(1)
