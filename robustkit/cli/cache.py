"""The commands on the cache: `robustkit data …` and `robustkit models …`, which are the same for both kinds of file."""

from shlex import quote
from typing import TYPE_CHECKING

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from robustkit.cache.shelf import Item, Kind

_CROWD = 12  # unpinned files in one folder, such as an unpacked archive, from which on they are one line


def _group(name: str, kind: "Kind", what: str, spec: str, place: str) -> click.Group:
    """The four commands for one kind; `spec` and `place` are for the examples."""

    @click.group(name, cls=options.Group, help=f"{what} in the cache: ls, pull, verify, rm.\n\n\b\nrobustkit {name} ls")
    def group() -> None: ...

    @group.command("ls", help=f"""List what lies in the cache: size, sha256, the day it was pinned.

        \b
        robustkit {name} ls
        robustkit {name} ls '{place}/*'""")  # fmt: skip
    @click.argument("pattern", default="")
    @options.json_to("the list")
    def ls(pattern: str, json_to: str | None) -> None:
        _list(kind, pattern, json_to)

    @group.command("pull", help=f"""Fetch what SPECs need, so that a later run finds it in the cache.

        \b
        robustkit {name} pull {spec}
        robustkit {name} pull --offline {spec}     (is it all there?)""")  # fmt: skip
    @click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
    @options.offline
    @options.json_to("what was fetched")
    def pull(specs: tuple[str, ...], json_to: str | None) -> None:
        fetched = [row for each in specs for row in _pull(kind, each, quiet=json_to == "-")]
        output.tell({"schema": output.FILES, "files": fetched}, "", json_to)

    @group.command("verify", help=f"""Read every pinned file in full and compare its sha256 with its pin.

        \b
        robustkit {name} verify
        robustkit {name} verify {place}
        \b
        Exit codes: 0 all are as pinned, 2 bad usage, 3 one is not.""")  # fmt: skip
    @click.argument("pattern", default="")
    @options.json_to("what was found")
    def verify(pattern: str, json_to: str | None) -> None:
        _verify(name, kind, pattern, json_to)

    @group.command("rm", help=f"""Remove the files that match PATTERN: a path, a folder, or a glob.

        \b
        robustkit {name} rm {place}
        robustkit {name} rm --yes --forget '{place}/*'
        \b
        The pins stay, so that what is fetched again must be the same; --forget drops them.""")  # fmt: skip
    @click.argument("pattern")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @click.option("--forget", is_flag=True, help="Drop the pins too: what is fetched next is pinned as it is.")
    @options.json_to("what was removed")
    def rm(pattern: str, yes: bool, forget: bool, json_to: str | None) -> None:
        _remove(name, kind, pattern, yes=yes, forget=forget, json_to=json_to)

    return group


data = _group("data", "datasets", "Datasets", "cifar10", "cifar10")
models = _group("models", "models", "Models", "robustbench/Carmon2019Unlabeled", "robustbench")


def _list(kind: "Kind", pattern: str, json_to: str | None) -> None:
    from robustkit.cache import home, shelf
    from robustkit.report.download import size

    found = shelf.items(kind, pattern)
    data = {
        "schema": "robustkit/cache/1",
        "folder": str(home() / kind),
        "files": [{"file": item.place, "bytes": item.size, "sha256": item.pin.sha256 if item.pin else None,
                   "pinned": item.pin.pinned if item.pin else None} for item in found],
    }  # fmt: skip
    if not found:
        click.echo(f"nothing{f' like {pattern!r}' if pattern else ''} in {home() / kind}", err=True)
        output.tell(data, "", json_to)
        return
    rows = _rows(found)
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:<{width}}  {size(count):>7}  {hash_:<12}  {day}" for name, count, hash_, day in rows]
    total = sum(item.size for item in found)
    lines.append(f"{len(found)} {'file' if len(found) == 1 else 'files'}, {size(total)} in {home() / kind}")
    output.tell(data, "\n".join(lines), json_to)


def _rows(found: "list[Item]") -> list[tuple[str, int, str, str]]:
    """Name, bytes, sha256 and day of each file; the unpinned ones of a crowded folder together."""
    rows: list[tuple[str, int, str, str]] = []
    crowds: dict[str, list[Item]] = {}
    for item in found:
        if item.pin is None and not item.partial:
            crowds.setdefault(_folder(item), []).append(item)
    for item in found:
        name = item.place.partition("/")[2]
        if item.pin:
            rows.append((name, item.size, item.pin.sha256[:12], item.pin.pinned))
        elif item.partial or len(crowds[_folder(item)]) <= _CROWD:
            rows.append((name, item.size, "-", "partial" if item.partial else "not pinned"))
    for folder, crowd in crowds.items():
        if len(crowd) > _CROWD:
            name = f"{folder}/… ({len(crowd)} files)"
            rows.append((name, sum(item.size for item in crowd), "-", "not pinned"))
    return sorted(rows)


def _folder(item: "Item") -> str:
    """The uppermost folder that a file lies in, below its kind."""
    return item.place.split("/")[1] if item.place.count("/") > 1 else ""


def _pull(kind: "Kind", spec: str, *, quiet: bool) -> list[str]:
    from robustkit.cache import home, pins, shelf
    from robustkit.report.download import size

    before = pins.read(home())
    with output.computing():
        if kind == "models":
            from robustkit.models.sources import load_model

            load_model(spec)
        else:
            from robustkit.datasets import load_dataset

            len(load_dataset(spec))
    fresh = [item for item in shelf.items(kind) if item.pin and item.pin != before.get(item.place)]
    for item in fresh:
        click.echo(f"{item.place}  {size(item.size)}  sha256 {item.pin.sha256 if item.pin else ''}", err=quiet)
    if not fresh:
        click.echo(f"{spec}: nothing had to be fetched", err=quiet)
    return [item.place for item in fresh]


def _verify(name: str, kind: "Kind", pattern: str, json_to: str | None) -> None:
    from robustkit.cache import shelf

    found = shelf.items(kind, pattern)
    pinned = [item for item in found if item.pin]
    wrong = {item.place: problem for item in pinned if (problem := shelf.verify(item))}
    lines = [f"{place}: {problem}; remove it to fetch it again: robustkit {name} rm {quote(place)}"
             for place, problem in wrong.items()]  # fmt: skip
    others = f", {len(found) - len(pinned)} not pinned" if len(found) > len(pinned) else ""
    lines.append(f"{len(pinned)} read in full: {len(pinned) - len(wrong)} as pinned, {len(wrong)} not{others}")
    data = {"schema": "robustkit/cache-verified/1", "read": len(pinned), "wrong": wrong}
    output.tell(data, "\n".join(lines), json_to)
    if wrong:
        end(ExitCode.NOT_ESTABLISHED)


def _remove(name: str, kind: "Kind", pattern: str, *, yes: bool, forget: bool, json_to: str | None) -> None:
    from robustkit.cache import shelf
    from robustkit.report.download import size

    found = shelf.items(kind, pattern)
    if found and not yes:
        for item in found[:10]:
            click.echo(f"{item.place}  {size(item.size)}", err=True)
        if len(found) > 10:
            click.echo(f"… and {len(found) - 10} more", err=True)
        count = f"{len(found)} {'file' if len(found) == 1 else 'files'}, {size(sum(item.size for item in found))}"
        if not click.confirm(f"Remove {count}?", err=True):
            return
    forgotten = shelf.forget(kind, pattern) if forget else []
    if not found and not forgotten:
        raise UsageError(f"nothing in the cache matches {pattern!r}; see robustkit {name} ls")
    shelf.remove(found)
    text = f"removed {len(found)} of {kind}" + (f", forgot {len(forgotten)} pins" if forgotten else "")
    data = {"schema": output.FILES, "files": [], "removed": [item.place for item in found], "forgotten": len(forgotten)}
    output.tell(data, text, json_to)
