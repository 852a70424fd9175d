"""AutoAttack standard, ours and pyautoattack's in turns, on two kit networks: time ratio, passes, robust accuracy.

    make bench            # or: python -m benchmarks.peers -n 100 --rounds 3

Prints a Markdown table; a ratio below 1 means that robustkit is faster. Seconds are CPU time of the process: on one
thread the wall time of an idle machine, and much the same on a busy one.
"""

import argparse
import logging
import platform
import statistics
import time

import torch

from benchmarks import kit, peer
from robustkit import evaluate

EPS = {"linf": 2 / 255, "l2": 0.25, "l1": 4.0}


def main():
    """Run in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="cifar10_cnn_a_adv,cifar10_resnet2b_adv2")
    parser.add_argument("--norm", default="linf", choices=sorted(EPS))
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="two that wait for each other are slower on small nets")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(given.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads, n = {given.n}, {given.norm} "
        f"eps {EPS[given.norm]:.6f}, {given.rounds} rounds in turns\n"
    )
    print("| network | CPU s ours | CPU s peer | ratio | forwards | backwards | robust % ours | peer |")
    print("|---|---|---|---|---|---|---|---|")
    for network in given.networks.split(","):
        one(network, given)


def one(network, given):
    """One network: rounds in turns, medians, the ratio pair by pair."""
    model, (x, y) = kit.model(name=network), kit.cifar10(range(given.n))
    ours, theirs = [], []
    for _ in range(given.rounds):
        began = time.process_time()
        record = evaluate(model, (x, y), "autoattack", norm=given.norm, eps=EPS[given.norm])
        ours.append(time.process_time() - began)
        result = peer.run(model, x, y, given.norm, EPS[given.norm], None, 0)
        theirs.append(result.seconds)
    forwards, backwards = (sum(getattr(row, name) for row in record.by_attack) for name in ("forwards", "backwards"))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"| {network} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.2f} | "
        f"{forwards:,} against {result.forwards:,} | {backwards:,} against {result.backwards:,} | "
        f"{100 * float(record.robust_accuracy):.1f} | {100 * result.robust.mean():.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
