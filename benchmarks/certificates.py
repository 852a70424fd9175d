"""What bounds prove of the kit's networks, image by image, in a file that is continued.

python -m benchmarks.certificates measure mnist_kw_01 --eps 0.1 --method crown --out FILE.jsonl [--indices sdp]
python -m benchmarks.certificates table FILE.jsonl …
python -m benchmarks.certificates instances [--method crown]
python -m benchmarks.certificates cost cifar10_kw_base_2px --eps 2/255 -n 64 [--attack autoattack] [--certify ""]
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

import robustkit
from benchmarks import kit
from robustkit import spec
from robustkit.certificates import graph, ladder, regions, tracing

AT_ONCE = 50


def measure(name: str, eps: float, norm: str, method: str, indices: list[int], out: Path) -> None:
    """Append what is proved of each image that the file does not hold yet, and the CPU seconds of its batch's share."""
    network = kit.model(name)
    images = kit.cifar10 if name.startswith("cifar10") else kit.mnist
    done = {json.loads(line)["index"] for line in out.read_text().splitlines()} if out.exists() else set()
    traced = tracing.trace(network, images(indices[:8])[0])
    todo = [i for i in indices if i not in done]
    with out.open("a") as file:
        for start in range(0, len(todo), AT_ONCE):
            here = todo[start : start + AT_ONCE]
            x, y = images(here)
            with torch.no_grad():
                right = network(x).argmax(1) == y
            rows = {i: {"index": i, "right": bool(r), "proved": ""} for i, r in zip(here, right.tolist(), strict=True)}
            if right.any():
                began = time.process_time()
                proofs = ladder.prove(traced, regions.region(x[right], norm, eps), y[right], method)
                seconds = (time.process_time() - began) / int(right.sum())
                found = zip(torch.tensor(here)[right].tolist(), *(each.tolist() for each in proofs), strict=True)
                for i, proved, rung, margin, threshold, passes in found:
                    rows[i] |= {"proved": ladder.METHODS[rung] if proved else "", "margin": margin,
                                "threshold": threshold, "passes": passes, "seconds": seconds}  # fmt: skip
            file.write("".join(json.dumps(row) + "\n" for row in rows.values()))
            file.flush()


def instances(method: str, most: int | None = None) -> Counter[tuple[str, str, bool]]:
    """How many of the kit's competition instances, at most so many of a network, are proved, by network and status."""
    rows = json.loads((kit.ROOT / "oracle/vnncomp_instances.json").read_text())
    found: Counter[tuple[str, str, bool]] = Counter()
    for name in sorted({row["model"] for row in rows}):
        network, own = kit.model(name), [row for row in rows if row["model"] == name]
        own = sorted(own, key=lambda row: row["status"] != "unsafe")[:most]  # those that must not be proved first
        try:
            traced = tracing.trace(network, kit.cifar10(range(8))[0])
        except graph.NotCertifiableError as error:
            found[f"{name}: {error}", "any", False] += len(own)
            continue
        for row in own:
            x, y = kit.cifar10([row["index"]])
            proofs = ladder.prove(traced, regions.region(x, "linf", row["eps"]), y, method)
            found[name, row["status"], bool(proofs.proved)] += 1
    return found


def table(files: list[Path]) -> None:
    """Of each file the clean accuracy, what each rung proves, and CPU seconds an image that was right."""
    print("| file | images | clean | ibp | crown | alpha-crown | CPU s an image |\n|---|---|---|---|---|---|---|")
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        right = [row for row in rows if row["right"]]
        upto = [sum(row["proved"] in ladder.METHODS[: k + 1] for row in right) for k in range(3)]
        cells = [f"{100 * count / len(rows):.2f} %" for count in (len(right), *upto)]
        spent = sum(row["seconds"] for row in right) / max(1, len(right))
        print(f"| {file.stem} | {len(rows)} | {' | '.join(cells)} | {spent:.4f} |")


def cost(name: str, eps: float, indices: range, attack: str, certify: str, tile: int | None) -> None:
    """CPU seconds and passes of an evaluation of some images, with certificates or without."""
    images = kit.cifar10 if name.startswith("cifar10") else kit.mnist
    network, (x, y) = kit.model(name), images(indices)
    began = time.process_time()
    record = robustkit.evaluate(network, (x, y), attack, eps=eps, certify=certify, doctor=False, tile=tile)
    seconds = time.process_time() - began
    passes = int(record.attacks["forwards"].sum() + record.attacks["backwards"].sum())
    told = {"network": name, "first": indices.start, "n": len(indices), "attack": attack,
            "tile": tile, "certify": certify,
            "cpu_seconds": round(seconds, 2),
            "attack_passes": passes, "clean": record.clean_accuracy.k, "robust": record.counts["ROBUST"],
            "certified": int(record.certified.sum()), "certificates": record.certificates}  # fmt: skip
    print(json.dumps(told))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("network")
    one.add_argument("--eps", type=spec.number, required=True)
    one.add_argument("--norm", default="linf")
    one.add_argument("--method", default="alpha-crown")
    one.add_argument("--indices", default="all", help="all, sdp, or a number: the first so many")
    one.add_argument("--out", type=Path, required=True)
    other = commands.add_parser("cost")
    other.add_argument("network")
    other.add_argument("--eps", type=spec.number, required=True)
    other.add_argument("-n", type=int, default=64)
    other.add_argument("--tile", type=int)
    other.add_argument("--start", type=int, default=6000)
    other.add_argument("--attack", default="autoattack")
    other.add_argument("--certify", default="alpha-crown")
    commands.add_parser("instances").add_argument("--method", default="alpha-crown")
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.command == "table":
        table(asked.files)
        return
    torch.set_num_threads(1)
    if asked.command == "instances":
        for (name, status, proved), count in sorted(instances(asked.method).items()):
            print(f"{name}: {status}, {'proved' if proved else 'open'}: {count}")
        return
    if asked.command == "cost":
        cost(
            asked.network, asked.eps, range(asked.start, asked.start + asked.n), asked.attack, asked.certify, asked.tile
        )
        return
    if asked.indices == "sdp":
        indices = json.loads((kit.ROOT / "oracle/sdp200_indices.json").read_text())[asked.network.split("_")[0]]
    else:
        indices = list(range(10_000 if asked.indices == "all" else int(asked.indices)))
    measure(asked.network, asked.eps, asked.norm, asked.method, indices, asked.out)


if __name__ == "__main__":
    main()
