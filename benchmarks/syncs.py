"""How often an attack makes the host wait for its device, between two calls of the model: on a pretended device.

    python -m benchmarks.syncs [--device cuda|mps|xpu] [--only apgd,fab]

Prints a Markdown table, a row an (attack, norm): the most waits between two calls of the model, in how many of these
intervals there were any, and the lines that asked most. Kernels are the CPU's and nothing here is a time. A wait costs
a card all that it could have begun meanwhile, so what counts is that most intervals have none. Images and network are
the conformance suite's: a random convolutional network of ten classes, 40 images of 3×16×16: some break on the way.
"""

import argparse
from collections import Counter
from itertools import pairwise

from robustkit.engine.plan import make_attack
from robustkit.testing import attack_batch, pretended
from robustkit.testing.conformance import _small_network

ATTACKS = {
    "fgsm": "linf,l2",
    "pgd:steps=40,restarts=2": "linf,l2,l1",
    "apgd:steps=40,restarts=2": "linf,l2,l1",
    "apgd:steps=40,radii=3": "l1",
    "apgd:steps=40,loss=dlr-targeted,targets=3": "linf,l2,l1",
    "multi-targeted:steps=20,targets=3": "linf",
    "cw:steps=40,searches=4": "l2",
    "cw:steps=40,searches=4,minimise=false": "l2",
    "cw:steps=40": "linf",
    "fab:steps=40,targets=3": "linf,l2,l1",
    "fab:steps=40,targets=3,minimise=false": "linf,l2,l1",
    "square:queries=200": "linf,l2,l1",
    "nes:steps=10,pairs=10": "linf,l2",
    "mora:steps=20,mixes=0.5,targets=2": "linf,l2",
    "surrogate-swap:steps=20,direct=10": "linf,l2,l1",
    "mi:steps=10": "linf,l2",
    "vmi:steps=5,gradient=(vmi:samples=3)": "linf",
    "pgn:steps=5,gradient=(pgn:samples=3)": "linf",
    "di:steps=10": "linf",
    "ssa:steps=5,input=(ssa:copies=4)": "linf",
    "bsr:steps=5,input=(bsr:copies=4)": "linf",
    "svre:steps=5": "linf",
    "smer:steps=5": "linf",
    "mi-cwa:steps=5": "linf",
}


def counted(attack, norm, device):
    """Waits in each interval between two calls of the model, and by line."""
    problem = _small_network(norm, n=40)
    with pretended(device) as log:
        there = problem.to(device)
        log.syncs.clear()
        at, lines = [], Counter()

        def called():
            at.append(log.waited)
            lines.update(log.syncs - lines)

        attack_batch(make_attack(attack), there.module, there.x, there.y, there.threat, on_call=called)
    return [after - before for before, after in pairwise(at)], lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="attacks whose spec begins with one of these")
    given = parser.parse_args()
    print("| attack | norm | calls | most waits between two | intervals with any | waits in all | by line |")
    print("|---|---|---|---|---|---|---|")
    for attack, norms in ATTACKS.items():
        if not attack.startswith(tuple(given.only.split(","))):
            continue
        for norm in norms.split(","):
            waits, lines = counted(attack, norm, given.device)
            told = ", ".join(f"{place} ×{n}" for place, n in lines.most_common(2))
            print(
                f"| `{attack}` | {norm} | {len(waits) + 1} | {max(waits, default=0)} | {sum(map(bool, waits))} | "
                f"{sum(waits)} | {told} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
