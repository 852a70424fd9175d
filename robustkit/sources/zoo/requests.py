"""The bundled networks that recipes train: what `robustkit train` is asked for each, on the CPU with one thread."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from robustkit.recipes import Schedule
from robustkit.sources.trained import WEIGHTS
from robustkit.spec import parse
from robustkit.store import dumps, write_text
from robustkit.training.events import Event
from robustkit.training.run import Request, train

REQUESTS: Mapping[str, Request] = {
    "digits-dverge": Request(
        "dverge:plain_epochs=15", "digits-cnn", "digits", schedule=Schedule(30, 128), device="cpu", threads=1
    ),
    "digits-self-ensemble": Request(
        "self-ensemble:backbone_epochs=25,resolutions=8+4,noise=0.05,jitter=1", "digits-cnn", "digits",
        schedule=Schedule(40, 32, rate=3e-3), device="cpu", threads=1,
    ),
    "scenes-dverge": Request(
        "dverge:plain_epochs=12", "scenes-cnn:width=8", "scenes:n=1000", "scenes:n=500", Schedule(16, 32, rate=3e-3),
        device="cpu", threads=1,
    ),
    "scenes-self-ensemble": Request(
        "self-ensemble:backbone_epochs=14,pool=4,noise=0.1", "scenes-cnn:width=8", "scenes:n=2000", "scenes:n=1000",
        Schedule(20, 32, rate=3e-3), device="cpu", threads=1,
    ),
}  # fmt: skip


def make_trained(name: str, folder: Path, request: Request, on_event: Callable[[Event], None]) -> None:
    """Train a network of the zoo by its recipe and write its weights and its card."""
    with tempfile.TemporaryDirectory() as place:
        card = train(request, Path(place) / name, on_event=on_event)
        weights = (Path(place) / name / WEIGHTS).read_bytes()
    asked = REQUESTS[name].schedule.epochs
    changed = "" if request.schedule.epochs == asked else f" --epochs {request.schedule.epochs}"
    content = {
        **card,
        "name": name,
        "dataset": parse(request.data).name,
        "command": f"python -m robustkit.sources.zoo.make {name}{changed}",
        "licence": "Apache-2.0",
    }
    (folder / f"{name}.safetensors").write_bytes(weights)
    write_text(folder / f"{name}.json", dumps(content))
