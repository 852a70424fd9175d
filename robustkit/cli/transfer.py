"""`robustkit transfer`: its options, on the command line or in a TOML file, and how they become one call."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from robustkit.cli import completion, options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError
from robustkit.spec import listed, suggest

# NAME=SPEC, where the '=' of an option comes after a ':'; "NAME"=SPEC of any name.
_NAMED = re.compile(r'(?:"([^"]+)"|([^"=:/()+]+))=(.+)', re.DOTALL)
_SET = re.compile(r'(?:"([^"]+)"|([^"=:/()]+))=(.+)', re.DOTALL)  # no spec of its own has to be told from this one


def _config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Take a TOML file's values for the options that the command line does not give."""
    if value is not None:
        known = {p.name or "": p for p in ctx.command.params if p.name != "config"}
        ctx.default_map = {name: _default(name, given, known[name]) for name, given in _read(value, known).items()}
    return value


def _read(file: Path, known: Mapping[str, click.Parameter]) -> dict[str, Any]:
    import tomllib

    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {file} cannot be read: {error}") from None
    found = {key.replace("-", "_"): value for key, value in data.items()}
    for name in found:
        if name not in known:
            raise UsageError(f"--config {file}: " + suggest(name, known, "option"))
    return found


def _default(name: str, given: Any, param: click.Parameter) -> Any:
    """A value of the file as the command line would give it; a table is a list of "NAME"=SPEC."""
    if isinstance(given, dict):
        texts = {key: "+".join(f"({v})" for v in value) if isinstance(value, list) else value
                 for key, value in given.items()}  # fmt: skip
        return [f'"{key}"={text}' for key, text in texts.items()]
    if getattr(param, "multiple", False) and not isinstance(given, list):
        return [given]
    if isinstance(given, list) and not getattr(param, "multiple", False):
        raise UsageError(f"--config: {name} takes one value, not a list")
    return given


def _split(text: str, pattern: re.Pattern[str] = _NAMED) -> tuple[str, str]:
    """The name and the rest of NAME=REST; no name if it is not written so."""
    match = pattern.fullmatch(text.strip())
    return ((match[1] or match[2]).strip(), match[3].strip()) if match else ("", text.strip())


def named(texts: tuple[str, ...]) -> dict[str, str]:
    """Specs by name from NAME=SPEC, "NAME"=SPEC or SPEC, which names itself.

    Raises:
        UsageError: if two have one name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, spec = _split(text)
        name = name or spec
        if name in found:
            raise UsageError(f"{name!r} is named twice; name each once")
        found[name] = spec
    return found


def surrogate_sets(
    texts: tuple[str, ...], surrogates: dict[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]] | None]:
    """All surrogates by name, and the sets of NAME=A+B; an A that no --surrogate names is a spec of its own.

    Raises:
        UsageError: for a set without a name, or two of one name.
    """
    if not texts:
        return surrogates, None
    sets: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, members = _split(text, _SET)
        if not name:
            raise UsageError(f"--surrogates {text!r} has no name; write NAME=A+B")
        if name in sets:
            raise UsageError(f"the surrogate set {name!r} is named twice")
        here = []
        for item in listed(members):
            if item in surrogates:
                here.append(item)
                continue
            ((called, spec),) = named((item,)).items()
            if surrogates.setdefault(called, spec) != spec:
                raise UsageError(f"{called!r} names two surrogates: {surrogates[called]} and {spec}")
            here.append(called)
        sets[name] = tuple(here)
    return surrogates, sets


def outputs_of(texts: tuple[str, ...]) -> str | dict[str, str]:
    """What the models return: one word for all of them, or NAME=WORD of some."""
    if len(texts) == 1 and not _split(texts[0])[0]:
        return texts[0]
    return named(texts) if texts else "logits"


@click.command("transfer")
@click.option("--config", type=click.Path(path_type=Path), is_eager=True, callback=_config, expose_value=False,
              help="A TOML file whose keys are these options; what the command line gives goes first.")  # fmt: skip
@click.option("--surrogate", multiple=True, metavar="[NAME=]SPEC", shell_complete=completion.model,
              help="A model to make adversarials on; repeat it.")  # fmt: skip
@click.option(
    "--surrogates", multiple=True, metavar="NAME=A+B+C",
    help="A surrogate set, of names or specs; repeat it for several. Else all --surrogate are one.",
)  # fmt: skip
@click.option("--victim", multiple=True, metavar="[NAME=]SPEC", shell_complete=completion.model,
              help="A model to judge them on; repeat it.")  # fmt: skip
@click.option("--outputs", multiple=True, metavar="[NAME=]logits|probs",
              help="What the models return, or the one of that name; repeat it.")  # fmt: skip
@options.defense("Stands before every victim, while surrogates stay bare: jpeg:quality=50; the last one is outermost.")
@options.draws("Of a randomised model, how many fresh draws vote on an image.", default=1)
@options.attack(several=True)
@options.dataset("digits, cifar10:path=…, ./images.npz")
@options.threat()
@options.target
@options.samples()
@options.trust
@options.execution(shard=128)
@options.out(f"The run's folder; default {output.RUNS}/transfer-<what is run>.")
@options.fresh
@click.option("--heatmap", type=click.Path(path_type=Path), help="Draw the matrix there: .pdf, .svg or .png.")
@options.json_to("transfer.json")
@options.offline
@options.quiet
def transfer(
    surrogate: tuple[str, ...], surrogates: tuple[str, ...], victim: tuple[str, ...], attack: tuple[str, ...],
    outputs: tuple[str, ...], dataset: str | None, out: Path | None, heatmap: Path | None, json_to: str | None,
    quiet: bool, threads: int | None, **asked: Any,
) -> None:  # fmt: skip
    """Measure how adversarials made on surrogates transfer to victims. Killed and run again, it continues.

    \b
    robustkit transfer --surrogate digits-cnn --victim digits-cnn-at --attack pgd --dataset digits --eps 0.1
    robustkit transfer --config reports/paper/cwa/imagenet.toml -n 100
    robustkit transfer --surrogate a=python/my.net_a --surrogate b=python/my.net_b --surrogates one=a \\
        --surrogates both=a+b --victim robustbench/Standard --attack mi --attack mi-cwa --dataset cifar10
    \b
    A name with any of = : / + ( ) in it stands in quotes: --victim '"ViT-B/16"=torchvision/vit_b_16'.
    Over the same images and threat model, further attacks and victims reuse what the folder holds.
    Exit codes: 0 done, 2 bad usage, 3 a success rate could not be established, 130 interrupted.
    """  # noqa: D301
    from robustkit.plugins import specs
    from robustkit.report.plots import style

    for what, given in (("--surrogate", surrogate or surrogates), ("--victim", victim), ("--attack", attack),
                        ("--dataset", dataset)):  # fmt: skip
        if not given:
            raise UsageError(f"{what} is needed; see robustkit transfer --help")
    if heatmap:
        style.check(heatmap)
    attacks = named(
        tuple(text for item in attack for text in ([item] if _NAMED.fullmatch(item) else specs("attacks", item)))
    )
    sources, sets = surrogate_sets(surrogates, named(surrogate))
    folder: list[Path] = []

    def place(job: Mapping[str, Any]) -> Path:
        folder.append(out or output.RUNS / _folder_name(job))
        return folder[0]

    arguments = {
        **asked,
        "label": options.given_label(),
        "outputs": outputs_of(outputs),
        "dataset": dataset,
        "sets": sets,
        "out": place,
    }
    with output.interruptible(folder):
        record = _measure(sources, named(victim), attacks, arguments, quiet=quiet, threads=threads)
    if heatmap:
        from robustkit.report.transfer import heatmap as draw

        draw(record, heatmap)
    output.tell(record.to_json(), f"{record.summary()}\nin {folder[0]}", json_to)
    if not record.established:
        end(ExitCode.NOT_ESTABLISHED)


def _measure(
    surrogates: dict[str, str], victims: dict[str, str], attacks: dict[str, str], arguments: dict[str, Any],
    *, quiet: bool, threads: int | None,
) -> Any:  # fmt: skip
    from robustkit.report import transfer_live
    from robustkit.transfers import transfer as measure

    data = arguments.pop("dataset")
    line = transfer_live.Line()
    with line, output.computing(threads=threads, quiet=quiet):
        return measure(surrogates, victims, attacks, data, **arguments, on_event=None if quiet else line)


def _folder_name(job: Mapping[str, Any]) -> str:
    """The surrogates, the images and the threat model, not the attacks and victims: these may be added to."""
    from robustkit.spec import digest

    words = f"transfer-{'-'.join(job['surrogates'])}-{job['data']}-{job['norm']}-{job['eps']:.6g}"
    return output.folder_name(words, digest([job["base"], job["surrogates"]]))
