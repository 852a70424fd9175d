"""Concurrent adversarial training: accuracy by staleness, and what could overlap in time.

    python -m benchmarks.conadv --epochs 30 --seeds 5

digits-cnn on digits, one-step images of linf 0.1, loss on clean and adversarial images. Staleness 0 is one-step
adversarial training, bit for bit (tests/test_recipes.py). Clean: all 355 test images; PGD: 200 of them under 10 steps
at 0.1, progress, no robust accuracy. Times are CPU seconds of one thread, so that other work on the machine does not
count: making the images of a batch, and the update. One after the other a batch takes their sum; with stale weights and
a second device it takes the longer of both: that is a model, nothing runs concurrently here.
"""

import argparse
import statistics
import time

import torch
from robustkit_defenses.recipes.fast_at import one_step

from robustkit.datasets import load_dataset
from robustkit.models.sources import load_model, trained, untrained
from robustkit.training.adversarial import cross_entropy
from robustkit.training.data import batches, held
from robustkit.training.loop import Loop, Watch, optimiser
from robustkit.training.recipes import Schedule, Task, Training

EPS = 0.1


def main():
    """Train, time, print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2, for a spread")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds must be at least 2 for a standard deviation, not {given.seeds}")
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    data, test = (held(load_dataset(f"digits:split={split}"), cpu) for split in ("train", "test"))
    task = Task(10, data.image, lambda: untrained.fresh("digits-cnn"), load_model)
    schedule = Schedule(epochs=given.epochs, batch=64)
    print("| recipe | clean %, mean ± sd | under quick PGD %, mean ± sd |\n|---|---|---|")
    for recipe in ("standard", *(f"conadv:eps={EPS},staleness={s}" for s in (0, 1, 4, 16))):
        rows = [
            Loop(trained.recipe(recipe), task, data, schedule, Watch(test, EPS), seed).train()[1][-1]
            for seed in range(given.seeds)
        ]
        print(f"| {recipe} | {_spread(rows, 'clean')} | {_spread(rows, 'robust')} |", flush=True)
    making, updating = timed(task, data, schedule)
    print("\n| CPU ms a batch of 64 | making the images | update | one after the other | overlapped (model) | ratio |")
    print("|---|---|---|---|---|---|")
    both, longer = making + updating, max(making, updating)
    cells = [f"{1000 * value:.2f}" for value in (making, updating, both, longer)]
    print(f"| digits-cnn | {' | '.join(cells)} | {both / longer:.2f} |")


def _spread(rows, name):
    values = [100 * row[name] for row in rows]
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def timed(task, data, schedule):
    """CPU seconds a batch: making the adversarial images, and the update on both kinds (medians over two epochs)."""
    torch.manual_seed(0)
    network = task.architecture()
    training = Training(network, [optimiser(network, schedule)])
    spent = []
    for epoch in range(2):
        for batch in batches(data, schedule, 0, epoch):
            start = time.process_time()
            adv = one_step(network, batch, EPS, 0.0)
            made = time.process_time()
            training.update(cross_entropy(network(adv), batch.y) + cross_entropy(network(batch.x), batch.y))
            spent.append((made - start, time.process_time() - made))
    return [statistics.median(column) for column in zip(*spent, strict=True)]


if __name__ == "__main__":
    main()
