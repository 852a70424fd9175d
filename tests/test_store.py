"""What is stored, piece by piece and without a model: files, their digests, folders, and whether a record agrees."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from robustkit.errors import UsageError
from robustkit.records import consistency, files, seal
from robustkit.records.folder import JOB, JOURNAL, RESULT, RunFolder, load_run, resume
from robustkit.records.schema import CERTIFIED, RUN
from tests import records
from tests.records import record

TWO = {"attack": "a+b", "attacks": ["a", "b"], "attack_sources": {"a": "", "b": ""}}


# --- files


def test_a_file_is_written_beside_its_place_readable_as_any_and_moved_there(tmp_path):
    there = tmp_path / "file.txt"
    seen = []

    def write(path):
        seen.append(path)
        files.text_file("new")(path)

    there.write_text("old")
    plain = tmp_path / "plain"
    plain.touch()
    files.write_atomic(there, write)
    assert there.read_text() == "new"
    assert (seen[0].parent, seen[0].name[:10], seen[0].suffix) == (tmp_path, ".file.txt.", ".part")
    assert there.stat().st_mode == plain.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "plain"]


def test_what_fails_leaves_what_was_there_names_the_file_and_no_part(tmp_path):
    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    there = tmp_path / "file.txt"
    there.write_text("old")
    with pytest.raises(OSError, match="No space left") as told:
        files.write_atomic(there, full)
    assert (told.value.errno, told.value.filename) == (28, str(there))
    assert there.read_text() == "old"
    with pytest.raises(OSError, match="nameless") as told:
        files.write_atomic(there, lambda path: (_ for _ in ()).throw(OSError("nameless")))
    assert told.value.errno == 5
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_stays_a_link_and_a_device_is_written_to(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "né")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == "né".encode()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_json_is_for_people_too_and_has_no_nan():
    assert files.dumps({"b": "ä", "a": [1]}) == '{\n "b": "ä",\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        files.dumps({"x": math.nan})


def test_arrays_come_back_but_for_those_that_are_left_out(tmp_path):
    file, arrays = tmp_path / "a.npz", {"x": np.arange(3), "name": np.array(["é", ""]), "y": np.array([math.nan])}
    assert files.read_arrays(file) is None
    files.write_arrays(file, arrays)
    found = files.read_arrays(file)
    assert list(found) == ["x", "name", "y"]
    assert all(np.array_equal(found[k], v, equal_nan=k == "y") for k, v in arrays.items())
    assert list(files.read_arrays(file, without=["name", "x"])) == ["y"]
    whole = file.read_bytes()
    for other in (b"", whole[:-1], whole[:40], whole[:-64], whole + b"0", b"x" + whole[1:]):
        file.write_bytes(other)
        with pytest.raises(UsageError, match=r"a.npz (is not as it was written|cannot be read).*delete it"):
            files.read_arrays(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        files.read_arrays(file)


def test_a_table_comes_back_with_its_gaps(tmp_path):
    file, columns = tmp_path / "t.parquet", {"i": np.arange(2), "f": np.array([0.5, np.nan]), "t": np.array(["", "b"])}
    files.parquet(columns)(file)
    found = files.read_table(file)
    assert found["t"].dtype.kind == "U"
    assert (found["i"].tolist(), found["t"].tolist(), found["f"][0]) == ([0, 1], ["", "b"], 0.5)
    assert math.isnan(found["f"][1])
    assert list(files.read_table(file, seal.sha256_of(file))) == ["i", "f", "t"]
    with pytest.raises(UsageError, match="its sha256 is another"):
        files.read_table(file, "0" * 64)
    file.write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"t\.parquet cannot be read"):
        files.read_table(file)
    with pytest.raises(UsageError, match="cannot be read"):
        files.read_table(tmp_path / "none.parquet")


def test_images_are_mapped_also_where_there_are_none(tmp_path):
    kept = {"index": np.array([3, 5]), "adv": np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2),
            "clean": np.zeros((0, 1, 2, 2), dtype=np.float32), "far": np.array([0.1])}  # fmt: skip
    write = {"images.safetensors": files.tensors(kept)}
    files.write_record(tmp_path / "r.json", {"schema": RUN}, write)
    found = files.mapped(files.Stored.read(tmp_path / "r.json", (), RUN), "images.safetensors")
    assert set(found) == set(kept)
    assert len(found) == 4
    for name, values in kept.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)
    assert files.mapped(files.Stored.read(tmp_path / "r.json", (), RUN), "other.safetensors") is None
    content = (tmp_path / "images.safetensors").read_bytes()
    for other in (b"\xff" * 20, content[:8], content[:-30], b"\x02" + b"\0" * 7 + b"[]"):
        (tmp_path / "images.safetensors").write_bytes(other)
        with pytest.raises(UsageError, match=r"images\.safetensors"):
            list(files.mapped(files.Stored.read(tmp_path / "r.json", (), RUN), "images.safetensors"))


def test_a_record_names_the_files_beside_it_and_says_what_changed(tmp_path):
    file = tmp_path / "r.json"
    files.write_record(file, {"schema": RUN, "a": 1}, {"t.parquet": files.parquet({"i": np.arange(2)}),
                                                       "page.md": files.text_file("one")})  # fmt: skip
    found = files.Stored.read(file, ("a",), RUN)
    assert found.notes == ()
    assert found.data["files"]["page.md"] == found.expected("page.md") == seal.sha256_of(tmp_path / "page.md")
    assert found.table("t.parquet")["i"].tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"other\.parquet is none of the record's files"):
        found.expected("other.parquet")
    (tmp_path / "page.md").write_text("two")
    assert "page.md: changed since" in files.Stored.read(file, ("a",), RUN).notes[0]
    files.rewrite_pages(file, {"page.md": "three", "more.md": "é"})
    found = files.Stored.read(file, ("a",), RUN)
    assert found.notes == ()
    assert set(found.data["files"]) == {"t.parquet", "page.md", "more.md"}
    assert (tmp_path / "more.md").read_text(encoding="utf-8") == "é"
    (tmp_path / "page.md").unlink()
    assert files.Stored.read(file, ("a",), RUN).notes == ()  # a report may be absent


def test_a_record_from_before_digests_is_read_with_a_note_and_stays_one(tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"schema": RUN, "a": 1}))
    files.rewrite_pages(file, {"page.md": "one"})
    found = files.Stored.read(file, ("a",), RUN)
    assert "from before records had digests" in found.notes[0]
    assert found.expected("anything") is None
    assert (tmp_path / "page.md").read_text() == "one"
    assert json.loads(file.read_text()) == {"schema": RUN, "a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no robustkit run: it lacks schema, a"),
        ('{"schema": "robustkit/run/1"}', "is no robustkit run: it lacks a$"),
        ('{"a": 1}', "it lacks schema"),
        ('{"schema": "robustkit/run/2", "a": 1}', "has schema 'robustkit/run/2'; here this version reads"),
        ('{"schema": "robustkit/run/1", "a": 1, "files": {}}', "its content has another digest"),
        ('{"schema": "robustkit/run/1", "a": NaN, "digest": "0"}', "its content has another digest"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, words):
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        files.read_json(file, ("a",))
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        files.read_json(file, ("a",))
    file.write_text(json.dumps(seal.sealed({"schema": RUN, "a": 1, "files": []})))
    with pytest.raises(UsageError, match="it names no files"):
        files.Stored.read(file, ("a",), RUN)


# --- digests


def test_a_digest_is_of_the_content_and_not_of_how_it_is_written(tmp_path):
    data = {"b": (1, 2), "a": {"x": None}}
    whole = seal.sealed(data)
    assert whole["b"] == (1, 2)
    turned = {"a": {"x": None}, "digest": whole["digest"], "b": [1, 2]}
    assert seal.is_sealed(turned, tmp_path)
    assert not seal.is_sealed(data, tmp_path)
    with pytest.raises(UsageError, match="another digest"):
        seal.is_sealed({**turned, "b": [2, 1]}, tmp_path)
    assert seal.sealed(whole) == whole


def test_a_digest_of_the_first_bytes(tmp_path):
    file = tmp_path / "f"
    content = bytes(range(256)) * 5000  # more than is read at once
    file.write_bytes(content)
    for stop in (0, 1, 300, 1 << 20, (1 << 20) + 1, len(content), len(content) + 9):
        (tmp_path / "part").write_bytes(content[:stop])
        with file.open("rb") as handle:
            assert seal.sha256_before(handle, stop) == seal.sha256_of(tmp_path / "part")
    seal.check_file(file, seal.sha256_of(file))
    with pytest.raises(UsageError, match="its sha256 is another; fetch it"):
        seal.check_file(file, "0", "fetch it")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        seal.check_file(tmp_path / "none", "0")


# --- folders


def test_a_folder_is_begun_continued_cleared_and_given_back(tmp_path):
    folder, job = RunFolder(tmp_path / "run"), {"id": "1", "eps": 0.1}
    assert folder.open(job, {"size": 4}, fresh=False) == {"size": 4}
    assert not folder.has_parts()
    assert folder.read_part(0, 1) is None
    folder.write_part(0, 1, {"x": np.arange(2)})
    assert (tmp_path / "run" / JOURNAL / "shard-00000-01.npz").is_file()
    assert folder.has_parts()
    assert folder.read_part(0, 1)["x"].tolist() == [0, 1]
    assert folder.open(job, {"size": 9}, fresh=False) == {"size": 4}  # as it was begun
    with pytest.raises(UsageError, match=r"holds another run \(eps differs: 0.1 there, 0.2 asked\); choose another"):
        folder.open({"id": "2", "eps": 0.2}, {}, fresh=False)
    with pytest.raises(UsageError, match=r"another run \(id differs: 1 there, 2 asked\)"):
        folder.open({"id": "2", "eps": 0.1}, {}, fresh=False)
    assert not folder.finished()
    (tmp_path / "run" / RESULT).write_text("{}")
    for place in (tmp_path / "run", tmp_path / "run" / JOURNAL):
        (place / ".x.part").touch()
    assert folder.finished()
    folder.begin()
    assert not folder.finished()
    assert not list((tmp_path / "run").rglob("*.part"))
    assert folder.open({"id": "2", "eps": 0.2}, {"size": 8}, fresh=True) == {"size": 8}
    assert not folder.has_parts()
    assert json.loads((tmp_path / "run" / JOB).read_text())["job"] == {"id": "2", "eps": 0.2}
    folder.discard()
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="is not empty and holds no robustkit run"):
            RunFolder(tmp_path).open({"id": "1"}, {}, fresh=fresh)
    (tmp_path / "letter.txt").unlink()
    RunFolder(tmp_path).open({"id": "1"}, {}, fresh=False)
    (tmp_path / "letter.txt").write_text("dear")
    RunFolder(tmp_path).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_parts_that_are_known_are_not_made_again(tmp_path):
    made = []

    def make(number):
        made.append(number)
        if number == 2 and len(made) < 4:
            raise ValueError("stopped")
        return {"x": [number, 10 * number], "t": "ab"}

    def run(out, *, fresh=False, **job):
        return list(resume(out, CERTIFIED, "out.json", {"eps": 0.1, **job}, 3, make, fresh=fresh))

    with pytest.raises(ValueError, match="stopped"):
        run(tmp_path / "run")
    (tmp_path / "run/out.json").touch()
    whole = [{"x": [n, 10 * n], "t": "ab"} for n in range(3)]
    assert run(tmp_path / "run") == whole
    assert made == [0, 1, 2, 2]
    assert not (tmp_path / "run/out.json").exists()
    assert run(tmp_path / "run") == whole
    assert len(made) == 4
    with pytest.raises(UsageError, match="holds another run"):
        run(tmp_path / "run", eps=0.2)
    assert run(tmp_path / "run", fresh=True, eps=0.2) == whole
    assert len(made) == 7
    assert run(None) == whole
    assert len(made) == 10


def test_what_was_refused_at_once_leaves_no_folder(tmp_path):
    def refuse(number):
        if number == late:
            raise UsageError("not so")
        return {"x": 1}

    for late in (0, 1):
        with pytest.raises(UsageError, match="not so"):
            list(resume(tmp_path / str(late), CERTIFIED, "out.json", {}, 2, refuse, fresh=False))
        assert (tmp_path / str(late)).exists() is bool(late)


def test_a_record_is_loaded_as_it_was_saved_or_it_is_said_why_not(tmp_path):
    made = records.random_record(30, images=True, audit=records.AUDIT)
    RunFolder(tmp_path / "run").open(made.job, {}, fresh=False)
    with pytest.raises(UsageError, match="is not finished; run its command again to continue it"):
        load_run(tmp_path / "run")
    RunFolder(tmp_path / "run").save(made, {"report.md": "a page"})
    found = load_run(str(tmp_path / "run"))
    assert found.to_json() == made.to_json()
    assert (found.folder, found.notes) == (str(tmp_path / "run"), ())
    assert {k: v.tolist() for k, v in found.adversarial.items()} == {k: v.tolist() for k, v in made.adversarial.items()}
    for table in ("samples", "attacks"):
        for name, values in getattr(made, table).items():
            assert np.array_equal(getattr(found, table)[name], values, equal_nan=values.dtype.kind == "f")
    with pytest.raises(UsageError, match="no run folder at"):
        load_run(tmp_path / "none")
    (tmp_path / "run/sweep.json").touch()
    with pytest.raises(UsageError, match="holds a sweep over eps"):
        load_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty is empty; give the folder of a run"):
        load_run(tmp_path / "empty")
    (tmp_path / "empty/run.json").touch()
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        load_run(tmp_path / "empty")
    RunFolder(tmp_path / "other", CERTIFIED).open({"id": "1"}, {}, fresh=False)
    with pytest.raises(UsageError, match=r"the certificate in .*other is not finished"):
        load_run(tmp_path / "other")
    (tmp_path / "other/run.json").write_text(json.dumps({"schema": CERTIFIED}))
    with pytest.raises(UsageError, match="has schema 'robustkit/certified/1'"):
        load_run(tmp_path / "other")


# --- whether a record agrees with itself


def whole():
    """Wrong; broken by a; violated by a and then broken by b; broken by b; robust; violated by b."""
    found = record("WBBBRU", by=["", "a", "b", "b", "", ""], **TWO)
    outcome = np.array(["broken", "violated", "survived", "survived", "survived",  # of samples 1 to 5 under a
                        "broken", "broken", "survived", "violated"])  # of samples 2 to 5 under b  # fmt: skip
    distance = np.array([0.1, np.nan, 0.05, 0.05, 0.05, 0.02, np.nan, 0.05, np.nan])
    samples = {**found.samples, "distance": np.array([np.nan, 0.1, 0.02, np.nan, np.nan, np.nan]),
               "broken_at": np.full(6, np.nan)}  # fmt: skip
    return replace(found, samples=samples, attacks={**found.attacks, "outcome": outcome, "distance": distance})


def faults(found, summary=None):
    try:
        consistency.check_run(found, summary or {})
    except UsageError as error:
        return str(error)
    return ""


def told(found):
    return {"counts": dict(found.counts), "attacks": [row.to_json() for row in found.by_attack]}


def edit(found, table, column, row, value):
    columns = {name: values.copy() for name, values in getattr(found, table).items()}
    columns[column] = columns[column].astype(object) if isinstance(value, str) else columns[column]
    columns[column][row] = value
    if isinstance(value, str):
        columns[column] = columns[column].astype(str)
    return replace(found, **{table: columns})


def test_a_mixed_run_agrees_with_itself():
    assert faults(whole()) == ""
    assert faults(whole(), told(whole())) == ""
    turned = {name: values[[8, 3, 1, 0, 2, 4, 6, 7, 5]] for name, values in whole().attacks.items()}
    assert faults(replace(whole(), attacks=turned)) == ""  # rows of attacks have no order


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("samples", "status", 5, "ROBUST"), "sample 5 is ROBUST, its attacks make it UNKNOWN"),
        (("samples", "status", 4, "UNKNOWN"), "sample 4 is UNKNOWN, its attacks make it ROBUST"),
        (("samples", "status", 1, "WRONG"), "a met 5 samples, which are not the 4 that stood"),
        (("samples", "status", 0, "ROBUST"), "a met 5 samples, which are not the 6 that stood"),
        (("samples", "broken_by", 2, "a"), "sample 2 is broken by 'a', its attacks say 'b'"),
        (("samples", "broken_by", 4, "b"), "sample 4 is broken by 'b', its attacks say ''"),
        (("samples", "distance", 1, 0.2), "sample 1 has two distances"),
        (("samples", "distance", 3, 0.01), "sample 3 has two distances"),
        (("attacks", "outcome", 7, "broken"), "sample 4 has two distances"),
        (("attacks", "outcome", 0, "survived"), "b met 4 samples, which are not the 5 that stood"),
        (("attacks", "outcome", 0, "won"), "outcome 'won' is none of survived, broken, violated"),
        (("attacks", "attack", 0, "c"), "attack 'c' is none of a, b"),
        (("attacks", "forwards", 3, -2), "forwards are -2 on a sample"),
        (("attacks", "backwards", 3, -1), "backwards are -1 on a sample"),
        (("attacks", "index", 8, 77), "an attack met a sample that is not there"),
        (("attacks", "index", 8, 4), "b met 4 samples, which are not the 4 that stood"),
        (("samples", "label", 2, 9), "do not make its data_sha256"),
        (("samples", "index", 2, 9), "its 6 samples are not the 6 of its job"),
    ],
)
def test_a_fault_is_named(change, words):
    assert words in faults(edit(whole(), *change))


def test_a_break_beyond_eps_is_none():
    far = edit(edit(whole(), "samples", "distance", 1, 0.1001), "attacks", "distance", 0, 0.1001)
    assert "sample 1 is broken at distance 0.1001, beyond eps 0.1" in faults(far)
    near = 0.1 * (1 + 1e-6)
    assert faults(edit(edit(whole(), "samples", "distance", 1, near), "attacks", "distance", 0, near)) == ""


def test_a_summary_that_says_other_figures_is_refused():
    for place, (key, value) in enumerate([("attacked", 4), ("broken", 0), ("violated", 2), ("forwards", 0),
                                          ("backwards", 1), ("name", "c")]):  # fmt: skip
        said = told(whole())
        said["attacks"][place % 2][key] = value
        assert f"{key} of {'ab'[place % 2]} is {value} in its summary" in faults(whole(), said)
    said = told(whole())
    said["counts"]["ROBUST"] = 2
    assert "its summary counts" in faults(whole(), said)
    said = told(whole())
    said["attacks"][1]["seconds"] = 99.0  # measured, not computed
    assert faults(whole(), said) == ""


def test_a_job_has_the_identity_of_its_content():
    assert "another id than its content makes" in faults(replace(whole(), job={**whole().job, "eps": 0.2}))


def test_what_a_smaller_eps_broke_was_met_by_no_attack():
    found = record("BR", by=["a", ""], carried="ff", **TWO)
    samples = {**found.samples, "broken_at": np.array([0.05, np.nan]), "distance": np.array([0.05, np.nan])}
    only = {name: values[found.attacks["index"] == 1] for name, values in found.attacks.items()}
    assert faults(replace(found, samples=samples, attacks=only)) == ""
    assert "a met 2 samples, which are not the 1" in faults(replace(found, samples=samples))
    here = {**samples, "broken_at": np.array([0.1, np.nan])}  # broken at this very eps, so it was met
    assert "a met 1 samples, which are not the 2" in faults(replace(found, samples=here, attacks=only))


def test_what_is_lost_after_rounding_is_what_the_attacks_say():
    found = whole()
    attacks = {**found.attacks, "quantized": np.array(["broken", *["survived"] * 4, "broken", *["survived"] * 3])}
    column = np.array(["WRONG", "BROKEN", "BROKEN", "ROBUST", "ROBUST", "UNKNOWN"])

    def rounded(said):
        return faults(replace(found, samples={**found.samples, "quantized_status": said}, attacks=attacks))

    assert rounded(column) == ""
    edits = [(1, "ROBUST", "BROKEN"), (3, "BROKEN", "ROBUST"), (5, "ROBUST", "UNKNOWN"), (0, "ROBUST", "WRONG")]
    for at, other, due in edits:
        said = column.copy()
        said[at] = other
        assert f"sample {at} is {other} after rounding, its attacks make it {due}" in rounded(said)


def test_a_randomised_model_is_flagged_and_its_patterns_are_whole():
    flags = [{"kind": "randomised", "message": "noise"}]
    found = record("BR", draws=3, flags=flags)
    right, wrong = "0" * 13, "1" * 13

    def drawn(clean, attacked, flags=flags, **job):
        made = replace(found, flags=flags, samples={**found.samples, "draws": np.array(clean)},
                       attacks={**found.attacks, "draws": np.array(attacked)})  # fmt: skip
        return faults(made)

    assert drawn([right, right], [wrong, ""]) == ""
    assert "voted on as randomised, and no flag says so" in drawn([right, right], [wrong, ""], flags=())
    assert "draws '' are no pattern of 13 draws" in drawn([right, ""], [wrong, ""])
    assert "draws '01' are no pattern" in drawn([right, right], [wrong, "01"])
    assert f"draws '{'2' * 13}' are no pattern" in drawn([right, "2" * 13], [wrong, ""])
    assert f"draws '{'0' * 40}' are no" in drawn([right, "0" * 50], [wrong, ""])
    noisy = record("BR", noisy_sha256="ab")
    assert "voted on as randomised, and no flag says so" in faults(noisy)
    assert faults(replace(noisy, flags=flags)) == ""


def test_what_a_reader_trips_over_is_no_whole_record(tmp_path):
    for error in (KeyError("x"), TypeError("x"), ValueError("x"), AttributeError("x"), IndexError("x")):
        with (
            pytest.raises(UsageError, match=f"holds no whole record .{type(error).__name__}"),
            consistency.readable(tmp_path),
        ):
            raise error
    with pytest.raises(ZeroDivisionError), consistency.readable(tmp_path):
        raise ZeroDivisionError
