"""Templates filled to self-contained HTML pages: no script, nothing from elsewhere, light and dark. Needs jinja2.

Everything that comes from a record is escaped; only what is made here is markup.
"""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError
from robustkit.report import svg
from robustkit.stats import Proportion

TEMPLATES = Path(__file__).parent / "templates"


def available() -> bool:
    """Whether jinja2, which fills the pages, is installed."""
    return importlib.util.find_spec("jinja2") is not None


def need() -> None:
    """Refuse early what makes a page.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    if not available():
        raise UsageError("an HTML report needs 'jinja2', which is not installed: pip install 'robustkit-bench[plots]'")


def fill(name: str, page: Mapping[str, Any], title: str) -> str:
    """The page that a template makes of some values; `title` is what the browser's tab says.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    need()
    style = markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return str(_environment().get_template(name).render(page=page, title=f"{title} · robustkit", style=style))


@cache
def _environment() -> Any:
    """What fills templates: it escapes all that is not markup, and takes no missing value for an empty one."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def markup(made: str) -> Any:
    """Text made here, which is markup already."""
    from markupsafe import Markup

    return Markup(made)


def bar(share: Proportion | None, colour: int = 0) -> Any:
    """A share as a bar with its interval; nothing of one that is not established."""
    return "" if share is None else markup(svg.bar(float(share), share.low, share.high, colour))


def given(pairs: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Names and values as text, without those that are not known."""
    return [(name, str(value)) for name, value in pairs if value not in ("", None)]


def versions(known: Mapping[str, Any]) -> str:
    """Packages and their versions in words."""
    return ", ".join(f"{name} {version}" for name, version in known.items())


def machine(environment: Mapping[str, Any]) -> str:
    """Where something was computed, in words."""
    return ", ".join(str(environment[key]) for key in ("device", "platform") if environment.get(key))
