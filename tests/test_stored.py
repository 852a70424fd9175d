"""What is stored is read as it was written, or refused: flipped bits, edits by hand, full disks, old records."""

import contextlib
import dataclasses
import json
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robustkit
from robustkit import UsageError
from robustkit.cli import main
from robustkit.corruptions import evaluate_corruptions
from robustkit.errors import RobustkitError
from robustkit.records import baseline, corruption, seal
from robustkit.records.files import (
    dumps,
    parquet,
    read_arrays,
    rewrite_pages,
    write_arrays,
    write_record,
    write_text,
)
from robustkit.records.folder import RunFolder, load_run
from robustkit.records.sweep import Sweep, load_sweep, run_folder
from robustkit.records.transfer_folder import TransferFolder, load_transfer
from robustkit.report import files
from tests import records, toys

FIXTURES = Path(__file__).parent / "fixtures"


# --- flipped bits


def facts(record, *tables):
    """All that a record says, so that equal means the same data."""
    columns = {
        (table, name): (values.dtype.kind, values.tobytes() if values.dtype.kind in "fib" else values.tolist())
        for table in tables
        for name, values in getattr(record, table).items()
    }
    return record.to_json(), columns


def a_run(path):
    record = load_run(path)
    kept = {name: np.asarray(values).tobytes() for name, values in record.adversarial.items()}
    return facts(record, "samples", "attacks"), kept


def a_sweep(path):
    sweep = load_sweep(path)
    return sweep.eps, sweep.to_json(), [facts(record, "samples", "attacks") for record in sweep.records]


def a_transfer(path):
    return facts(load_transfer(path), "samples", "attacks", "transfer")


def a_baseline(path):
    return facts(baseline.load(path), "samples", "attacks")


def a_corruption(path):
    return corruption.load(path).to_json()


def a_journal(path):
    """What a run that continues takes from its folder."""
    folder = RunFolder(path)
    job = json.loads((path / "run.json").read_text())["job"]
    plan = folder.open(job, {"asked": "the plan that holds is the stored one"}, fresh=False)
    parts = [read_arrays(file) for file in sorted((path / "journal").glob("*.npz"))]
    return plan, [{name: (a.dtype.str, a.shape, a.tobytes()) for name, a in part.items()} for part in parts]


def a_transfer_journal(path):
    parts = [read_arrays(file) for file in sorted((path / "journal").glob("*.npz"))]
    return [{name: (a.dtype.str, a.shape, a.tobytes()) for name, a in part.items()} for part in parts]


def own(path):
    return [file for file in path.iterdir() if file.is_file() and file.name != "job.json"]


def kept(path):
    return [path / "job.json", *(path / "journal").glob("*.npz")]


STORED = {  # how each is read, and which of its files
    "run": (a_run, own),
    "run journal": (a_journal, kept),
    "sweep": (a_sweep, lambda path: [*own(path), *own(path / "eps-01"), *own(path / "eps-02")]),
    "transfer": (a_transfer, own),
    "transfer journal": (a_transfer_journal, lambda path: list((path / "journal").glob("*.npz"))),
    "base.json": (a_baseline, lambda path: [path]),
    "entry.json": (a_baseline, lambda path: [path]),
    "corruptions.json": (a_corruption, lambda path: [path]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of everything that is stored."""
    place = tmp_path_factory.mktemp("stored")
    x = torch.rand(24, 1, 4, 4, generator=toys.seeded(0))
    data = x, toys.Linear()(x).argmax(1)
    asked = {"eps": 0.1, "doctor": False, "tile": 8}
    run = robustkit.evaluate(
        toys.Linear(), data, "fgsm+(fab:steps=2)", out=place / "run", save_adversarial=True, **asked
    )
    assert {"BROKEN", "ROBUST"} <= set(run.samples["status"].tolist())
    baseline.save(run, place / "base.json")
    baseline.save(run, place / "entry.json", entry="entry")
    sweep = []
    for number, eps in enumerate((0.02, 0.05)):
        folder = run_folder(place / "sweep", number)
        carry = sweep[-1] if sweep else None
        sweep.append(robustkit.evaluate(toys.Linear(), data, "fgsm", out=folder, carry=carry, **{**asked, "eps": eps}))
    found = Sweep(("0.02", "0.05"), tuple(sweep))
    found.save(place / "sweep", files.of_sweep(found))
    robustkit.transfer({"s": toys.Linear()}, {"v": toys.Linear(seed=1)}, ["fgsm"], data, eps=0.1, tile=8,
                       out=place / "transfer")  # fmt: skip
    evaluate_corruptions(toys.Linear(), data, ["brightness", "contrast"], [1, 3]).save(place / "corruptions.json")
    return place


def flips(made, number, seed):
    """Flip single bits; returns what each led to: "refused", "same", or what must not be."""
    rng = random.Random(seed)
    todo, before = [], {}
    for name, (read, which) in STORED.items():
        path = made / name.removesuffix(" journal")
        before[name] = read(path)
        todo += [(name, path, read, file) for file in which(path)]
    ends = []
    for _ in range(number):
        name, path, read, file = rng.choice(todo)
        whole = file.read_bytes()
        at = rng.choice([rng.randrange(len(whole)), rng.randrange(min(600, len(whole))), -1 - rng.randrange(64)])
        other = bytearray(whole)
        other[at] ^= 1 << rng.randrange(8)
        file.write_bytes(other)
        try:
            ends.append("same" if read(path) == before[name] else f"{file} {at} is read as other data")
        except RobustkitError as error:
            ends.append("refused" if len(str(error).splitlines()) == 1 else f"{file} {at}: {error}")
        except Exception as error:  # the one thing that is looked for
            ends.append(f"{file} {at}: traceback {error!r}")
        finally:
            file.write_bytes(whole)
    return ends


def check_flips(ends, least):
    assert set(ends) == {"refused", "same"}, [end for end in ends if end not in ("refused", "same")][:3]
    assert ends.count("refused") >= least * len(ends)  # the rest is in reports, which no reader takes data from


def test_a_flipped_bit_is_never_read_as_other_data(made):
    check_flips(flips(made, 400, seed=1), 0.5)


@pytest.mark.slow
def test_five_thousand_flipped_bits(made):
    check_flips(flips(made, 5000, seed=0), 0.5)


def test_a_changed_report_is_noted_and_writing_it_again_heals_it(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    report = tmp_path / "run/report.md"
    before = report.read_text()
    report.write_text(before.replace("Robust accuracy: ", "Robust accuracy: 9"))
    assert load_run(tmp_path / "run").notes == (
        "report.md: changed since; `robustkit report` writes it again from the facts",
    )
    done = CliRunner().invoke(main, ["show", str(tmp_path / "run")])
    assert "note: report.md: changed since" in done.stdout
    assert CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--format", "md"]).exit_code == 0
    assert report.read_text() == before
    assert load_run(tmp_path / "run").notes == ()


# --- edits by hand


def edited(made, tmp_path, change):
    """A copy of the run whose parts `change` has changed in place: its JSON, the samples' and the attacks' columns."""
    folder = tmp_path / "edited"
    shutil.copytree(made / "run", folder)
    record = load_run(folder)
    data = json.loads((folder / "run.json").read_text())
    samples, attacks = ({name: v.copy() for name, v in table.items()} for table in (record.samples, record.attacks))
    change(data, samples, attacks)
    return folder, data, {"samples.parquet": parquet(samples), "attacks.parquet": parquet(attacks)}


def status(was, now):
    def change(data, samples, attacks):
        samples["status"][np.flatnonzero(samples["status"] == was)[0]] = now

    return change


def rows(table, pick):
    def change(data, samples, attacks):
        columns = {"samples": samples, "attacks": attacks}[table]
        columns.update({name: values[pick(len(values))] for name, values in columns.items()})

    return change


def column(table, name, value):
    def change(data, samples, attacks):
        {"samples": samples, "attacks": attacks}[table][name][0] = value

    return change


def entry(*keys, value):
    def change(data, samples, attacks):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def lower(data, samples, attacks):
    samples["status"] = np.char.lower(samples["status"])


EDITS = {
    "broken is robust": (status("BROKEN", "ROBUST"), "its attacks make it BROKEN"),
    "robust is wrong": (status("ROBUST", "WRONG"), "which are not the"),
    "a row is dropped": (rows("samples", lambda n: np.arange(n - 1)), "its 23 samples are not the 24 of its job"),
    "a row is doubled": (rows("samples", lambda n: np.r_[0, np.arange(n)]), "its 25 samples are not the 24"),
    "statuses in lower case": (lower, "status '"),
    "no attacks": (rows("attacks", lambda n: np.arange(0)), "fgsm met 0 samples"),
    "a meeting is dropped": (rows("attacks", lambda n: np.arange(n - 1)), "fab:steps=2 met"),
    "a meeting is doubled": (rows("attacks", lambda n: np.r_[0, np.arange(n)]), "fgsm met 25 samples"),
    "another eps": (entry("job", "eps", value=0.2), "another id than its content makes"),
    "another attack": (entry("job", "attack", value="autoattack"), "another id than its content makes"),
    "other weights": (entry("job", "model_sha256", value="0" * 64), "another id than its content makes"),
    "another id": (entry("job", "id", value="0" * 64), "another id than its content makes"),
    "another label": (column("samples", "label", 7), "do not make its data_sha256"),
    "negative passes": (column("attacks", "forwards", -1), "forwards are -1 on a sample"),
    "too far away": (column("attacks", "distance", 9.0), "two distances"),
    "another outcome": (column("attacks", "outcome", "won"), "outcome 'won' is none of"),
    "an unknown attack": (column("attacks", "attack", "zero"), "attack 'zero' is none of"),
    "other counts": (entry("summary", "counts", "ROBUST", value=99), "its summary counts"),
    "another count of an attack": (entry("summary", "attacks", 0, "broken", value=0), "broken of fgsm is 0"),
    "no job": (entry("job", value={}), "holds no whole record (KeyError: 'id')"),
    "a column is gone": (lambda data, samples, attacks: samples.pop("status"), "holds no whole record"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_run_is_refused_also_with_its_digests_made_anew_and_without_any(made, tmp_path, kind):
    change, words = EDITS[kind]
    folder, data, tables = edited(made, tmp_path, change)
    whole = {name: (folder / name).read_bytes() for name in ("run.json", *tables)}
    write_text(folder / "run.json", dumps(data))
    for name, write in tables.items():
        write(folder / name)
    if {name: (folder / name).read_bytes() for name in whole} != whole:
        assert "is not as it was written" in refusal(folder)
    write_record(folder / "run.json", {**data, seal.FILES: {}}, {**tables, "adversarial.safetensors": copied(made)})
    assert words in refusal(folder)
    write_text(folder / "run.json", dumps({k: v for k, v in data.items() if k not in (seal.DIGEST, seal.FILES)}))
    assert words in refusal(folder)


def copied(made):
    return lambda path: path.write_bytes((made / "run/adversarial.safetensors").read_bytes())


def refusal(folder):
    done = CliRunner().invoke(main, ["show", str(folder)])
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def test_a_run_without_its_digest_but_with_those_of_its_files_is_refused(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    data = json.loads((tmp_path / "run/run.json").read_text())
    del data[seal.DIGEST]
    write_text(tmp_path / "run/run.json", dumps(data))
    assert "its content has another digest" in refusal(tmp_path / "run")


def test_another_table_beside_a_record_is_refused(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "sweep/eps-01/samples.parquet", tmp_path / "run/samples.parquet")
    assert "samples.parquet is not as it was written" in refusal(tmp_path / "run")


def test_another_run_in_a_sweep_is_refused(made, tmp_path):
    shutil.copytree(made / "sweep", tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep/eps-02")
    shutil.copytree(made / "sweep/eps-01", tmp_path / "sweep/eps-02")
    assert "eps-02 holds another run than the sweep had at eps 0.05" in refusal(tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep")
    shutil.copytree(made / "sweep", tmp_path / "sweep")
    data = json.loads((tmp_path / "sweep/sweep.json").read_text())
    write_text(tmp_path / "sweep/sweep.json", dumps(seal.sealed({**data, "eps": ["0.02", "0.5"]})))
    assert "eps-02 holds another run than the sweep had at eps 0.5" in refusal(tmp_path / "sweep")


def test_a_sweep_is_no_run(made):
    with pytest.raises(UsageError, match=r"holds a sweep over eps, .* give the folder of one of its runs, .*eps-01"):
        load_run(made / "sweep")


@pytest.mark.parametrize(
    ("table", "name", "value", "words"),
    [
        ("transfer", "outcome", "violated", "decides"),
        ("transfer", "prediction", 99, "decides 99 under fgsm"),
        ("transfer", "victim", "s", "rows of surrogates, attack, victim, index"),
        ("attacks", "backwards", -3, "backwards are -3"),
        ("samples", "index", 77, "samples are not the 24 of its job"),
        ("samples", "sha256", "0" * 64, "do not make its data_sha256"),
    ],
)
def test_an_edited_transfer_run_is_refused(made, tmp_path, table, name, value, words):
    record = load_transfer(made / "transfer")
    columns = {key: values.copy() for key, values in getattr(record, table).items()}
    columns[name][0] = value
    (tmp_path / "t").mkdir()
    TransferFolder(tmp_path / "t").save(dataclasses.replace(record, **{table: columns}), {})
    assert words in refusal(tmp_path / "t")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["cells"][0]["wrong"].append(99), "is wrong on images that are not its own"),
        (lambda data: data["cells"].pop(), "not of each kind at each severity once"),
        (lambda data: data["indices"].append(0), "one of them twice"),
    ],
)
def test_an_edited_record_of_corruptions_is_refused(made, tmp_path, change, words):
    data = json.loads((made / "corruptions.json").read_text())
    change(data)
    for content, message in ((data, "not as it was written"), (seal.sealed(data), words)):
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=message):
            corruption.load(tmp_path / "c.json")


def test_records_from_before_digests_load_with_a_note():
    for record in (
        load_run(FIXTURES / "run-1"),
        load_transfer(FIXTURES / "transfer-1"),
        load_sweep(FIXTURES / "sweep-1"),
        baseline.load(FIXTURES / "baseline-1.json"),
    ):
        assert "from before records had digests" in record.notes[0]
    assert "note: this record is from before" in CliRunner().invoke(main, ["show", str(FIXTURES / "run-1")]).stdout
    old = str(FIXTURES / "baseline-1.json")
    assert "note: baseline-1.json is from before" in CliRunner().invoke(main, ["compare", old, old]).stdout


def test_what_was_read_is_saved_as_it_was(made, tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").save(load_run(made / "run"), {})
    assert a_run(tmp_path / "run") == a_run(made / "run")


def test_images_of_a_run_are_checked_when_they_are_looked_at(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    file = tmp_path / "run/adversarial.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    record = load_run(tmp_path / "run")  # which reads no images
    with pytest.raises(UsageError, match=r"adversarial.safetensors is not as it was written"):
        record.adversarial["adv"]


# --- the journal's parts


def test_a_part_is_an_npz_with_its_digest_at_the_end(tmp_path):
    arrays = {"a": np.arange(3), "b": np.array(["x", "yy"]), "c": np.zeros((0, 2), np.float32)}
    write_arrays(tmp_path / "part.npz", arrays)
    with np.load(tmp_path / "part.npz") as plain:  # anyone's numpy reads it
        assert {name: plain[name].tolist() for name in plain.files} == {n: a.tolist() for n, a in arrays.items()}
    assert list(read_arrays(tmp_path / "part.npz", without=("b",))) == ["a", "c"]
    assert read_arrays(tmp_path / "none.npz") is None
    np.savez(tmp_path / "old.npz", a=1)
    for name, content in {"old.npz": (tmp_path / "old.npz").read_bytes(), "empty.npz": b"", "short.npz": b"PK"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="delete it to compute it again, or use --fresh"):
            read_arrays(tmp_path / name)


# --- full disks


@contextlib.contextmanager
def room(size):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_the_old_record_stays_and_the_error_names_the_file(made, tmp_path):
    record = corruption.load(made / "corruptions.json")
    record.save(tmp_path / "c.json")
    run = load_run(made / "run")
    shutil.copytree(made / "run", tmp_path / "run")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    writes = {
        "c.json": lambda: record.save(tmp_path / "c.json"),
        "run/samples.parquet": lambda: RunFolder(tmp_path / "run").save(run, {}),
        "run/report.md": lambda: rewrite_pages(tmp_path / "run/run.json", {"report.md": "x" * 9999}),
        "new.json": lambda: write_text(tmp_path / "new.json", "x" * 9999),
    }
    for name, write in writes.items():
        with pytest.raises(OSError, match="File too large") as raised, room(500):
            write()
        assert raised.value.filename == str(tmp_path / name)
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before, name


@pytest.mark.parametrize("command", [["compare", "run", "run", "--json"], ["doctor", "--json"]])
def test_json_files_of_commands_are_whole_or_as_they_were(made, monkeypatch, tmp_path, command):
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Path("out.json").write_text("old")
    with room(100):
        done = CliRunner().invoke(main, [*command, "out.json"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: out.json: File too large"
    assert Path("out.json").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["out.json", "run"]
    Path("link.json").symlink_to("out.json")
    assert CliRunner().invoke(main, [*command, "link.json"]).exit_code in (0, 1)
    assert Path("link.json").is_symlink()
    assert json.loads(Path("out.json").read_text())
    full = CliRunner().invoke(main, [*command, "/dev/full"])  # no file to stand beside
    assert full.stderr.splitlines()[-1] == "Error: /dev/full: No space left on device"


def test_two_runs_compare_their_sweeps_eps_by_eps(made, tmp_path):
    sweep, one = str(made / "sweep"), str(made / "sweep/eps-02")
    found = json.loads(CliRunner().invoke(main, ["compare", sweep, sweep, "--json", "-"]).stdout)
    assert found["schema"] == "robustkit/sweep-comparison/1"
    assert [row["eps"] for row in found["table"]] == ["0.02", "0.05"]
    records_ = [load_run(made / f"sweep/eps-0{k}") for k in (1, 2)]
    assert [row["robust_accuracy"]["before"]["value"] for row in found["table"]] == [
        float(record.robust_accuracy) for record in records_
    ]
    assert all(not row["flips"] and not row["differs"] for row in found["table"])
    mixed = CliRunner().invoke(main, ["compare", sweep, one])
    assert mixed.stdout.startswith("eps 0.05\nbefore  ")
    assert mixed.stdout.count("robust accuracy") == 1
    none = CliRunner().invoke(main, ["compare", sweep, str(made / "run")])
    assert (none.exit_code, none.stderr) == (2, "Error: the two share no eps: 0.02, 0.05 before, 0.1 after\n")


def test_compare_marks_the_number_that_an_audit_doubts(tmp_path):
    doubted = dataclasses.replace(records.record("RRBW"), audit=records.AUDIT)
    for name, record in (("a", records.record("RRBW")), ("b", doubted)):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).save(record, {})
    text = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stdout
    assert "\nrobust accuracy ‡" in text
    assert "\n‡ after: robust accuracy INVALID, do not rely on it: noise breaks" in text
    assert "‡" not in CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "a")]).stdout
