"""The first minutes of a new user, measured: `make eval` beside installing torch alone, and README in a bare place.

    python -m benchmarks.first_minutes torch make        seconds and megabytes, one after the other, nothing cached
    python -m benchmarks.first_minutes bare              a wheel in a new environment, README's commands in their order

The checkout is cloned, so commit first. Packages come from wherever pip is told to look; seconds are those of this
machine, and CPU seconds say more on one that has other work. `bare` has an empty home, no checkout in any path, nothing
fetched (ROBUSTKIT_OFFLINE=1), and where the system allows it a network of its own that leads nowhere.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
# README's commands that cannot end with 0 in a bare place, by what is in them, and what they must say.
LACKING = {
    "cifar10": r"cifar|CIFAR",
    "timm": r"robustkit-bench\[zoo\]",
    "torchattacks": r"robustkit-bench\[attacks\]",
    "corruptions": r"robustkit-bench\[data\]",
    "plot eps": r"robustkit-bench\[plots\]",
    "folder/": r"robustkit-bench\[(zoo|data)\]",
}
MY_PACKAGE = """
import torch


def make(width: int = 1):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32 * width), torch.nn.ReLU(),
                               torch.nn.Linear(32 * width, 10))
"""
IMAGES = """
import numpy, robustkit
x, y = robustkit.load_dataset("digits").batch(range(60))
numpy.savez("images.npz", x=x.numpy(), y=robustkit.load_model("python/my_package.make:width=2")[0](x).argmax(1).numpy())
"""
STUDY = """
title = "two models"
models = ["digits-cnn", "digits-cnn-at"]
dataset = "digits"
attacks = ["fgsm"]
eps = [0.1]
n = 40
"""


@contextmanager
def measured(what: str, found: dict[str, dict[str, float]]) -> Iterator[None]:
    """Wall and CPU seconds of the commands within."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    wall, now = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    found[what] = {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}
    click.echo(f"{what}: {wall:.1f} s, {cpu:.1f} s of CPU", err=True)


def run(command: Sequence[str | Path], **more) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, **more)  # stdout is for the JSON


def megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def clone(place: Path) -> Path:
    run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", place])
    return place


def torch_alone(place: Path, found: dict[str, dict[str, float]]) -> None:
    with measured("torch alone", found):
        run([sys.executable, "-m", "venv", place / "venv"])
        run([place / "venv/bin/python", "-m", "pip", "install", "--quiet", "torch"], env=uncached(place))
    found["torch alone"]["megabytes"] = megabytes(place / "venv")


def make_eval(place: Path, found: dict[str, dict[str, float]]) -> None:
    checkout = clone(place / "checkout")
    environment = {**uncached(place), "HOME": str(place / "home")}
    with measured("make eval, whole", found):
        with measured("make eval, set-up", found):
            run(["make", f"PYTHON={sys.executable}", ".venv/.installed"], cwd=checkout, env=environment)
        run(["make", "eval"], cwd=checkout, env=environment)
    found["make eval, whole"]["megabytes"] = megabytes(checkout / ".venv")


def uncached(place: Path) -> dict[str, str]:
    (place / "home").mkdir(exist_ok=True)
    return {**os.environ, "PIP_NO_CACHE_DIR": "1", "PYTHONPATH": ""}


def bare(place: Path, found: dict[str, dict[str, float]]) -> None:
    work, home = place / "work", place / "home"
    work.mkdir()
    environment = uncached(place)
    with measured("bare: the wheel, from git", found):
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place / "dist", f"git+file://{ROOT}"]
        run(pip, env=environment, cwd=place)
    (wheel,) = (place / "dist").glob("*.whl")
    found["bare: the wheel, from git"]["megabytes"] = round(wheel.stat().st_size / 1e6, 1)
    with measured("bare: installed", found):
        run([sys.executable, "-m", "venv", place / "venv"], cwd=place)
        python = place / "venv/bin/python"
        run([python, "-m", "pip", "install", "--quiet", wheel], env=environment, cwd=place)
    found["bare: installed"]["megabytes"] = megabytes(place / "venv")
    inside = {"PATH": f"{place / 'venv/bin'}:/usr/bin:/bin", "HOME": str(home), "ROBUSTKIT_OFFLINE": "1"}
    (work / "my_package.py").write_text(MY_PACKAGE)
    (work / "study.toml").write_text(STUDY)
    for name in ("cat", "dog"):
        (work / "photos" / name).mkdir(parents=True)
        (work / "photos" / name / "1.png").write_bytes(b"")
    (work / "reports/baselines").mkdir(parents=True)
    shutil.copy(ROOT / "reports/baselines/digits-cnn-at.json", work / "reports/baselines")
    run([python, "-c", IMAGES], cwd=work, env=inside)
    failed = [line for line in commands() if not tried(line, work, inside, found)]
    if failed:
        raise SystemExit("these did not end as README says:\n" + "\n".join(failed))


def commands() -> Iterator[str]:
    """The commands of README's section Use, in their order, without what installs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use")[2]
    for line in text.split("```")[1].splitlines():
        if line.startswith("robustkit "):
            yield re.sub(r"\s+#.*", "", line)


def tried(line: str, work: Path, environment: Mapping[str, str], found: dict[str, dict[str, float]]) -> bool:
    """Run a command of README; whether it ended with 0, or with the line that says what it lacks."""
    runs = sorted(path.parent for path in work.glob("robustkit-runs/*/run.json") if "autoattack" in path.parent.name)
    for placeholder in ("<run>", "<a>", "<b>"):
        line = line.replace(f"robustkit-runs/{placeholder}", str(runs[0].relative_to(work)) if runs else placeholder)
    with measured(f"bare: {line}", found):
        words = [*nowhere(), *shlex.split(line)]
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
    wanted = next((text for part, text in LACKING.items() if part in line), None)
    said = done.stderr.strip().splitlines()[-1:] if done.returncode else done.stdout.strip().splitlines()[-1:]
    click.echo(f"  {done.returncode} {' '.join(said)[:200]}", err=True)
    if wanted:
        return done.returncode == 2 and bool(re.search(wanted, done.stderr))
    return done.returncode == 0


@cache
def nowhere() -> tuple[str, ...]:
    """What makes a command run in a network that leads nowhere, if the system allows that."""
    words = ("unshare", "--map-root-user", "--net")
    allowed = shutil.which("unshare") and not subprocess.run([*words, "true"], capture_output=True).returncode
    return words if allowed else ()


PARTS = {"torch": torch_alone, "make": make_eval, "bare": bare}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(sorted(PARTS)))
def main(parts: tuple[str, ...]) -> None:
    """Measure PARTS, each in a folder of its own that is removed after it."""
    found: dict[str, dict[str, float]] = {}
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="first-minutes-") as folder:
            PARTS[part](Path(folder), found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
