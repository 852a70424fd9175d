"""The command line: parses, calls one function, prints. What is slow to import is imported where it is used."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from robustkit import __version__, plugins
from robustkit.errors import RobustkitError, UsageError

DEFAULT_EPS = {"linf": "8/255", "l2": "0.5", "l1": "12", "l0": "10"}
RUNS = Path("robustkit-runs")


class _Group(click.Group):
    """Turns our errors into one line and an exit code, and Ctrl-C into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RobustkitError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command to continue", 130)


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    sys.exit(code)


def _complete(kind: plugins.Kind) -> Callable[..., list[str]]:
    return lambda ctx, param, incomplete: [name for name in plugins.table(kind) if name.startswith(incomplete)]


def _complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    names = plugins.load("sources", "zoo")().names()
    return [name for name in names if name.startswith(incomplete)]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="robustkit")
def main() -> None:
    """How robust an image classifier really is.

    \b
    robustkit eval --model digits-cnn-at --attack autoattack --eps 0.1
    robustkit list attacks
    robustkit show robustkit-runs/<run>
    """  # noqa: D301 (click's own escape for a block that keeps its lines)


@main.command("eval")
@click.option("--model", required=True, metavar="SPEC", shell_complete=_complete_model,
              help="digits-cnn-at, ./net.safetensors:arch=…, python/my_package.make:width=2")  # fmt: skip
@click.option("--dataset", "--data", metavar="SPEC", shell_complete=_complete("datasets"),
              help="digits, cifar10:path=…, ./images.npz; by default what the model was trained on.")  # fmt: skip
@click.option("--attack", default="autoattack", show_default=True, metavar="SPEC", shell_complete=_complete("attacks"),
              help="pgd:steps=40,restarts=5; (a)+(b) runs both.")  # fmt: skip
@click.option("--norm", type=click.Choice(["linf", "l2", "l1", "l0"]), default="linf", show_default=True)
@click.option("--eps", metavar="8/255", help="Radius, pixels in [0,1]; default 8/255 (linf), 0.5 (l2), 12 (l1).")
@click.option("--target", metavar="CLASS|least-likely|random", help="Targeted: only this class breaks a sample.")
@click.option("-n", "n", type=int, metavar="N", help="The first N samples.")
@click.option("--indices", metavar="0-199,400", help="These samples; also a JSON list, or @FILE with one.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--outputs", type=click.Choice(["logits", "probs"]), default="logits", show_default=True,
              help="What the model returns.")  # fmt: skip
@click.option("--quantize", type=click.Choice(["8bit"]), help="Also judge each adversarial rounded to 8 bits.")
@click.option("--save-adversarial", is_flag=True, help="Keep the adversarial images in the run's folder.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:0")
@click.option(
    "--batch-size", default="auto", show_default=True, metavar="auto|N", help="Most samples at once; changes no result."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; part of the run's identity.")
@click.option("--tile", type=click.IntRange(1), help="Width of the batches the model sees; part of the run's identity.")
@click.option("--shard-size", type=click.IntRange(1), default=512, show_default=True, help="Samples a journal file.")
@click.option("--out", type=click.Path(path_type=Path), help=f"The run's folder; default {RUNS}/<what is run>.")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds of this run and compute it again.")
@click.option("--json", "json_to", metavar="-|FILE", help="Write run.json there too; - is stdout, with nothing else.")
@click.option("--quiet", is_flag=True, help="No progress.")
def evaluate(
    model: str, dataset: str | None, attack: str, norm: str, eps: str | None, target: str | None, n: int | None,
    indices: str | None, seed: int, outputs: str, quantize: str | None, save_adversarial: bool, device: str,
    batch_size: str, threads: int | None, tile: int | None, shard_size: int, out: Path | None, fresh: bool,
    json_to: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Measure a model's robust accuracy. Killed and run again, it continues.

    \b
    robustkit eval --model digits-cnn-at --attack autoattack --eps 0.1
    robustkit eval --model python/my_package.make --dataset cifar10:path=./data --norm l2 --eps 0.5 -n 1000
    \b
    Exit codes: 0 done, 2 bad usage, 3 the robust accuracy could not be established, 130 interrupted.
    """  # noqa: D301
    if batch_size != "auto" and not (batch_size.isdigit() and int(batch_size)):
        raise UsageError(f"--batch-size {batch_size!r} must be auto or a positive number")
    if json_to and json_to != "-" and not Path(json_to).parent.is_dir():
        raise UsageError(f"--json {json_to}: there is no folder {Path(json_to).parent}")
    if indices and indices.startswith("@"):
        indices = _read(Path(indices[1:]))
    data = dataset or _dataset_of(model)
    chosen_eps = eps or DEFAULT_EPS[norm]

    from robustkit import engine
    from robustkit.report import live

    if threads:
        import torch

        torch.set_num_threads(threads)
    folder: list[Path] = []

    def place(job: Any) -> Path:
        folder.append(out or RUNS / _folder_name(job, chosen_eps))
        return folder[0]

    progress = live.Progress()
    try:
        with progress:
            record = engine.evaluate(
                model,
                data,
                attack,
                norm=cast(Any, norm),
                eps=chosen_eps,
                seed=seed,
                target=target,
                n=n,
                indices=indices,
                outputs=cast(Any, outputs),
                quantize=cast(Any, quantize),
                save_adversarial=save_adversarial,
                device=device,
                batch_size="auto" if batch_size == "auto" else int(batch_size),
                tile=tile,
                shard_size=shard_size,
                out=place,
                fresh=fresh,
                on_event=None if quiet else progress,
            )
    except KeyboardInterrupt:
        kept = f"; what was computed is kept in {folder[0]}" if folder else ""
        _fail(f"interrupted{kept}; run the same command to continue", 130)
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    if json_to == "-":
        click.echo(text)
    else:
        click.echo(record.summary())
        click.echo(f"in {record.folder}")
        if json_to:
            Path(json_to).write_text(text + "\n", encoding="utf-8")
    if record.robust_accuracy is None:
        sys.exit(3)


def _dataset_of(model: str) -> str:
    from robustkit import sources

    name = sources.card_dataset(model)
    if not name:
        raise UsageError(f"--dataset is needed: {model} has no card that says what it was trained on; try digits")
    return name


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--indices @{file}: {error.strerror or error}") from None


def _folder_name(job: Any, eps: str) -> str:
    words = f"{job.model}-{job.data}-{job.attack}-{job.norm}-{eps}"
    safe = "".join(c if c.isalnum() or c in "._=" else "-" for c in words)
    return f"{safe[:120].strip('-.')}-{job.id[:10]}"


@main.command("list")
@click.argument("kind", type=click.Choice(["attacks", "models", "datasets", "defenses"]))
@click.argument("substring", default="")
def list_(kind: str, substring: str) -> None:
    """What there is: attacks, models, datasets or defenses, with a SUBSTRING.

    \b
    robustkit list attacks
    robustkit list models digits
    """  # noqa: D301
    rows: list[tuple[str, str]]
    if kind == "models":
        from robustkit import sources

        rows = sources.listing()
    else:
        rows = [(name, found.entry.summary) for name, found in plugins.table(kind).items()]
    rows = [row for row in rows if substring.lower() in row[0].lower()]
    if not rows:
        click.echo(f"no {kind}" + (f" with {substring!r} in the name" if substring else " yet"), err=True)
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        click.echo(f"{name:<{width}}  {summary}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As run.json.")
def show(run: Path, as_json: bool) -> None:
    """Show a finished RUN from its folder, from the stored facts.

    \b
    robustkit show robustkit-runs/digits-cnn-at-digits-autoattack-linf-0.1-0123456789
    """  # noqa: D301
    from robustkit.store import load_run

    record = load_run(run)
    click.echo(json.dumps(record.to_json(), indent=1, ensure_ascii=False) if as_json else record.summary())


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    robustkit completion bash >> ~/.bashrc
    """  # noqa: D301
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "robustkit", "_ROBUSTKIT_COMPLETE").source())


if __name__ == "__main__":
    main()
