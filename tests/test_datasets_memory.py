"""Memory does not grow with the number of images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

PIL = pytest.importorskip("PIL.Image")

# A network whose one convolution has the stride of its kernel, so that reading images is most of the work. It takes
# every image for class 0, so that the attack has as many to work on in each shard.
SCRIPT = """
import json, resource, sys
import torch
from torch import nn
import robustkit

torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
with torch.no_grad():
    network[4].bias.copy_(torch.tensor([9.0, 0.0]))
images, out, shard = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
record = robustkit.evaluate(network, "folder/" + images, "fgsm", eps="1/255", out=out, shard_size=shard)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_mib": peak / 1024, "n": record.n, "attacked": len(record.attacks["index"])}))
"""


def folder(root, n):
    """n files of 224×224 pixels, all but the last of one class: hard links to a few."""
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        image = PIL.fromarray(pixels).resize((224, 224))
        image.save(root / (f"{i}.png" if i % 4 == 0 else f"{i}.jpg"))
    originals = sorted(root.glob("*.*g"))
    for i in range(n):
        source = originals[i % 8]
        target = root / str(n) / f"class{int(i == n - 1)}" / f"{i:05}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
    return root / str(n)


def measured(tmp_path, n, shard=0, **environment):
    command = [sys.executable, "-c", SCRIPT, str(folder(tmp_path, n)), str(tmp_path / f"run{n}"), str(shard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["n"], found["attacked"]) == (n, n - 1)
    return found["peak_mib"]


@pytest.mark.slow
def test_peak_memory_for_2000_images_of_imagenets_size_is_that_for_200(tmp_path):
    few, many = measured(tmp_path, 200), measured(tmp_path, 2000)
    assert many <= 1.2 * few, (few, many)


def test_a_shard_leaves_nothing_behind(tmp_path):
    # glibc keeps blocks below a threshold that it raises as it goes, and so its heap grows by holes; fixed, what is
    # left is what is held.
    few, many = (measured(tmp_path, n, shard=32, MALLOC_MMAP_THRESHOLD_="1000000") for n in (128, 384))
    assert many - few < 40, (few, many)  # MiB; the 256 images between them are 147 MiB
