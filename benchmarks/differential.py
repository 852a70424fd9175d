"""Attack by attack against pyautoattack on kit networks: who is left standing, and how many seconds it took.

    python -m benchmarks.differential --networks cifar10_cnn_a_adv,cifar10_cnn_a_std -n 500 --norms linf,l2

Peer results are kept in .benchmarks/ so that a second run recomputes ours only. Prints a Markdown table.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch

import robustkit
from benchmarks import kit, peer

EPS = {"linf": 2 / 255, "l2": 0.25, "l1": 4.0}
OURS = {
    "apgd-ce": "apgd",
    "apgd-t": "apgd:loss=dlr-targeted",
    "fab-t": "fab:minimise=false",
    "square": "square",
}
L1_OURS = {
    **OURS,
    "apgd-ce": "apgd:restarts=5,radii=3",
    "apgd-t": "apgd:loss=dlr-targeted,radii=3,targets=5",
}
CACHE = Path(".benchmarks")


def peers(network, norm, n, seeds, suite):
    """The peer's survivors: each attack alone from all images, Square with several seeds, and maybe the suite."""
    file = CACHE / f"{network}-{norm}-{n}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    model, (x, y) = kit.model(name=network), kit.cifar10(range(n))
    wanted = [("apgd-ce", 0), ("apgd-t", 0), ("fab-t", 0), *(("square", seed) for seed in range(seeds))]
    for attack, seed in [*wanted, *([("suite", 0)] if suite else [])]:
        key = f"{attack}/{seed}"
        if key not in found:
            chosen = None if attack == "suite" else [attack]
            result = peer.run(model, x, y, norm, EPS[norm], chosen, seed)
            found[key] = {**result._asdict(), "robust": result.robust.nonzero()[0].tolist()}
            CACHE.mkdir(exist_ok=True)
            file.write_text(json.dumps(found))
    return found


def ours(network, norm, n, attack):
    """Our record of the same."""
    return robustkit.evaluate(kit.model(name=network), kit.cifar10(range(n)), attack, norm=norm, eps=EPS[norm])


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="cifar10_cnn_a_adv,cifar10_conv_small_pgd2,cifar10_cnn_a_std")
    parser.add_argument("--norms", default="linf,l2")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5, help="of the peer's Square")
    parser.add_argument("--suite", action="store_true", help="run the peer's whole suite too, not only its attacks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-only", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(given.threads)
    print("| network | norm | attack | peer robust % | ours robust % | differing images | peer s | ours s |")
    print("|---|---|---|---|---|---|---|---|")
    for network in given.networks.split(","):
        for norm in given.norms.split(","):
            found = peers(network, norm, given.n, given.seeds, given.suite)
            if given.peer_only:
                continue
            for name, spec in (L1_OURS if norm == "l1" else OURS).items():
                row(network, norm, name, found, ours(network, norm, given.n, spec), given.n)
            row(network, norm, "suite", found, ours(network, norm, given.n, "autoattack"), given.n)


def row(network, norm, name, found, record, n):
    """One line of the table."""
    same = [result for key, result in found.items() if key.startswith(f"{name}/")]
    if name == "suite" and not same:  # the worst case over its attacks, each run on all images
        alone = [set(result["robust"]) for key, result in found.items() if key.endswith("/0")]
        same = [{"robust": sorted(set.intersection(*alone)), "seconds": float("nan")}]
    mine = set(np.flatnonzero(record.samples["status"] == "ROBUST").tolist())
    theirs = set(same[0]["robust"])
    shares = sorted(100 * len(result["robust"]) / n for result in same)
    spread = f"{shares[0]:.1f}–{shares[-1]:.1f}" if len(shares) > 1 else f"{shares[0]:.1f}"
    seconds = sum(record.seconds.values())
    print(
        f"| {network} | {norm} | {name} | {spread} | {100 * len(mine) / n:.1f} | only peer stands "
        f"{sorted(theirs - mine)}, only ours {sorted(mine - theirs)} | {same[0]['seconds']:.0f} | {seconds:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
