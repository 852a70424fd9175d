"""Puts the documentation's pages together in build/docs: what is written, and what the code says of itself.

    python docs/build_pages.py          (then: mkdocs build; `make docs` does both)

Written pages are copied with their links pointing to where the pages will be. The pages on commands, attacks, defenses,
models and datasets are made from click and from the plugin tables, and so cannot be out of date.
"""

import argparse
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from robustkit import datasets, plugins
from robustkit.cli import cards
from robustkit.cli import main as program
from robustkit.errors import UsageError
from robustkit.models import sources

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
PYTHON = {
    "Evaluating": ["robustkit.evaluation.evaluate", "robustkit.records.run.RunRecord",
                   "robustkit.records.folder.load_run"],
    "Transfer": ["robustkit.transfers.transfer", "robustkit.records.transfer.TransferRecord",
                 "robustkit.records.transfer_folder.load_transfer"],
    "Models and data": ["robustkit.models.sources.load_model", "robustkit.datasets.load_dataset"],
    "Comparing": ["robustkit.records.compare.compare",
                  "robustkit.records.compare.Comparison", "robustkit.records.compare.Change",
                  "robustkit.stats.Proportion", "robustkit.stats.mcnemar_p"],
    "Studies": ["robustkit.study.grammar.read", "robustkit.study.run.run", "robustkit.study.results.load"],
    "What plugins are made of": ["robustkit.api", "robustkit.plugins.Plugin", "robustkit.plugins.Entry",
                                 "robustkit.testing.check_attack"],
    "Errors": ["robustkit.errors"],
}  # fmt: skip


RENAMED = {"defenses.md": "writing-a-defense.md"}  # the site's defenses.md is the list of those that there are


def written() -> dict[str, str]:
    """The written pages: from their place in the repository to that in the site."""
    found = {
        "README.md": "index.md",
        "ARCHITECTURE.md": "architecture.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
    }
    for file in sorted((ROOT / "docs").rglob("*.md")):
        place = file.relative_to(ROOT / "docs").as_posix()
        found[f"docs/{place}"] = RENAMED.get(place, place)
    for file in sorted((ROOT / "reports").rglob("README.md")):
        place = file.relative_to(ROOT).as_posix()
        found[place] = place.replace("/README.md", ".md")
    return found


def copied(text: str, source: str, pages: dict[str, str], out: Path) -> str:
    """A written page with its links as they are in the site: to pages, to copied pictures, or none."""
    here = pages[source]

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if place not in pages and f"{place}/README.md" in pages:
            place = f"{place}/README.md"
        if place in pages:
            to = pages[place]
        elif mark and (ROOT / place).is_file():
            to = place
            (out / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / place, out / to)
        elif (ROOT / place).exists():  # a file of the repository that is no page
            return words
        else:
            raise SystemExit(f"{source}: there is no {target}, which it points to")
        relative = posixpath.relpath(to, posixpath.dirname(here) or ".")
        return f"{mark}[{words}]({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def commands() -> str:
    """Every command with its help."""
    parts = ["# Commands", "What `robustkit COMMAND --help` prints. Shell completion: `robustkit completion bash`."]
    for path, command in _walk(program, ("robustkit",)):
        context = click.Context(command, info_name=" ".join(path), **program.context_settings)
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from _walk(command.commands[name], (*path, name))


def attacks() -> str:
    """A card for each native attack, and the names of the other libraries'."""
    parts = ["# Attacks", "Named as `--attack NAME:setting=value`; `robustkit show attack NAME` prints these cards."]
    parts.append(_table([(f"[{name}](#{name})", text) for name, text in _summaries("attacks")]))
    parts += [_card(name, cards.attack) for name, _ in _summaries("attacks")]
    for source, found in plugins.table("attack_sources").items():
        parts.append(f"## {source}/…\n\n{_plain(found.entry.summary)}: `pip install '{found.entry.install}'`.")
        try:
            names = [name for name, _ in cards.attacks(source)]
        except UsageError as error:
            names = [str(error)]
        parts.append(", ".join(f"`{name}`" for name in names))
    return "\n\n".join(parts) + "\n"


def defenses() -> str:
    """A card for each defense."""
    parts = ["# Defenses", "Named as `--defense NAME:setting=value`; `robustkit show defense NAME` prints these cards."]
    parts.append(_table([(f"[{name}](#{name})", text) for name, text in _summaries("defenses")]))
    parts += [_card(name, cards.defense) for name, _ in _summaries("defenses")]
    return "\n\n".join(parts) + "\n"


def recipes() -> str:
    """A card for each recipe of training."""
    parts = [
        "# Recipes",
        "Named as `robustkit train NAME:setting=value`; `robustkit show recipe NAME` prints these cards.",
    ]
    parts.append(_table([(f"[{name}](#{name})", text) for name, text in _summaries("recipes")]))
    parts += [_card(name, cards.recipe) for name, _ in _summaries("recipes")]
    return "\n\n".join(parts) + "\n"


def models() -> str:
    """The bundled networks with their cards, and the sources of others."""
    parts = ["# Models", "Named as `--model NAME` or `--model SOURCE/NAME:option=value`.", "## Bundled"]
    for name, _ in sources.listing("zoo"):
        module, card = sources.load_model(name)
        weights = sum(p.numel() for p in module.parameters())
        facts = [("data", card.dataset), ("classes", str(card.classes)), ("weights", f"{weights:,}")]
        facts += [("trained", card.notes), ("licence", card.licence), ("sha256", f"`{card.sha256}`")]
        parts.append(f"### {name}\n\n{_table([(key, _plain(text)) for key, text in facts])}")
    rows = [(f"`{name}/…`", _plain(text)) for name, text in _summaries("sources") if name != "zoo"]
    parts.append(f"## Sources\n\n{_table(rows)}")
    parts.append("`robustkit list models --source NAME` lists what a source has. Every source also takes `resize=224`, "
                 "and `mean=` with `std=` for a network that expects normalised images.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def data() -> str:
    """The datasets."""
    rows = [(f"`{name}`", _plain(text)) for name, text in datasets.listing()]
    return f"# Datasets\n\nNamed as `--dataset NAME:option=value`.\n\n{_table(rows)}\n"


def python() -> str:
    """What can be called from Python, for mkdocstrings to fill in."""
    parts = ["# Python", "The names below are imported when they are first used: `import robustkit` loads no torch."]
    for title, names in PYTHON.items():
        parts.append("\n\n".join([f"## {title}", *(f"::: {name}" for name in names)]))
    return "\n\n".join(parts) + "\n"


def index(folder: str, title: str, pages: dict[str, str]) -> str:
    """A page that lists the written pages below a folder of the site."""
    lines = [f"# {title}", ""]
    for source, place in pages.items():
        if place.startswith(f"{folder}/"):
            heading = (ROOT / source).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            lines.append(f"- [{heading}]({posixpath.relpath(place, folder)})")
    return "\n".join(lines) + "\n"


def _summaries(kind: plugins.Kind) -> list[tuple[str, str]]:
    return [(name, _plain(found.entry.summary)) for name, found in plugins.table(kind).items()]


def _card(name: str, make: object) -> str:
    try:
        text = make(name)  # type: ignore[operator]
    except UsageError as error:  # what it needs is not installed here
        text = str(error)
    return f"## {name}\n\n```text\n{text.rstrip()}\n```"


def _table(rows: list[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {first} | {second} |" for first, second in rows)


def _plain(text: str) -> str:
    """Text that is no markup and stays in its cell."""
    for char, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*"), ("[", "\\[")):
        text = text.replace(char, safe)
    return " ".join(text.split())


MADE = {
    "commands.md": commands,
    "attacks.md": attacks,
    "defenses.md": defenses,
    "recipes.md": recipes,
    "models.md": models,
    "datasets.md": data,
    "python.md": python,
}


def build(out: Path) -> None:
    """Fill the folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pages = written()
    for source, place in pages.items():
        text = copied((ROOT / source).read_text(encoding="utf-8"), source, pages, out)
        text = re.sub(r"^```(\w+) file=(\S+)$", r'```\1 title="\2"', text, flags=re.MULTILINE)
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(text, encoding="utf-8")
    for place, make in MADE.items():
        (out / place).write_text(make(), encoding="utf-8")
    for folder, title in (("decisions", "Decisions"), ("reports", "Reports")):
        (out / folder / "index.md").write_text(index(folder, title, pages), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build/docs")
    build(parser.parse_args().out)
