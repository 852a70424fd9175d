import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkit import spec
from robustkit.cli import main
from robustkit.errors import NotEstablishedError, UsageError
from robustkit.records import baseline, leaderboard
from robustkit.records.findings import Audit, Check
from robustkit.records.folder import RunFolder, write_text
from robustkit.stats import Proportion
from tests import records


def record(letters, **job):
    """A record of the toy board's images."""
    return records.record(letters, **{"model_sha256": "a" * 64, "data_sha256": DATA, **job})


def images(made):
    return spec.digest([made.samples["sha256"].tolist(), made.samples["label"].tolist()])


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


def audited(made, outcome="fine", text="no gradient is zero"):
    return dataclasses.replace(made, audit=Audit((Check("gradients", outcome, text),)).to_json())


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
        leaderboard.write(board)
    (board / "entries" / "few.json").unlink()
    baseline.save(few, tmp_path / "few.json")
    with pytest.raises(UsageError, match="UNDECIDED"):
        leaderboard.add(board, tmp_path / "few.json")


def test_entries_are_ranked_by_what_their_samples_say(board):
    enter(board, audited(record("RRRRBBWW", model="weak", model_sha256="a" * 64)), "weak")
    enter(board, audited(record("RRRRRRWW", model="strong", model_sha256="b" * 64)), "strong")
    enter(board, audited(record("RRRRRRRR", model="masked", model_sha256="c" * 64), "suspect", "no gradient"), "masked")
    enter(board, record("RRRRRRRR", model="unseen", model_sha256="d" * 64), "unseen")
    text = leaderboard.write(board).read_text()
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
        leaderboard.write(board)
    assert not (board / "README.md").exists()


def test_a_run_of_other_samples_is_no_entry(board):
    enter(board, record("RRRRBBW"), "short")
    with pytest.raises(UsageError, match="it has 7 samples, the board 8"):
        leaderboard.write(board)


def test_one_sample_told_eight_times_is_no_entry(board):
    made = record("RRRRRRRR")
    samples = {**made.samples, **{name: made.samples[name][[0] * 8] for name in ("sha256", "label")}}
    enter(board, dataclasses.replace(made, samples=samples), "padded")
    with pytest.raises(UsageError, match="the hashes and labels of its samples make data_sha256"):
        leaderboard.write(board)


def test_equal_accuracies_share_a_rank(board):
    for name, letters in (
        ("a", "RRRRRRRR"),
        ("b", "RRRRRRBW"),
        ("c", "RRRRRRBW"),
        ("d", "RRRRRRWW"),
        ("e", "RRBBBBBB"),
    ):
        enter(board, audited(record(letters, model=name)), name)
    rows = [
        line.split("|")[1].strip() for line in leaderboard.write(board).read_text().splitlines() if line[:2] == "| "
    ]
    assert rows[1:] == ["1", "2", "2", "4", "5"]


def test_a_defended_model_is_an_entry_of_its_own_and_says_so(board, tmp_path):
    bare = saved(tmp_path / "one", audited(record("RRBBBBWW")))
    defended = saved(tmp_path / "two", audited(record("RRRRRRWW", defense="jpeg:quality=50")))
    assert leaderboard.add(board, bare).name == "net.json"
    assert leaderboard.add(board, defended).name == "net-jpeg-quality-50.json"
    with pytest.raises(UsageError, match="entry of another model"):
        leaderboard.add(board, defended, "net")
    text = leaderboard.write(board).read_text()
    assert "| 1 | net-jpeg-quality-50 behind jpeg:quality=50 |" in text
    assert "| 2 | net |" in text


def saved(folder, made):
    run = RunFolder(folder)
    run.open(made.job, {}, fresh=True)
    run.save(made, {})
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
    ],
)
def test_a_board_that_is_none_is_refused(board, text, message):
    write_text(board / "board.toml", text)
    with pytest.raises(UsageError, match=message):
        leaderboard.write(board)


def test_what_others_wrote_is_no_markup(board):
    enter(board, audited(record("RRRRBBWW"), "invalid", "<b>x</b> | y\n# z"), "net")
    text = leaderboard.write(board).read_text()
    assert "\\<b\\>x\\</b\\> \\| y \\# z" in text


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.parent.name)
def test_the_rendered_boards_are_what_their_entries_say(file):
    board = leaderboard.load_board(file.parent)
    assert board.name == file.parent.name
    found = leaderboard.load_entries(file.parent, board)
    assert (file.parent / "README.md").read_text(encoding="utf-8") == leaderboard.render(board, found)


def test_a_board_needs_no_torch():
    code = "import sys; from robustkit.records import leaderboard; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
