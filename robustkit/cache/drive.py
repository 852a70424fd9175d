"""Google Drive: the page it shows before a large file, and what it says when it gives none."""

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from robustkit.cache.checks import is_markup

HOSTS = {"drive.google.com", "docs.google.com", "drive.usercontent.google.com"}
_PAGE = 1 << 20  # bytes; its pages are far smaller


def is_drive(url: str) -> bool:
    """Whether a URL is one of Google Drive's."""
    return urlsplit(url).netloc in HOSTS


def is_page(answer: Any) -> bool:
    """Whether an answer calls itself HTML (what a file is, the caller's checks of its first bytes decide)."""
    return "text/html" in answer.headers.get("Content-Type", "")


def read_page(answer: Any) -> str:
    """The text of an answer that is a page."""
    return bytes(answer.raw.read(_PAGE, decode_content=True)).decode("utf-8", "replace")


def confirmed(page: str, address: str) -> str:
    """The URL behind "download anyway" on a page that Drive shows before a file it has not scanned, or "".

    Only an address on Drive's own hosts is returned.
    """
    found = _Page()
    found.feed(page)
    if found.action:
        joint = "&" if "?" in found.action else "?"
        onward = urljoin(address, found.action) + (joint + urlencode(found.fields) if found.fields else "")
    else:
        onward = urljoin(address, found.link) if found.link else ""
    return onward if is_drive(onward) else ""


def refusal(page: str, status: int) -> str:
    """What a page says that is no way to the file."""
    found = _Page()
    found.feed(page)
    said = " ".join(found.text.split())[:200]
    quoted = f": “{said}”" if said else ""
    if any(word in page.lower() for word in ("quota", "too many users", "many accesses")):
        return f"Google Drive's download quota for this file is used up for now (often for a day){quoted}"
    if any(word in page.lower() for word in ("sign in", "signin", "need access", "request access")):
        return f"Google Drive wants a login: the file is not public{quoted}"
    if status == 404:
        return f"Google Drive has no such file any more (HTTP 404){quoted}"
    kind = "an HTML page" if is_markup(page.encode()) else "a text"
    return f"Google Drive answers with {kind}, not the file (HTTP {status}; its quota may be used up){quoted}"


class _Page(HTMLParser):
    """Picks the download form (or the older link) and the title and error text out of one of Drive's pages."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.link = ""
        self.fields: dict[str, str] = {}
        self.text = ""
        self._in_form = False
        self._reading = ""  # the tag whose text is wanted

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = known.get("action", "")
            self._in_form = known.get("id") == "download-form" or "/uc" in action or "/download" in action
            self.action = action if self._in_form else self.action
        elif tag == "input" and self._in_form and known.get("name"):
            self.fields[known["name"]] = known.get("value", "")
        elif tag == "a" and "confirm=" in known.get("href", ""):
            self.link = known["href"]
        elif tag == "title" or "uc-error-subcaption" in known.get("class", ""):
            self._reading = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._in_form = False
        if tag == self._reading:
            self._reading = ""
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._reading:
            self.text += data
