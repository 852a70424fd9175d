"""The documentation's pages: all that there is stands in them, links lead somewhere, and the site builds strictly."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustkit import plugins
from robustkit.models.sources.zoo import Zoo

ROOT = Path(__file__).parent.parent
MKDOCS = next((str(p) for p in (ROOT / ".venv-docs/bin/mkdocs",) if p.exists()), shutil.which("mkdocs"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "docs"
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/build_pages.py"), "--out", str(out)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_pages_made_from_the_code_name_all_that_there_is(pages):
    from tests.test_help import ALL

    named = re.findall(r"^## (.*)$", (pages / "commands.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(ALL)
    for kind in ("attacks", "defenses", "recipes"):
        text = (pages / f"{kind}.md").read_text()
        for name in plugins.table(kind):
            assert f"\n## {name}\n\n```text\n{name}: " in text, name
            assert f"[{name}](#{name})" in text
    models = (pages / "models.md").read_text()
    assert all(f"### {name}\n" in models for name in Zoo().names())
    assert all(f"`{name}" in (pages / "datasets.md").read_text() for name in plugins.table("datasets"))
    assert all(f"torchattacks/{name}" in (pages / "attacks.md").read_text() for name in ("PGD", "CW"))


def test_every_link_leads_to_a_page_that_is_there(pages):
    for page in pages.rglob("*.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.partition("#")[0]
            assert target.startswith("http") or not path or (page.parent / path).exists(), f"{page.name}: {target}"


def test_nothing_of_this_machine_is_in_the_pages(pages):
    for page in pages.rglob("*.md"):
        text = page.read_text()
        assert str(ROOT) not in text, page
        assert str(Path.home()) + "/" not in text, page


def test_every_name_on_the_python_page_is_there(pages):
    import importlib

    names = re.findall(r"^::: (\S+)$", (pages / "python.md").read_text(), re.MULTILINE)
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.slow
@pytest.mark.skipif(
    MKDOCS is None, reason="mkdocs is not installed; make docs installs it in an environment of its own"
)
def test_the_site_builds_strictly_and_fetches_nothing(pages, tmp_path):
    config = tmp_path / "mkdocs.yml"
    text = (ROOT / "mkdocs.yml").read_text().replace("docs_dir: build/docs", f"docs_dir: {pages}")
    config.write_text(text.replace('paths: [".", attacks, defenses]', f'paths: ["{ROOT}", "{ROOT}/attacks"]'))
    done = subprocess.run(
        [str(MKDOCS), "build", "--strict", "-f", str(config), "-d", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages_built = list((tmp_path / "site").rglob("*.html"))
    assert len(pages_built) > 15
    for page in pages_built:
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)", page.read_text())
        assert not fetched, page
    assert "robust_accuracy" in (tmp_path / "site/python/index.html").read_text()
