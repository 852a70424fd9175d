"""The pretended device itself: it raises what a real one raises, counts what makes a host wait, and goes away."""

import copy
import pickle

import pytest
import torch
from torch import nn

from robustkit.testing import pretended


def test_within_there_is_one_device_and_after_it_none():
    assert not torch.xpu.is_available()
    with pretended("xpu") as log:
        assert torch.xpu.is_available()
        assert torch.xpu.device_count() == 1
        assert not torch.cuda.is_available()
        x = torch.ones(2, device="xpu")
        assert (x.device, x.is_xpu, x.is_cpu, x.is_cuda) == (torch.device("xpu", 0), True, False, False)
        assert torch.ones(2).device.type == "cpu"
        with pytest.raises(ValueError, match="pretended already"), pretended("cuda"):
            pass
    assert not torch.xpu.is_available()
    assert log.waited == 0
    with pytest.raises(ValueError, match="one of cuda, mps, xpu"), pretended("tpu"):
        pass


def test_what_mixes_devices_raises_and_numbers_without_a_dimension_do_not():
    with pretended("cuda"):
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="device"):
                mixed()
        with pytest.raises(RuntimeError, match="same device"):
            there[torch.tensor([0])] = here[:1]
        assert (there + torch.tensor(2.0)).device.type == "cuda"
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            here.to("cuda:1")


WAITS = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x.sum()),
    "float": lambda x: float(x.sum()),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "a mask": lambda x: x[x > 1],
    "a mask that is set": lambda x: x.__setitem__(x > 1, 0.0),
    "an index of the CPU": lambda x: x[torch.tensor([1])],
    "a list": lambda x: x[[0, 1]],
    "a number as an index": lambda x: x[x.argmax()],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "a format": lambda x: f"{x.sum():.1f}",
    "a copy": lambda x: torch.empty(3).copy_(x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.long)),
}
FREE = {
    "arithmetic": lambda x: (x * 2 + 1).sqrt().sum(),
    "where": lambda x: torch.where(x > 1, x, 0.0),
    "an index": lambda x: x[x.argsort()],
    "an index that is set": lambda x: x.__setitem__(x.argsort(), x.clone()),
    "a slice": lambda x: x[1:],
    "a shape": lambda x: (x.shape, len(x), x.dtype, x.device, x.dim()),
    "a loop over rows": lambda x: [row * 2 for row in x],
    "topk": lambda x: x.topk(2).values,
    "one_hot": lambda x: nn.functional.one_hot(x.long(), 5),
    "a number that is made": lambda x: torch.full((2,), 3.0, device=x.device),
    "another type": lambda x: x.half(),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_makes_the_host_wait_is_counted_by_its_line(what):
    with pretended("cuda") as log:
        x = torch.tensor([1.0, 2.0, 3.0]).to("cuda")
        WAITS[what](x)
    assert log.waited == 1, log.syncs
    assert next(iter(log.syncs)).startswith("tests/test_pretended.py:")


@pytest.mark.parametrize("what", FREE)
def test_what_does_not_is_not(what):
    with pretended("cuda") as log:
        x = torch.tensor([1.0, 2.0, 3.0]).to("cuda")
        FREE[what](x)
    assert log.waited == 0, log.syncs
    assert log.uploads.total() == 1


def test_mps_has_no_float64_and_no_products_of_64_bits():
    with pretended("mps"):
        x = torch.ones(2, device="mps")
        for wide in (
            x.double,
            lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
            lambda: torch.ones(2).double().to("mps"),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                wide()
        with pytest.raises(RuntimeError, match="overflow"):
            x.long() * 0xD2511F53
    with pretended("cuda"):
        assert torch.ones(2, device="cuda").double().dtype == torch.float64


def test_a_network_moves_there_trains_is_copied_stored_and_comes_back():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    reference, x, y = copy.deepcopy(net), torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1])

    def trained(net, x, y):
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
        return {name: value.cpu() for name, value in net.state_dict().items()}

    here = trained(reference, x, y)
    with pretended("cuda") as log:
        net = net.to("cuda")
        assert {each.device.type for each in net.state_dict().values()} == {"cuda"}
        log.syncs.clear()
        first = next(net.parameters())
        assert net.to("cuda") is net
        assert next(net.parameters()) is first  # as a real device keeps it
        x, y = x.to("cuda"), y.to("cuda")
        there = trained(net, x, y)
        assert all(line.startswith("tests/test_pretended.py") for line in log.syncs)
        again = copy.deepcopy(net)
        assert isinstance(next(again.parameters()), nn.Parameter)
        assert torch.equal(again.eval()(x), net.eval()(x))
        stored = pickle.dumps(net.state_dict()["0.weight"])
        seen = []
        leaf = torch.ones(2, device="cuda", requires_grad=True)
        (leaf * 2).register_hook(lambda grad: seen.append(grad.device.type))
        double = leaf * 2
        double.register_hook(lambda grad: seen.append(grad.device.type))
        double.sum().backward()
        assert (leaf.is_leaf, leaf.grad.device.type, seen) == (True, "cuda", ["cuda"])
        net.cpu()
    assert type(next(net.parameters()).data) is torch.Tensor
    assert torch.equal(pickle.loads(stored), here["0.weight"])
    for name, value in here.items():
        assert torch.equal(value, there[name]), name
