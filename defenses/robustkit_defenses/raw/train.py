"""Trains the learned parts of `raw-isp`: `python -m robustkit_defenses.raw.train plain5 --images ./photographs`.

On one machine the same command gives the same bytes. The RAW is made from photographs by undoing a camera's steps
(`robustkit_defenses.raw.camera`). F's loss is that of arXiv:2112.09219's released code: the mean squared error on RAW,
of the image and of the image plus Gaussian noise whose strength is one normal number for each image times 0.1. G learns
images from RAW with a sensor's noise. Theirs is 100 epochs on 46,839 pairs of a real camera; ours is minutes on a CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.numerics import devices
from robustkit_defenses.raw import weights
from robustkit_defenses.raw.camera import Camera, with_sensor_noise
from robustkit_defenses.raw.networks import NETWORKS
from robustkit_defenses.raw.photos import Photos, pairs, read, split

_CHECK_SEED = 1_000_003  # of the patches that a card's PSNR is measured on: the same whatever the training's seed


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: Adam, whose rate falls to 0 as half a cosine. `noise` is that of F's second loss."""

    steps: int = 600
    batch: int = 32
    rate: float = 1e-3
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.rate <= 0 or self.noise < 0:
            raise UsageError("raw.train: steps and batch are at least 1, rate above 0, noise at least 0")


class StepDone(NamedTuple):
    """Progress: the step just finished (from 1), of how many, and its loss."""

    step: int
    steps: int
    loss: float


def train(
    name: str, sources: Sequence[Photos], plan: Plan, on_event: Callable[[StepDone], None] = lambda event: None
) -> nn.Module:
    """A part trained from scratch, in eval mode; the global generators are left as they were.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in NETWORKS:
        raise UsageError(f"raw.train: there is no part {name!r}; there are: {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = NETWORKS[name]().train()
    generator, camera = torch.Generator().manual_seed(plan.seed), Camera()
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.rate)
    for step in range(plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * (1 + math.cos(math.pi * step / plan.steps)) / 2
        finished, raw = pairs(sources, plan.batch, camera, generator)
        if name == "isp":
            loss = mse_loss(network(with_sensor_noise(raw, generator)), finished)
        else:
            noisy = finished + noise_of_one_scale(finished, plan.noise, generator)
            loss = mse_loss(network(finished), raw) + mse_loss(network(noisy), raw)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        on_event(StepDone(step + 1, plan.steps, loss.item()))
    return network.eval()


def noise_of_one_scale(x: Images, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of standard deviation |s|·sigma, s one standard normal number for each image; not clipped."""
    scale = torch.randn(len(x), 1, 1, 1, generator=generator)
    return scale * sigma * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def quality(name: str, network: nn.Module, sources: Sequence[Photos], n: int = 256) -> float:
    """The mean PSNR in dB, over `n` patches, of what a part makes of noise-free input: F's RAW, G's images."""
    finished, raw = pairs(sources, n, Camera(), torch.Generator().manual_seed(_CHECK_SEED))
    given, due = (raw, finished) if name == "isp" else (finished, raw)
    return float(psnr(network(given), due).mean())


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, for values in [0,1]."""
    return -10 * (devices.wide(x) - devices.wide(y)).square().flatten(1).mean(1).clamp_min(1e-12).log10()


def make(name: str, asked: Sequence[str], plan: Plan, folder: Path, on_event: Callable[[StepDone], None]) -> float:
    """Train a part and write its weights and its card; returns the card's PSNR.

    Raises:
        UsageError: for sources that cannot be read, or fewer than 10 photographs, which leaves none to check on.
    """
    sources = [read(source) for source in asked]
    kept, held = split(sources)
    if not held:
        raise UsageError("raw.train: give a source of at least 10 photographs: a tenth is held out to measure PSNR on")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads round by their number
    try:
        network = train(name, kept, plan, on_event)
        measured = quality(name, network, held)
    finally:
        torch.set_num_threads(threads)
    weights.save(name, network, _card(name, asked, sources, plan, measured), folder)
    return measured


def _card(name: str, asked: Sequence[str], sources: Sequence[Photos], plan: Plan, measured: float) -> dict[str, Any]:
    # A file or folder stands by its name only: where it lay on one machine tells nobody anything.
    shown = [source if source in ("sklearn", "foolbox") else Path(source).name for source in asked]
    changed = {key: value for key, value in asdict(plan).items() if value != getattr(Plan(), key)}
    options = [f"--images {source}" for source in shown] + [f"--{key} {value}" for key, value in changed.items()]
    return {
        "what": "G: packed RAW to RGB" if name == "isp" else "F: RGB to packed RAW",
        "data": [source.facts() for source in sources],
        "held_out": "the last tenth of each source of 10 or more, at most 100 photographs",
        "recipe": {"optimiser": "Adam, half a cosine", **asdict(plan)},
        "camera": asdict(Camera()),
        "psnr_db": round(measured, 2),
        "psnr_of": "256 held-out 32×32 patches, noise-free input, mean over patches",
        "command": " ".join(["python -m robustkit_defenses.raw.train", name, *options]),
        "torch": torch.__version__,
        "licence": "Apache-2.0",
    }


@click.command(epilog="One source counts as much as another, however many photographs it has.")
@click.argument("name", type=click.Choice(sorted(NETWORKS)))
@click.option(
    "--images",
    "sources",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="sklearn, foolbox, a folder of photographs, or an .npz with uint8 x; may be given several times.",
)
@click.option("--steps", default=600, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1))
@click.option("--rate", default=1e-3, show_default=True, help="Adam's first rate.")
@click.option("--noise", default=0.1, show_default=True, help="Of F's second loss.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=weights.FOLDER,
    help="Where the weights and the card go; the bundled ones by default. Use it: weights=FOLDER.",
)
def main(name: str, sources: tuple[str, ...], folder: Path, **settings: Any) -> None:
    """Train the part NAME from scratch and write its weights and its card."""

    def show(event: StepDone) -> None:
        if event.step % 50 == 0 or event.step == event.steps:
            click.echo(f"{event.step}/{event.steps} loss {event.loss:.6f}")

    try:
        click.echo(f"PSNR {make(name, sources, Plan(**settings), folder, show):.2f} dB")
    except UsageError as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
