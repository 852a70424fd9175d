import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkit import spec
from robustkit.cli import main
from robustkit.engine.identity import present_hashes
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import baseline, leaderboard, seal
from robustkit.records.files import write_text
from robustkit.records.findings import WHOLE, Audit, Check
from robustkit.records.folder import RunFolder
from robustkit.stats import Proportion
from tests import records


def record(letters, **job):
    """A record of the toy board's images."""
    job = {"model_sha256": "a" * 64, "data_sha256": DATA, "attack_sources": SOURCES, **job}
    return records.record(letters, **job)


def images(made):
    return spec.digest([made.samples["sha256"].tolist(), made.samples["label"].tolist()])


SOURCES = {"fgsm": "5" * 64, "robustkit": "7" * 64}
DATA = images(records.record("R" * 8))
BOARD = f"""name = "toy-v1"
title = "Toy"
data = "toy"
data_sha256 = "{DATA}"
n = 8
norm = "linf"
eps = 0.1
attack = "fgsm"
"""
BOARDS = sorted((Path(__file__).parent.parent / "leaderboards").glob("*/board.toml"))


def present(names):
    """The code of the toy records."""
    return dict.fromkeys(names, "5" * 64)


def audited(made, outcome="fine", text="no gradient is zero"):
    whole = [] if outcome == "skipped" else [Check(name, "fine", "as it should be") for name in WHOLE]
    return dataclasses.replace(made, audit=Audit((*whole, Check("queries", outcome, text))).to_json())


@pytest.fixture
def board(tmp_path):
    folder = tmp_path / "toy-v1"
    folder.mkdir()
    (folder / "board.toml").write_text(BOARD)
    return folder


def enter(folder, made, name):
    (folder / "entries").mkdir(exist_ok=True)
    baseline.save(made, folder / "entries" / f"{name}.json")


@pytest.mark.parametrize(
    ("outcome", "why"), [("undecided", "too few to tell; 93 would decide"), ("skipped", "no check could be made")]
)
def test_a_board_takes_no_entry_whose_audit_is_undecided(board, tmp_path, outcome, why):
    few = audited(record("RRRRBBWW"), outcome, why)
    enter(board, few, "few")
    with pytest.raises(UsageError, match=f"its audit is UNDECIDED, too little evidence: {why}"):
        leaderboard.write(board, present)
    (board / "entries" / "few.json").unlink()
    baseline.save(few, tmp_path / "few.json")
    with pytest.raises(UsageError, match="UNDECIDED"):
        leaderboard.add(board, tmp_path / "few.json")


def test_entries_are_ranked_by_what_their_samples_say(board):
    enter(board, audited(record("RRRRBBWW", model="weak", model_sha256="a" * 64)), "weak")
    enter(board, audited(record("RRRRRRWW", model="strong", model_sha256="b" * 64)), "strong")
    enter(board, audited(record("RRRRRRRR", model="masked", model_sha256="c" * 64), "suspect", "no gradient"), "masked")
    enter(board, record("RRRRRRRR", model="unseen", model_sha256="d" * 64), "unseen")
    text = leaderboard.write(board, present).read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        ("1", "strong"), ("2", "weak"), ("–", "masked"), ("–", "unseen"),
    ]  # fmt: skip
    half = Proportion(4, 8)
    assert rows[1][3].strip() == f"50.00 [{100 * half.low:.1f}, {100 * half.high:.1f}]"
    assert rows[1][4].strip().startswith("75.00 ")
    assert [row[5].strip() for row in rows] == ["valid", "valid", "suspect", "not audited"]
    assert "- masked: SUSPECT, do not rely on it: no gradient" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": 0.2}, "eps is 0.2, the board's 0.1"),
        ({"attack": "pgd"}, "attack is 'pgd', the board's 'fgsm'"),
        ({"data_sha256": "e"}, "data_sha256 is 'e'"),
        ({"norm": "l2"}, "norm is 'l2'"),
        ({"target": "3"}, "target is '3'"),
        ({"precision": "bf16"}, "precision is 'bf16', the board's 'float32'"),
        ({"model_sha256": "`<img>"}, "its model_sha256 is no sha256"),
        ({"images": "others"}, "the hashes and labels of its samples make data_sha256"),
    ],
)
def test_a_run_under_another_rule_is_no_entry(board, changed, message):
    enter(board, record("RRRRBBWW", **changed), "other")
    with pytest.raises(UsageError, match=message):
        leaderboard.write(board, present)
    assert not (board / "README.md").exists()


def test_a_run_of_other_samples_is_no_entry(board):
    enter(board, record("RRRRBBW"), "short")
    with pytest.raises(UsageError, match="it has 7 samples, the board 8"):
        leaderboard.write(board, present)


def test_one_sample_told_eight_times_is_no_entry(board):
    made = record("RRRRRRRR")
    samples = {**made.samples, **{name: made.samples[name][[0] * 8] for name in ("sha256", "label")}}
    enter(board, dataclasses.replace(made, samples=samples), "padded")
    with pytest.raises(UsageError, match="the hashes and labels of its samples make data_sha256"):
        leaderboard.write(board, present)


def test_equal_accuracies_share_a_rank(board):
    for name, letters in (
        ("a", "RRRRRRRR"),
        ("b", "RRRRRRBW"),
        ("c", "RRRRRRBW"),
        ("d", "RRRRRRWW"),
        ("e", "RRBBBBBB"),
    ):
        enter(board, audited(record(letters, model=name, model_sha256=name * 64)), name)
    text = leaderboard.write(board, present).read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line[:2] == "| "]
    assert rows[1:] == ["1", "2", "2", "4", "5"]


def test_a_defended_model_is_an_entry_of_its_own_and_says_so(board, tmp_path):
    bare = saved(tmp_path / "one", audited(record("RRBBBBWW")))
    defended = saved(tmp_path / "two", audited(record("RRRRRRWW", defense="jpeg:quality=50")))
    assert leaderboard.add(board, bare).name == "net.json"
    assert leaderboard.add(board, defended).name == "net-jpeg-quality-50.json"
    with pytest.raises(UsageError, match="entry of another model"):
        leaderboard.add(board, defended, "net")
    text = leaderboard.write(board, present).read_text()
    assert "| 1 | net-jpeg-quality-50 behind jpeg:quality=50 |" in text
    assert "| 2 | net |" in text


def saved(folder, made, pages=()):
    run = RunFolder(folder)
    run.open(made.job, {}, fresh=True)
    run.save(made, dict(pages))
    return folder


def test_a_run_is_added_and_its_name_is_its_own(board, tmp_path):
    first = saved(tmp_path / "one", audited(record("RRRRBBWW", model="./my net:arch=x", model_sha256="a" * 64)))
    result = CliRunner().invoke(main, ["leaderboard", "add", str(board), str(first)])
    assert result.exit_code == 0, result.output
    assert [file.name for file in (board / "entries").iterdir()] == ["my-net-arch-x.json"]
    other = saved(tmp_path / "two", record("RRRRRRRR", model="./my net:arch=x", model_sha256="b" * 64))
    with pytest.raises(UsageError, match="entry of another model; give another --name"):
        leaderboard.add(board, other)
    with pytest.raises(UsageError, match="no name for an entry"):
        leaderboard.add(board, other, "../x")
    assert CliRunner().invoke(main, ["leaderboard", "render", str(board)]).exit_code == 0
    assert CliRunner().invoke(main, ["leaderboard", "render", str(board), "--check"]).exit_code == 0
    leaderboard.add(board, other, "other")
    stale = CliRunner().invoke(main, ["leaderboard", "render", str(board), "--check"])
    assert stale.exit_code == 2
    assert "is not what the entries say" in stale.output


def test_a_run_without_a_robust_accuracy_is_not_added(board, tmp_path):
    with pytest.raises(NotEstablishedError, match="was not added"):
        leaderboard.add(board, saved(tmp_path / "run", record("RRRRBBWU")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "cannot be read"),
        (BOARD + 'atack = "fgsm"\n', "no setting called 'atack'; did you mean attack"),
        (BOARD.replace('norm = "linf"\n', ""), "lacks norm"),
        (BOARD.replace("n = 8", 'n = "8"'), "n is '8', which is of the wrong type"),
        (BOARD + 'attacks = "fgsm"\n', "attacks is 'fgsm', which is of the wrong type"),
        (BOARD + "sources = [1]\n", r"sources is \[1\], which is of the wrong type"),
    ],
)
def test_a_board_that_is_none_is_refused(board, text, message):
    write_text(board / "board.toml", text)
    with pytest.raises(UsageError, match=message):
        leaderboard.write(board, present)


def test_what_others_wrote_is_no_markup(board):
    enter(board, audited(record("RRRRBBWW"), "suspect", "<b>x</b> | y\n# z"), "net")
    text = leaderboard.write(board, present).read_text()
    assert "\\<b\\>x\\</b\\> \\| y \\# z" in text


SUITE = {"attack": "suite", "attacks": ["fgsm", "pgd:eot=5"],
         "attack_sources": {"fgsm": "5" * 64, "pgd:eot=5": "5" * 64, "robustkit": "7" * 64}}  # fmt: skip
SUITE_BOARD = (
    BOARD.replace('"fgsm"', '"suite"')
    + f'attacks = ["fgsm", "pgd"]\nsources = ["{"5" * 64}", "{"7" * 64}"]\nseed = 0\n'
)


def job(**changes):
    def edit(data):
        data["job"].update(changes)

    return edit


def one_member(data):
    data["job"]["attacks"] = ["fgsm"]
    data["samples"] = [[*row[:5], row[5][:1], row[6][:1]] for row in data["samples"]]


def one_line_audit(data):
    data["audit"]["checks"] = [{**data["audit"]["checks"][0], "name": "claim"}]


def no_flags(data):
    data["flags"] = []


def sample(place, value):
    def edit(data):
        row = next(row for row in data["samples"] if row[2] == "ROBUST")
        row[place] = value

    return edit


EDITS = {  # each is found by the digest; and by what is said here, if the digest is made anew
    "another model": (job(model="better"), ""),
    "other weights": (job(model_sha256="0" * 64), ""),
    "one member of the suite": (one_member, "its attacks lack pgd of the board's suite"),
    "a one-line audit": (one_line_audit, "its audit lacks state, randomness, threat-model"),
    "no flags": (no_flags, "its model is randomised, and no flag says so"),
    "negative passes": (sample(5, [2, -2]), "of the samples contradicts itself"),
    "another seed": (job(seed=7), "seed is 7, the board's 0"),
    "other attack sources": (
        job(attack_sources={**SUITE["attack_sources"], "fgsm": "6" * 64}),
        r"the code of fgsm is 6666666666666666…, which is none of the sources in board.toml; accept it there",
    ),
    "no attack sources": (job(attack_sources={}), "its attack_sources lack fgsm"),
    "a broken sample is robust": (
        lambda data: data["samples"][4].__setitem__(slice(2, 4), ["ROBUST", ""]), "of the samples contradicts itself"
    ),
    "a robust sample in lower case": (sample(2, "robust"), "of the samples contradicts itself"),
    "another count": (lambda data: data["summary"]["counts"].update(ROBUST=8, BROKEN=0), "its summary counts"),
    "a row twice": (lambda data: data["samples"].append(data["samples"][0]), "has a sample twice"),
    "a row less": (lambda data: data["samples"].pop(), "its summary counts"),
    "another eps": (job(eps=0.05), "eps is 0.05, the board's 0.1"),
    "no digest but an edit of a key": (lambda data: data["job"].pop("probe_sha256"), "its job lacks probe_sha256"),
}  # fmt: skip


def noisy(letters, **more):
    """An audited record of the suite on a model that is voted on."""
    made = audited(record(letters, draws=10, noisy_sha256="9" * 64, **{**SUITE, **more}))
    return dataclasses.replace(made, flags=({"kind": "randomised", "message": "it is randomised"},))


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_entry_is_refused_by_render_and_by_add(board, tmp_path, kind):
    write_text(board / "board.toml", SUITE_BOARD)
    baseline.save(noisy("RRRRBBWW"), tmp_path / "base.json")
    leaderboard.add(board, tmp_path / "base.json", "net")
    file = board / "entries/net.json"
    assert leaderboard.write(board, present).read_text().count("| 1 | net |") == 1
    edit, words = EDITS[kind]
    data = json.loads(file.read_text())
    edit(data)
    for text, message in ((data, "is not as it was written"), (seal.sealed(data), words)):
        file.write_text(json.dumps(text))
        shutil.copy(file, tmp_path / "edited.json")
        if not message:  # only evaluating it again would tell
            assert leaderboard.write(board, present)
            continue
        with pytest.raises(UsageError, match=message):
            leaderboard.write(board, present)
        file.unlink()
        with pytest.raises(UsageError, match=message):
            leaderboard.add(board, tmp_path / "edited.json", "again")
        assert not list((board / "entries").iterdir())


def test_one_model_is_one_entry_under_its_own_name(board, tmp_path):
    run = saved(tmp_path / "run", audited(record("RRRRBBWW")), {"report.md": "a report"})
    (run / "report.md").write_text("mine")  # is nothing of a board's
    leaderboard.add(board, run, "net")
    with pytest.raises(UsageError, match="is of a model that is on the board already, as net; give that --name"):
        leaderboard.add(board, run, "better")
    assert leaderboard.add(board, run, "net")  # again is no harm
    (board / "entries/net.json").rename(board / "entries/better.json")
    with pytest.raises(UsageError, match=r"better.json is the entry net; give it its name again"):
        leaderboard.write(board, present)
    enter(board, audited(record("RRRRBBWW")), "other")  # a baseline that says no name
    (board / "entries/better.json").rename(board / "entries/net.json")
    with pytest.raises(UsageError, match="net and other are one model; remove one of them"):
        leaderboard.write(board, present)


def test_an_entry_without_a_digest_is_named_and_none_is_added(board, tmp_path):
    leaderboard.add(board, saved(tmp_path / "run", audited(record("RRRRBBWW"))), "net")
    file = board / "entries/net.json"
    assert "digest" not in leaderboard.write(board, present).read_text()
    data = json.loads(file.read_text())
    del data["digest"], data["entry"]
    file.write_text(json.dumps(data))
    assert "Without a digest, so that an edit would not be seen: net." in leaderboard.write(board, present).read_text()
    shutil.move(file, tmp_path / "old.json")
    with pytest.raises(UsageError, match=r"was not added: old.json is from before records had digests"):
        leaderboard.add(board, tmp_path / "old.json", "net")


def test_the_committed_entries_have_digests():
    for file in BOARDS:
        board = leaderboard.load_board(file.parent)
        assert board.attacks
        assert board.sources
        assert not any(entry.record.notes for entry in leaderboard.load_entries(file.parent, board))


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.parent.name)
def test_the_rendered_boards_are_what_their_entries_say(file):
    board = leaderboard.load_board(file.parent)
    assert board.name == file.parent.name
    found = leaderboard.load_entries(file.parent, board)
    assert (file.parent / "README.md").read_text(encoding="utf-8") == leaderboard.render(board, found, present_hashes)


def test_an_entry_of_other_attack_code_says_so_and_all_of_them_in_one_line(board):
    def other(name, harness, attack):
        sources = {"robustkit": harness * 64, "fgsm": attack * 64}
        enter(board, audited(record("RRRRBBWW", model_sha256=name[0] * 64, attack_sources=sources)), name)

    for name, code in (("a", "5"), ("b", "6"), ("c", "7")):
        other(name, code, code)
    line = "Made with attack code whose hash is not that of the present code: "
    assert line + "b, c." in leaderboard.write(board, present).read_text().splitlines()
    assert line + "all entries." in leaderboard.write(board, present_hashes).read_text().splitlines()
    # Of another harness only, or of no attack but the present: nothing is said.
    for name in ("b", "c"):
        other(name, "6", "5")
    assert line not in leaderboard.write(board, present).read_text()


def test_a_board_is_rendered_without_torch():
    code = (
        "import sys; from robustkit.cli import main; "
        f"main(['leaderboard', 'render', '--check', {str(BOARDS[0].parent)!r}], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
