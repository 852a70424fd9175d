"""One training from specs to a folder: everything is checked before anything is computed, and a killed one goes on."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch

from robustkit import plugins
from robustkit.datasets import load_dataset
from robustkit.errors import UsageError
from robustkit.events import TrainingEvent, TrainingStarted
from robustkit.locks import at_work
from robustkit.models.opening import accelerated, choose_device
from robustkit.models.sources import load_model, trained, untrained
from robustkit.models.turns import one_at_a_time
from robustkit.spec import parse, settings, text_of, whole
from robustkit.training.data import Held, held
from robustkit.training.folder import TrainingFolder, sha256, weights_bytes
from robustkit.training.loop import Loop, Watch
from robustkit.training.recipes import Recipe, Schedule, Task

DEFAULT_EPS = 8 / 255


@dataclass(frozen=True, slots=True)
class Request:
    """What to train. `test` is by default the test split of `data`; `eps` of the quick robust accuracy the recipe's.

    `check` and `check_robust` are on how many test images the progress is measured. The device, the precision and the
    number of threads decide the bytes, so they are part of the training. `trust` lets models that the recipe names run
    code: checkpoints that are more than weights, and cards that name a callable.
    """

    recipe: str
    arch: str
    data: str
    test: str = ""
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    eps: float = 0.0
    check: int = 1000
    check_robust: int = 200
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = 0
    trust: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("check", 1), ("check_robust", 1)):
            object.__setattr__(self, name, whole(getattr(self, name), name, least))
        if not 0 <= self.eps <= 1:
            raise UsageError(f"eps must be from 0 to 1, pixels are in [0,1], not {self.eps!r}; write 8/255")


@dataclass(frozen=True)
class Prepared:
    """A request, resolved and checked."""

    request: Request
    recipe: Recipe
    recipe_text: str
    arch: str
    task: Task
    data: Held
    test: Held
    data_spec: str
    test_spec: str
    device: torch.device
    threads: int
    start_sha256: str

    @property
    def eps(self) -> float:
        """The radius of the quick robust accuracy."""
        return self.request.eps or self.recipe.attacked_eps or DEFAULT_EPS

    def settings(self) -> dict[str, Any]:
        """All that decides the weights; equal settings on one machine give equal bytes."""
        asked = self.request
        return {
            "recipe": self.recipe_text,
            "architecture": self.arch,
            "data": self.data_spec,
            "data_sha256": self.data.sha256,
            "images": len(self.data),
            "test": self.test_spec,
            "test_sha256": self.test.sha256,
            "classes": self.task.classes,
            "schedule": {**dataclasses.asdict(asked.schedule), "milestones": list(asked.schedule.milestones)},
            "seed": asked.seed,
            "start_sha256": self.start_sha256,  # the untrained weights, and those of a teacher
            "quick": {"eps": self.eps, "clean": asked.check, "robust": asked.check_robust},
            "device": self.device.type,
            "precision": asked.precision,
            "threads": self.threads,
            "torch": torch.__version__,
        }

    def command(self, out: str) -> str:
        """The command line that trains this again."""
        asked = self.request
        words = ["robustkit train", quote(self.recipe_text), "--arch", quote(asked.arch)]
        words += ["--data", quote(asked.data)] + (["--test", quote(asked.test)] if asked.test else [])
        for name, text in settings(asked.schedule).items():
            words += [f"--{name.replace('_', '-')}", text]
        for field_ in dataclasses.fields(Request):
            value = getattr(asked, field_.name)
            if field_.name in ("seed", "eps", "check", "check_robust", "precision") and value != field_.default:
                words += [f"--{field_.name.replace('_', '-')}", text_of(value)]
        words += ["--device", self.device.type]
        if self.device.type == "cpu":
            words += ["--threads", str(self.threads)]
        if asked.trust:
            words += ["--trust"]
        return " ".join([*words, "--out", quote(out)])


def prepare(request: Request) -> Prepared:
    """Resolve and check a request.

    Raises:
        UsageError: for anything that cannot be trained: names, options, data, classes or shapes that do not fit.
    """
    recipe, text = trained.recipe(request.recipe), trained.recipe_text(request.recipe)
    untrained.check_trainable(request.arch)
    data_spec, test_spec = splits(request.data, request.test)
    device = choose_device(request.device, torch.nn.Module(), named=True)
    source = load_dataset(data_spec)
    data, test = held(source, device), held(load_dataset(test_spec), device)
    classes, image = source.classes or 1 + int(data.y.max()), data.image
    if (other := 1 + int(test.y.max())) > classes or test.image != image:
        raise UsageError(
            f"{test_spec} has {other} classes and images of {test.image}, {data_spec} {classes} and {image}"
        )
    if test.sha256 == data.sha256:
        raise UsageError(f"{test_spec} are the training images; give others: --test SPEC")
    arch = untrained.fitted(request.arch, classes, image)
    task = Task(classes, image, lambda: untrained.fresh(arch), lambda spec: load_model(spec, trust=request.trust))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        start = recipe.build(task)  # what it cannot learn, it says here
        if request.schedule.batch == 1 or len(data) % request.schedule.batch == 1:
            _try_one(task.architecture(), image, arch, len(data), request.schedule.batch)
    return Prepared(
        request, recipe, text, arch, task, data, test, data_spec, test_spec, device,
        request.threads or torch.get_num_threads(), sha256(weights_bytes(start)),
    )  # fmt: skip


@one_at_a_time()
def train(
    request: Request, out: Path, *, fresh: bool = False, on_event: Callable[[TrainingEvent], None] = lambda event: None
) -> Mapping[str, Any]:
    """Train, or go on with a training that was begun in `out`; returns the card of the model in that folder.

    Raises:
        UsageError: see `prepare`; and if `out` holds something else or is at work.
    """
    with _threads(request.threads), at_work(out):
        ready = prepare(request)
        folder = TrainingFolder(out)
        start = folder.open(ready.settings(), ready.command(out.name), fresh=fresh)
        title = f"{ready.recipe_text} on {ready.data_spec}, {ready.arch}{accelerated(ready.data.x.device)}"
        epochs = request.schedule.epochs
        if folder.finished:
            on_event(TrainingStarted(title, epochs, epochs))
            return trained.read_card(out / trained.CARD)
        on_event(TrainingStarted(title, epochs, start.epoch if start else 0))
        loop = Loop(
            ready.recipe, ready.task, ready.data, request.schedule,
            Watch(ready.test, ready.eps, request.check, request.check_robust),
            request.seed, request.precision == "bf16", folder.keep, on_event=on_event,
        )  # fmt: skip
        network, curves = loop.train(start)
        folder.finish(network, curves, card(ready, out.name, curves))
        return trained.read_card(out / trained.CARD)


def card(ready: Prepared, name: str, curves: list[dict[str, float]]) -> dict[str, Any]:
    """The card of the trained model, without its weights' hash."""
    eps, last = ready.recipe.attacked_eps, curves[-1]
    asked = ready.request
    n, m = min(asked.check, len(ready.test)), min(asked.check_robust, len(ready.test))
    notes = (
        f"{ready.recipe_text}, {asked.schedule.epochs} epochs of {len(ready.data)} images; clean accuracy "
        f"{last['clean']:.2%} on {n} test images, {last['robust']:.2%} of {m} under quick PGD at linf {ready.eps:.4g} "
        "(an upper bound, no robust accuracy)"
    )
    return {
        "name": name,
        "architecture": ready.arch,
        "built_by": "" if ready.recipe.plain else ready.recipe_text,
        "dataset": ready.test_spec,
        "classes": ready.task.classes,
        "input_shape": list(ready.task.image),
        "eps": eps,
        "threat": f"linf {eps:.4g}" if eps else "",
        "notes": notes,
        "clean_accuracy": last["clean"],
        "clean_n": n,
        "command": ready.command(name),
        "recipe": ready.settings(),
    }


def _try_one(network: torch.nn.Module, image: tuple[int, int, int], arch: str, images: int, batch: int) -> None:
    """Refuse a network that cannot train on one image, as BatchNorm of 1×1 features cannot."""
    try:
        with torch.no_grad():
            network.train()(torch.zeros(1, *image))
    except ValueError as error:
        raise UsageError(
            f"{images} images in batches of {batch} leave a batch of one, on which {arch} cannot train ({error}); "
            "choose another --batch"
        ) from error


def splits(data: str, test: str) -> tuple[str, str]:
    """The specs of the training and of the test images: of a dataset with splits, train and test if none is named.

    Raises:
        UsageError: for a dataset without splits and no `test`.
    """
    parsed = parse(data)
    if not parsed.source and "split" in inspect.signature(plugins.load("datasets", parsed.name)).parameters:
        others = {key: text for key, text in parsed.options.items() if key != "split"}
        data = str(dataclasses.replace(parsed, options={**others, "split": parsed.options.get("split", "train")}))
        test = test or str(dataclasses.replace(parsed, options=others))
    if not test:
        raise UsageError(f"{data} says nothing of test images, which progress is measured on; give them: --test SPEC")
    return data, test


@contextlib.contextmanager
def _threads(wanted: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
