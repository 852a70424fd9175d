"""The suite `fast` beside pyautoattack standard, on the kit's networks: who still stands, passes, CPU seconds.

    python -m benchmarks.fast --out robustkit-runs/fast                      (ours; minutes of one core)
    python -m benchmarks.fast --out robustkit-runs/fast --peer               (and the peer's: hours of one core)
    python -m benchmarks.fast --out robustkit-runs/fast --suite strong       (another suite of ours)

Each (network, norm, eps, images, suite, seed) is kept in --out as it ends and not run again, so what was stopped goes
on. Prints a Markdown table of what is there, and writes it between the marks of reports/fast/README.md with --write.
"""

import argparse
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import kit, peer
from benchmarks.readme import write_between
from robustkit import evaluate, spec
from robustkit.records.files import write_text

HERE = Path(__file__).parent.parent / "reports/fast"
BEGIN, END = "<!-- tables: written by benchmarks/fast.py -->", "<!-- end of tables -->"
PEER = "pyautoattack"


class Asked(NamedTuple):
    """A network, a threat model, and consecutive test images."""

    network: str
    norm: str
    eps: str
    start: int
    n: int


ASKED = (
    Asked("cifar10_cnn_a_adv", "linf", "2/255", 6000, 128), Asked("cifar10_cnn_a_adv4", "linf", "2/255", 6000, 100),
    Asked("cifar10_resnet2b_adv2", "linf", "2/255", 6000, 100),
    Asked("cifar10_conv_small_pgd2", "linf", "2/255", 6000, 100),
    Asked("cifar10_sri_resnet_a_adv4", "linf", "4/255", 6000, 100),
    Asked("cifar10_vit_ibp_3_3_8", "linf", "1/255", 6000, 100), Asked("mnist_kw_01", "linf", "0.1", 6000, 100),
    Asked("mnist_lenet5_adv", "linf", "0.3", 6000, 128), Asked("cifar10_cnn_a_adv", "l2", "0.5", 6000, 100),
    Asked("mnist_lenet5_adv", "l2", "1.5", 6000, 128), Asked("cifar10_cnn_a_adv", "l1", "12", 6000, 100),
    Asked("cifar10_cnn_a_adv", "linf", "2/255", 6000, 512), Asked("mnist_kw_01", "linf", "0.1", 6000, 512),
)  # fmt: skip


class Found(NamedTuple):
    """What a suite did: how many were right, which places among the images still stand, passes and CPU seconds."""

    right: int
    standing: frozenset[int]
    passes: int
    seconds: float


def images(asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images and labels."""
    chosen = range(asked.start, asked.start + asked.n)
    return kit.cifar10(chosen) if asked.network.startswith("cifar10") else kit.mnist(chosen)


def found(asked: Asked, suite: str, seed: int, out: Path, *, run: bool) -> Found | None:
    """What is kept of a suite, or what it does now; None where it is not kept and not to be run."""
    key = hashlib.sha256(json.dumps([*asked, suite, seed, torch.__version__]).encode()).hexdigest()[:16]
    file = out / f"{asked.network}-{asked.norm}-{asked.n}-{suite}-{seed}-{key}.json"
    if not file.is_file():
        if not run:
            return None
        write_text(file, json.dumps(_peer(asked, seed) if suite == PEER else _ours(asked, suite, seed)))
    kept = json.loads(file.read_text())
    return Found(kept["right"], frozenset(kept["standing"]), kept["passes"], kept["seconds"])


def _ours(asked: Asked, suite: str, seed: int) -> dict[str, object]:
    began = time.process_time()
    record = evaluate(
        kit.model(name=asked.network), images(asked), suite, norm=asked.norm, eps=asked.eps, seed=seed, doctor=False,
        device="cpu",
    )  # fmt: skip
    seconds = time.process_time() - began
    status, passes = record.samples["status"], record.attacks["forwards"] + record.attacks["backwards"]
    return {
        "right": int((status != "WRONG").sum()), "standing": np.flatnonzero(status == "ROBUST").tolist(),
        "passes": int(passes.sum()), "seconds": seconds,
        "broke": {
            name: int((record.attacks["outcome"][record.attacks["attack"] == name] == "broken").sum())
            for name in record.job["attacks"]
        },
        "flags": [flag["kind"] for flag in record.flags],
    }  # fmt: skip


def _peer(asked: Asked, seed: int) -> dict[str, object]:
    model, (x, y) = kit.model(name=asked.network), images(asked)
    with torch.no_grad():
        right = int((model(x).argmax(1) == y).sum())
    result = peer.run(model, x, y, asked.norm, spec.number(asked.eps), None, seed)
    return {
        "right": right, "standing": np.flatnonzero(result.robust).tolist(),
        "passes": result.forwards + result.backwards, "seconds": result.seconds,
    }  # fmt: skip


def table(suite: str, seeds: list[int], out: Path, *, run: bool, with_peer: bool, only: str = "") -> Iterator[str]:
    """A line for each of `ASKED`: ours for each seed, and the peer's where it is there."""
    yield f"| network | norm, eps | n | right | {PEER} left | {suite} left, seeds {', '.join(map(str, seeds))} | more |"
    yield "|---|---|---:|---:|---:|---:|---|"
    ratios: list[tuple[float, float]] = []
    for asked in ASKED:
        if only and only not in asked.network:
            continue
        ours = [one for seed in seeds if (one := found(asked, suite, seed, out, run=run)) is not None]
        theirs = found(asked, PEER, 0, out, run=with_peer)
        if not ours:
            continue
        more = f"{ours[0].passes / ours[0].right:.0f} passes a right image, {ours[0].seconds:.1f} CPU s"
        if theirs is not None:
            ratio = ours[0].passes / theirs.passes, ours[0].seconds / theirs.seconds
            ratios.append(ratio)
            other = ours[0].standing ^ theirs.standing
            names = ", ".join(str(asked.start + place) for place in sorted(other))
            more += f": {ratio[0]:.1%} and {ratio[1]:.1%} of the peer's" + (
                f"; images that differ: {names}" * bool(other)
            )
        left = " · ".join(str(len(one.standing)) for one in ours)
        peers = "–" if theirs is None else str(len(theirs.standing))
        what = f"`{asked.network}` | {asked.norm}, {asked.eps} | {asked.n} | {ours[0].right}"
        yield f"| {what} | {peers} | {left} | {more} |"
    if ratios:
        passes, seconds = (statistics.median(column) for column in zip(*ratios, strict=True))
        yield f"\nMedian over these: {passes:.1%} of the peer's passes, {seconds:.1%} of its CPU seconds."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("robustkit-runs/fast"))
    parser.add_argument("--suite", default="fast")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--peer", action="store_true", help=f"run {PEER} too where it is not kept")
    parser.add_argument("--kept", action="store_true", help="show what is kept and run nothing")
    parser.add_argument("--write", action="store_true", help="into reports/fast/README.md")
    asked = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    lines = []
    for line in table(asked.suite, seeds, asked.out, run=not asked.kept, with_peer=asked.peer, only=asked.only):
        print(line, flush=True)
        lines.append(line)
    if asked.write:
        write_between(HERE / "README.md", BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
