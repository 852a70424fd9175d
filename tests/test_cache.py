"""The cache: what arrives is what was wanted, whole and once; what is not is refused, explained and cleaned away."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from robustkit import cache
from robustkit.cache import Remote, fetch, pins, transfer
from robustkit.errors import UsageError
from tests.server import Server, start

BODY = b"DATA" + random.Random(0).randbytes(700_000)
SHA = hashlib.sha256(BODY).hexdigest()
PLACE = "models/test/net.pt"
HTML = b"\n<!DOCTYPE html><html><title>Oops</title></html>"
GONE = "http://127.0.0.1:9/nobody-listens"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("ROBUSTKIT_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server():
    found = Server()
    running = start(found)
    yield found
    found.stopped.set()
    running.shutdown()
    running.server_close()


def leftovers(home):
    return sorted(p.name for p in home.rglob("*") if p.is_file() and ".locks" not in p.parts and p.name != "lock.json")


def refused(remote, *words):
    """The one line of the refusal: it says where to put the file, and each of the words."""
    with pytest.raises(UsageError) as error:
        fetch(remote)
    text = str(error.value)
    assert "\n" not in text
    for word in (remote.place, str(cache.place_of(remote)), *words):
        assert word in text
    return text


# --- a transfer ---------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_with_progress_and_pinned(home, server):
    seen = []
    remote = Remote(PLACE, (server.put("/f", BODY),))
    file = fetch(remote, lambda done, total: seen.append((done, total)))
    assert file == home / PLACE
    assert file.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert json.loads((home / "lock.json").read_text())[PLACE]["sha256"] == SHA
    assert fetch(remote) == file
    assert len(server.asked) == 1
    assert leftovers(home) == ["net.pt"]


@pytest.mark.parametrize("known", [{}, {"sha256": SHA}], ids=["version from ETag", "hash known"])
def test_a_cut_transfer_is_continued_at_once_from_where_it_broke(home, server, known):
    remote = Remote(PLACE, (server.put("/f", BODY, cut=300_000, tag=not known),), **known)
    assert fetch(remote).read_bytes() == BODY
    assert server.asked == [("/f", ""), ("/f", "bytes=300000-")]
    assert server.sent == len(BODY)


def test_a_transfer_that_stays_cut_keeps_its_part_and_the_next_call_continues_it(home, server, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    remote = Remote(PLACE, (server.put("/f", BODY, cut=300_000),))
    refused(remote, f"{server.url}/f", f"cut at 300000 of {len(BODY)} bytes")
    assert leftovers(home) == ["net.pt.part", "net.pt.part.json"]
    assert fetch(remote).read_bytes() == BODY
    assert server.asked[-1] == ("/f", "bytes=300000-")
    assert leftovers(home) == ["net.pt"]


def test_a_server_without_ranges_starts_again(home, server, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 2)
    remote = Remote(PLACE, (server.put("/f", BODY, cut=300_000, ranges=False),))
    assert fetch(remote).read_bytes() == BODY
    assert server.sent == 300_000 + len(BODY)


def test_a_file_that_changed_between_two_transfers_is_not_joined_from_both(home, server, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    remote = Remote(PLACE, (server.put("/f", b"old!" + BODY[4:], cut=300_000),))
    refused(remote, "cut")
    server.put("/f", BODY)
    assert fetch(remote).read_bytes() == BODY


def test_without_a_version_or_a_hash_a_part_is_not_believed(home, server, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    remote = Remote(PLACE, (server.put("/f", BODY, cut=300_000, tag=False),))
    refused(remote, "cut")
    assert fetch(remote).read_bytes() == BODY
    assert server.asked[-1] == ("/f", "")


@pytest.mark.parametrize("extra", [b"", b"and more"], ids=["complete", "too long"])
def test_a_part_that_holds_all_or_too_much_ends_well(home, server, extra):
    remote = Remote(PLACE, (server.put("/f", BODY),), sha256=SHA)
    (home / PLACE).parent.mkdir(parents=True)
    (home / (PLACE + ".part")).write_bytes(BODY + extra)
    assert fetch(remote).read_bytes() == BODY
    assert server.sent == (len(BODY) if extra else 0)


def test_a_wrong_part_is_noticed_by_the_hash_and_fetched_from_the_beginning(home, server):
    remote = Remote(PLACE, (server.put("/f", BODY),), sha256=SHA)
    (home / PLACE).parent.mkdir(parents=True)
    (home / (PLACE + ".part")).write_bytes(b"x" * 1000)
    assert fetch(remote).read_bytes() == BODY


def test_a_length_that_is_not_told_is_fine(home, server):
    seen = []
    fetch(Remote(PLACE, (server.put("/f", BODY, length=False),), sha256=SHA), lambda *now: seen.append(now))
    assert seen[-1] == (len(BODY), None)


def test_an_interrupted_process_keeps_its_part(home, server):
    url = server.put("/f", BODY, pause=3600)  # it ends when the server is stopped
    program = f"from robustkit.cache import *; fetch(Remote({PLACE!r}, ({url!r},)))"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    part = home / (PLACE + ".part")
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert BODY.startswith(part.read_bytes())
    server.pages["/f"].pause = 0
    length = part.stat().st_size
    assert length > 0
    assert fetch(Remote(PLACE, (url,))).read_bytes() == BODY
    assert server.asked[-1] == ("/f", f"bytes={length}-")


def test_two_processes_at_once_make_one_transfer(home, server):
    url = server.put("/f", BODY, pause=0.5)
    program = f"from robustkit.cache import *; print(fetch(Remote({PLACE!r}, ({url!r},))).stat().st_size)"
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [f"{len(BODY)}\n"] * 2
    assert server.asked == [("/f", "")]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        (HTML, {}, "is an HTML page, not the file"),
        (HTML, {"kind": "application/octet-stream"}, "is an HTML page"),
        (b"\xef\xbb\xbf<html>", {}, "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", {}, "is a git-lfs pointer"),
        (b"", {}, "is empty"),
        (b"DATAshort", {}, f"it has 9 bytes there, not {len(BODY)}"),
        (b"DATAshort", {"length": False}, f"has 9 bytes, not {len(BODY)}"),
        (b"Rar!" + BODY[4:], {}, r"begins with b'Rar!"),
        (BODY[:-1] + b"!", {}, "has the sha256"),
        (BODY, {"status": 403}, "HTTP 403"),
    ],
)
def test_what_is_not_the_file_is_refused_and_leaves_nothing(home, server, body, more, reason):
    url = server.put("/f", body, **more)
    remote = Remote(PLACE, (url,), SHA, size=len(BODY), magic=(b"DATA",), by_hand="https://page.example/net")
    refused(remote, url, reason, "https://page.example/net")
    assert leftovers(home) == []
    assert pins.read(home) == {}


def test_md5_is_checked_where_it_is_all_there_is(home, server):
    url = server.put("/f", BODY)
    refused(Remote(PLACE, (url,), md5="0" * 32), "has the md5")
    assert leftovers(home) == []
    good = Remote(PLACE, (url,), md5=hashlib.md5(BODY).hexdigest())
    assert fetch(good).read_bytes() == BODY
    refused(Remote(PLACE, (url,), md5="0" * 32), "the file there has the md5")


@pytest.mark.parametrize("length", [True, False])
def test_a_zip_that_was_cut_is_refused_though_nothing_is_known_of_it(home, server, length):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", BODY)
    whole = packed.getvalue()
    refused(Remote(PLACE, (server.put("/cut", whole[:-30], length=length),)), "a zip archive that was cut short")
    assert leftovers(home) == []
    assert fetch(Remote(PLACE, (server.put("/whole", whole, length=length),))).read_bytes() == whole


def test_no_connection_is_called_that(home):
    refused(Remote(PLACE, (GONE,)), GONE, "no connection")
    refused(Remote(PLACE, ()), "no address is known")


def test_mirrors_are_tried_in_order(home, server):
    bad, good, unused = server.put("/bad", HTML), server.put("/good", BODY), server.put("/unused", BODY)
    assert fetch(Remote(PLACE, (GONE, bad, good, unused))).read_bytes() == BODY
    assert [path for path, _ in server.asked] == ["/bad", "/good"]


def test_all_mirrors_and_their_reasons_are_named(home, server):
    bad = server.put("/bad", HTML)
    refused(Remote(PLACE, (bad, f"{server.url}/none")), f"{bad}: the answer is an HTML page", "/none: HTTP 404")


def test_a_later_change_at_the_publisher_s_is_refused_until_the_pin_is_dropped(home, server):
    remote = Remote(PLACE, (server.put("/f", BODY),))
    fetch(remote).unlink()
    server.put("/f", BODY + b"changed")
    refused(remote, f"not {SHA} as on", f"robustkit models rm --forget {PLACE}")
    assert leftovers(home) == []
    pins.forget(home, PLACE)
    assert fetch(remote).read_bytes() == BODY + b"changed"


def test_a_file_changed_after_its_pin_is_fetched_again(home, server):
    remote = Remote(PLACE, (server.put("/f", BODY),))
    fetch(remote).write_bytes(BODY[:-1])
    assert fetch(remote).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_file_changed_after_its_pin_is_named_when_it_cannot_be_fetched_again(home, server):
    remote = Remote(PLACE, (server.put("/f", BODY),))
    fetch(remote).write_bytes(BODY[:-1])
    server.pages.clear()
    refused(remote, "the file there has the sha256", "HTTP 404")


def test_a_full_read_is_done_once_not_on_each_use(home, server, monkeypatch):
    remote = Remote(PLACE, (server.put("/f", BODY),), sha256=SHA)
    fetch(remote)
    monkeypatch.setattr("robustkit.cache.checks.hashes", lambda *a, **k: pytest.fail("read again"))
    fetch(remote)
    with pytest.raises(pytest.fail.Exception, match="read again"):  # another hash is asked for: not believed unread
        fetch(Remote(PLACE, remote.urls, sha256="0" * 64))


@pytest.mark.parametrize("place", ["", "/etc/passwd", "../x", "models/../../x", "models\\x"])
def test_a_place_outside_the_cache_is_refused(home, place):
    with pytest.raises(ValueError, match="no place below the cache"):
        fetch(Remote(place, ()))


def test_a_cache_that_cannot_be_written_is_named(home, server):
    home.write_text("a file where the folder should be")
    refused(Remote(PLACE, (server.put("/f", BODY),)), "ROBUSTKIT_HOME")


def test_a_broken_lock_file_is_named(home, server):
    home.mkdir()
    (home / "lock.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"lock\.json cannot be read"):
        fetch(Remote(PLACE, (server.put("/f", BODY),)))


# --- without a network --------------------------------------------------------------------------------------------


def test_offline_says_what_is_missing_and_where_it_goes_and_asks_nobody(home, server, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    remote = Remote(PLACE, (server.put("/f", BODY),), by_hand="https://page.example/net")
    refused(remote, "not in the cache", "ROBUSTKIT_OFFLINE", "https://page.example/net")
    assert server.asked == []


def test_a_file_put_there_by_hand_is_checked_and_pinned(home, monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    file = home / PLACE
    file.parent.mkdir(parents=True)
    file.write_bytes(HTML)
    refused(Remote(PLACE, ()), "the file there is an HTML page")
    assert file.read_bytes() == HTML  # a person's file is not deleted
    file.write_bytes(BODY)
    refused(Remote(PLACE, (), sha256="0" * 64), "the file there has the sha256")
    assert fetch(Remote(PLACE, ())) == file
    assert pins.read(home)[PLACE].sha256 == SHA
    assert fetch(Remote(PLACE, (), sha256=SHA)) == file


def test_home_is_the_variable_s_or_the_platform_s(home, monkeypatch):
    assert cache.home() == home
    monkeypatch.delenv("ROBUSTKIT_HOME")
    assert cache.home().name.lower() == "robustkit"
    monkeypatch.setenv("ROBUSTKIT_HOME", "~/x")
    assert cache.home() == Path.home() / "x"


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_offline_is_a_switch(monkeypatch, value, wanted):
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", value)
    assert cache.offline() is wanted


# --- pins ---------------------------------------------------------------------------------------------------------


def test_pins_written_by_many_processes_are_all_kept(home, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    program = (
        "import sys; from pathlib import Path; from robustkit.cache import home, pins\n"
        "for i in range(15): pins.write(home(), f'models/{sys.argv[1]}-{i}', Path(sys.argv[2]), '0' * 64)"
    )
    arguments = [sys.executable, "-c", program]
    running = [subprocess.Popen([*arguments, name, str(tmp_path / "f")], env=os.environ) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert len(pins.read(home)) == 30


def test_the_checks_see_pages_and_not_binary_data():
    assert cache.checks.is_markup(b" \n<?xml version")
    assert not cache.checks.is_markup(b"\t<\x00\x80\x90")  # a label and a pixel
    assert not cache.checks.not_a_file(BODY[:512])
