"""Defensive distillation over temperatures: what looks robust, and what undoes it.

    python -m benchmarks.distillation --data digits --arch digits-cnn --eps 0.1 --epochs 60
    python -m benchmarks.distillation --data scenes:n=2000 --arch scenes-cnn --eps 4/255 --epochs 15 -n 200

For each temperature T a teacher is trained by `standard:temperature=T` and a student by `distillation`, of one
architecture, and evaluated at temperature 1. The row "none" is `standard` with as many epochs. Zero gradient: the share
of the images where the gradient of the cross-entropy is exactly zero in every pixel, in float32, in float64, and of the
cross-entropy of logits / T. The other columns are robust accuracies, each attack alone, judged on every image.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import robustkit
from robustkit.spec import number
from robustkit.training import run
from robustkit.training.recipes import Schedule


class Divided(nn.Module):
    """The network's logits / t: the same decisions."""

    def __init__(self, network, t):
        super().__init__()
        self.network, self.t = network, t

    def forward(self, x):
        """The divided logits."""
        return self.network(x) / self.t


def zero_gradient(network, x, y):
    """The share of images where the gradient of the cross-entropy is exactly zero."""
    x = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)
    return float((grad == 0).flatten(1).all(1).double().mean())


def main():
    """Train, evaluate, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--arch", default="digits-cnn")
    parser.add_argument("--eps", default="0.1")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--temperatures", default="1,2,5,10,20,40,100")
    parser.add_argument("-n", type=int, default=355)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    eps, schedule = number(given.eps), Schedule(epochs=given.epochs, batch=given.batch)
    columns = [
        "T", "clean", "median margin", "zero gradient", "in float64", "of logits/T", "FGSM", "FGSM on logits/T",
        "PGD-40", "PGD-40 on logits/T", "PGD-40 margin", "APGD-DLR", "from the teacher",
    ]  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def robust(network, attack, data, victim=None):
        """Robust accuracy in %; with a victim, of the victim on what was made on the network."""
        record = robustkit.evaluate(network, data, attack, eps=eps, save_adversarial=victim is not None, doctor=False)
        if victim is None:
            return 100 * float(record.robust_accuracy)
        x, y = data
        adv = x.clone()
        if record.adversarial is not None:
            adv[torch.from_numpy(record.adversarial["index"])] = torch.from_numpy(record.adversarial["adv"])
        right = (victim(adv).argmax(1) == y) & (victim(x).argmax(1) == y)
        return 100 * float(right.double().mean())

    with tempfile.TemporaryDirectory() as place:

        def trained(recipe, name):
            asked = run.Request(
                recipe, given.arch, given.data, schedule=schedule, seed=given.seed, check=1, check_robust=1
            )
            run.train(asked, Path(place) / name)
            return robustkit.load_model(f"{place}/{name}")[0]

        test = robustkit.load_dataset(given.data)
        data = test.batch(range(min(given.n, len(test))))
        for t in [0.0, *map(float, given.temperatures.split(","))]:
            if t:
                teacher = trained(f"standard:temperature={t:g}", f"teacher{t:g}")
                network = trained(f"distillation:teacher={place}/teacher{t:g},temperature={t:g}", f"student{t:g}")
            else:
                network = teacher = trained("standard", "none")
            row = measured(network, teacher, t or 1.0, data, robust)
            print(f"| {f'{t:g}' if t else 'none'} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)


def measured(network, teacher, t, data, robust):
    """A row of the table, in %."""
    x, y = data
    divided = Divided(network, t).eval()
    with torch.no_grad():
        logits = network(x)
    margins = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
    shares = [zero_gradient(network, x, y), zero_gradient(network.double(), x.double(), y)]
    network.float()
    return [
        100 * float((logits.argmax(1) == y).double().mean()),
        float(margins.median()),
        *(100 * share for share in shares),
        100 * zero_gradient(divided, x, y),
        robust(network, "fgsm", data),
        robust(divided, "fgsm", data),
        robust(network, "pgd:steps=40", data),
        robust(divided, "pgd:steps=40", data),
        robust(network, "pgd:steps=40,loss=margin", data),
        robust(network, "apgd:loss=dlr", data),
        robust(Divided(teacher, t).eval(), "pgd:steps=40", data, victim=network)
        if teacher is not network
        else float("nan"),
    ]


if __name__ == "__main__":
    main()
