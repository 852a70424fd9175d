"""`robustkit data` and `robustkit models`: the cache as the command line shows, fills, checks and empties it."""

import io
import os
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit import cache
from robustkit.cache import Remote, fetch, pins, shelf
from robustkit.cli import main
from robustkit.report import download
from tests.test_cache import BODY, PLACE, SHA, home, server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.usefixtures("home")


def run(*arguments, code=0, **more):
    done = CliRunner().invoke(main, arguments, **more)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def filled(home, server):  # noqa: F811
    """Two pinned models, one data set, a part of a cut transfer, and an unpacked folder."""
    for place in (PLACE, "models/test/other.pt", "datasets/toy/a.npz"):
        fetch(Remote(place, (server.put("/f", BODY),)))
    (home / "models/test/cut.pt.part").write_bytes(BODY[:100])
    (home / "models/test/cut.pt.part.json").write_text("{}")
    folder = home / "datasets/unpacked/train"
    folder.mkdir(parents=True)
    for index in range(20):
        (folder / f"{index}.png").write_bytes(b"0123456789")
    return home


def test_ls_shows_name_size_hash_day_and_totals(filled):
    lines = run("models", "ls").stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["test/cut.pt.part", "100", "B", "-", "partial"],
        ["test/net.pt", "700", "kB", SHA[:12], pins.read(filled)[PLACE].pinned],
        ["test/other.pt", "700", "kB", SHA[:12], pins.read(filled)[PLACE].pinned],
    ]
    assert lines[3] == f"3 files, 1.4 MB in {filled / 'models'}"
    assert len(run("models", "ls", "test/o*").stdout.splitlines()) == 2
    assert "nothing like 'zzz'" in run("models", "ls", "zzz").stderr


def test_ls_shows_a_crowd_of_unpacked_files_as_one_line(filled):
    lines = run("data", "ls").stdout.splitlines()
    assert lines[1].split() == ["unpacked/…", "(20", "files)", "200", "B", "-", "not", "pinned"]
    assert lines[-1].startswith("21 files, 700 kB")


def test_verify_finds_a_flipped_byte_that_keeps_size_and_time(filled):
    assert run("models", "verify").stdout == "2 read in full: 2 as pinned, 0 not, 1 not pinned\n"
    file = filled / PLACE
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(1234)
        stream.write(bytes([BODY[1234] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(Remote(PLACE, ())) == file  # which is why there is verify
    done = run("models", "verify", code=3)
    assert f"{PLACE}: has the sha256" in done.stdout
    assert f"robustkit models rm {PLACE}" in done.stdout
    assert "1 as pinned, 1 not" in done.stdout
    assert run("models", "verify", "test/other.pt").stdout.startswith("1 read in full: 1 as pinned")


def test_verify_makes_a_touched_file_known_again(filled):
    (filled / PLACE).touch()
    assert not pins.read(filled)[PLACE].unchanged(filled / PLACE)
    run("models", "verify")
    assert pins.read(filled)[PLACE].unchanged(filled / PLACE)


def test_rm_asks_removes_what_matches_and_keeps_the_pins(filled):
    done = run("models", "rm", "test", input="n\n")
    assert "Remove 3 files, 1.4 MB?" in done.stderr
    assert (filled / PLACE).exists()
    assert run("models", "rm", "test", input="y\n").stdout == "removed 3 of models\n"
    assert not (filled / "models").exists()  # nor its part, nor the note of the part
    assert set(pins.read(filled)) == {PLACE, "models/test/other.pt", "datasets/toy/a.npz"}
    assert (filled / "datasets/toy/a.npz").exists()


def test_rm_forget_drops_the_pins_also_after_the_files(filled):
    run("models", "rm", "--yes", PLACE)
    assert run("models", "rm", "--yes", "--forget", PLACE).stdout == "removed 0 of models, forgot 1 pins\n"
    assert PLACE not in pins.read(filled)
    done = run("models", "rm", "--yes", PLACE, code=2)
    assert "nothing in the cache matches" in done.stderr


def test_rm_follows_no_link_out_of_the_cache(filled, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.pt").write_bytes(BODY)
    (filled / "models/linked").symlink_to(outside)
    run("models", "rm", "--yes", "*")
    assert (outside / "mine.pt").exists()


@pytest.fixture
def spec(home, server, tmp_path, monkeypatch):  # noqa: F811
    """A data set and a network of the user's that fetch a file each."""
    packed = io.BytesIO()
    np.savez(packed, x=np.zeros((3, 1, 2, 2), np.float32), y=np.zeros(3, np.int64))
    data = server.put("/x.npz", packed.getvalue())
    (tmp_path / "fetching.py").write_text(f"""
import numpy, torch
from robustkit.cache import Remote, fetch
def data():
    print("chatter")
    found = numpy.load(fetch(Remote("datasets/toy/x.npz", ({data!r},))))
    return found["x"], found["y"]
def net():
    fetch(Remote("models/toy/net.pt", ({server.put("/net", BODY)!r},)))
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
""")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: f"python/fetching.{name}"
    sys.modules.pop("fetching", None)


@pytest.mark.parametrize(
    ("command", "name", "place"), [("data", "data", "datasets/toy/x.npz"), ("models", "net", "models/toy/net.pt")]
)
def test_pull_fetches_what_a_spec_needs_once(spec, home, server, command, name, place):  # noqa: F811
    missing = run(command, "pull", "--offline", spec(name), code=2)
    assert str(home / place) in missing.stderr
    assert "ROBUSTKIT_OFFLINE" in missing.stderr
    assert not cache.offline()  # the option's reach ends with its command
    done = run(command, "pull", spec(name))
    assert done.stdout.startswith(f"{place}  ")
    assert pins.read(home)[place].sha256 in done.stdout
    assert f"downloading {place}" in done.stderr
    again = run(command, "pull", "--offline", spec(name))
    assert again.stdout == f"{spec(name)}: nothing had to be fetched\n"
    assert len(server.asked) == 1


def test_eval_obeys_offline_and_quiet(spec, home, server, tmp_path):  # noqa: F811
    arguments = ["eval", "--model", spec("net"), "--data", spec("data"), "--attack", "pgd:steps=1", "--out"]
    done = run(*arguments, str(tmp_path / "a"), "--offline", code=2)
    assert "not in the cache" in done.stderr
    done = run(*arguments, str(tmp_path / "b"), "--quiet")
    assert "downloading" not in done.stderr


@pytest.mark.parametrize("command", ["data", "models"])
@pytest.mark.parametrize("verb", ["ls", "pull", "verify", "rm"])
def test_each_command_s_help_has_an_example(command, verb):
    assert f"\n  robustkit {command} {verb}" in run(command, verb, "--help").stdout


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (170_498_071, "170 MB"),
        (999_600, "1 MB"),
        (2_387_000_000, "2.39 GB"),
    ],
)
def test_sizes_are_for_people(count, text):
    assert download.size(count) == text


def test_a_terminal_gets_a_bar_and_the_part_of_a_name_matches_nothing(filled, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with download.shown(), cache.progress.get()(Remote(PLACE, (), size=100)) as report:
        report(50, None)
    assert "net.pt" in capsys.readouterr().err
    assert shelf.items("models", "tes") == []
