"""Small networks for images as rows: autoencoders, decoders, denoisers, and how they are fitted; seeded, in seconds."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with ReLUs between them."""
    made: list[nn.Module] = []
    for before, after in pairwise(sizes):
        made += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def filled(sizes: Sequence[int], known: dict[str, Tensor], name: str) -> nn.Sequential:
    """Such layers with weights from a file, as `named` wrote them."""
    network = layers(sizes)
    network.load_state_dict({key.removeprefix(f"{name}."): known[key] for key in known if key.startswith(f"{name}.")})
    return network.requires_grad_(False)


def named(network: nn.Module, name: str) -> dict[str, Tensor]:
    """A network's weights, for a file."""
    return {f"{name}.{key}": value.detach().clone() for key, value in network.state_dict().items()}


def fitted(
    make: Callable[[], nn.Module], rows: Tensor, loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor], *,
    epochs: int, seed: int,
) -> nn.Module:  # fmt: skip
    """A network after some epochs of Adam (rate 0.002 falling to 0, batches of 64) down loss(network, rows, noise)."""
    noise = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
    descent = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs)
    for _ in range(epochs):
        for some in torch.split(torch.randperm(len(rows), generator=noise), 64):
            descent.zero_grad()
            loss(network, rows[some], noise).backward()  # type: ignore[no-untyped-call]
            descent.step()
        schedule.step()
    return network.eval().requires_grad_(False)
