"""Google Drive, as it answers to a program: its confirm page, its refusals, and the file."""

import pytest

from robustkit.cache import Remote, drive, fetch
from tests.server import Page
from tests.test_cache import BODY, PLACE, home, leftovers, refused, server  # noqa: F401 (home, server: fixtures)

CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p>Google Drive can't scan this file for viruses. <a href="/open?id=F">net.pt</a> (668k) is too large.</p>
<form action="/search" method="get"><input name="q" value=""></form>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="F&amp;1"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-34"></form></body></html>"""
QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""


@pytest.fixture
def at_drive(home, server, monkeypatch):  # noqa: F811
    monkeypatch.setattr(drive, "HOSTS", {server.host})
    return server


def test_drive_s_confirm_form_is_answered_also_when_resuming(at_drive, home):  # noqa: F811
    page = CONFIRM.format(action=f"{at_drive.url}/download").encode()
    url = at_drive.put("/uc?id=F", page, kind="text/html; charset=utf-8", ranges=False, tag=False)
    at_drive.put("/download?id=F%261&export=download&confirm=t&uuid=12-34", BODY, cut=300_000)
    assert fetch(Remote(PLACE, (url,))).read_bytes() == BODY
    assert [(path[:9], span) for path, span in at_drive.asked] == [
        ("/uc?id=F", ""),
        ("/download", ""),
        ("/uc?id=F", "bytes=300000-"),
        ("/download", "bytes=300000-"),
    ]


def test_drive_s_older_confirm_link_is_followed(at_drive, home):  # noqa: F811
    page = b'<html><a id="uc-download-link" href="/uc?export=download&amp;confirm=AbC&amp;id=F">Download anyway</a>'
    url = at_drive.put("/uc?id=F", page, kind="text/html")
    at_drive.put("/uc?export=download&confirm=AbC&id=F", BODY)
    assert fetch(Remote(PLACE, (url,))).read_bytes() == BODY


def test_drive_s_small_files_come_directly(at_drive, home):  # noqa: F811
    assert fetch(Remote(PLACE, (at_drive.put("/uc?id=F", BODY),))).read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "status", "reason"),
    [
        (QUOTA, 200, "download quota for this file is used up for now"),
        (QUOTA, 403, "Too many users have viewed or downloaded this file recently."),
        (b"<html><title>Sign in - Google Accounts</title>", 200, "wants a login"),
        (b"<html><title>Error 404 (Not Found)!!1</title>", 404, "HTTP 404"),
    ],
)
@pytest.mark.parametrize("confirmed_first", [False, True])
def test_drive_s_refusals_are_told_apart(at_drive, home, page, status, reason, confirmed_first):  # noqa: F811
    url = at_drive.put("/uc?id=F", page, status=status, kind="text/html")
    if confirmed_first:
        at_drive.put("/uc?id=F", CONFIRM.format(action="/download").encode(), kind="text/html")
        at_drive.special = lambda path: Page(page, status, "text/html") if path.startswith("/download") else None
    refused(Remote(PLACE, (url,)), url, "Google Drive", reason)
    assert leftovers(home) == []


def test_drive_s_form_is_not_followed_to_another_host(at_drive, home):  # noqa: F811
    page = CONFIRM.format(action="http://elsewhere.example/download").encode()
    url = at_drive.put("/uc?id=F", page, kind="text/html")
    refused(Remote(PLACE, (url,)), "Google Drive answers with an HTML page")
    assert len(at_drive.asked) == 1
