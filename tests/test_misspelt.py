"""Misspelt and misused commands: each is answered by one line that says what to do, before anything is computed.

A table: the command, words of the answer, and the exit code where it is not 2. In `{…}` stand places of the fixture.
"""

import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from robustkit.cli import main
from robustkit.records import baseline
from robustkit.records.files import write_text
from robustkit.records.folder import RunFolder
from robustkit.records.transfer_folder import TransferFolder
from tests.records import record
from tests.test_transfer_record import by_hand

MYNET = """
from torch import nn
def net(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
def answers(x):
    return x.flatten(1)[:, :10]
"""
D = "--dataset digits"
EVAL = f"eval --model digits-cnn {D}"
T = f"transfer --surrogate digits-cnn --victim digits-cnn-at {D}"
ANSWERS = [
    # commands and options
    ("evall --model digits-cnn", "did you mean eval"),
    ("eval", "Missing option '--model'"),
    (f"{EVAL} --atack pgd", "did you mean --attack?"),
    ("compare run", "Missing argument 'AFTER'"),
    ("completion powershell", "bash, zsh, fish"),
    ("list attack", "did you mean attacks?"),
    ("list defenses --source timm", "leave it out for defenses"),
    ("leaderboard build run", "no command called 'build'"),
    # models
    ("eval --model digits-cn", "did you mean digits-cnn"),
    ("gate --baseline new.json --update --model digts-cnn --dataset cifar10", "did you mean digits-cnn"),
    ("doctor --model digitscnn --dataset cifar10", "did you mean digits-cnn"),
    ("certify --model ./mynet.py --dataset cifar10", "python/mynet.net or python/mynet.lazy"),
    ("audit --model mynet --dataset cifar10", "'mynet' is a module: name the callable in it, python/mynet.net"),
    ("corruptions --model mynet.py:nett --dataset cifar10-c", "no callable of mynet called 'nett'; did you mean net"),
    (f"eval --model mynet:answers {D}", "takes images (x) and so is the network itself"),
    (f"eval --model mynet:lazy {D} -n 4", "not lazy"),
    (f"eval --model mynet.net() {D}", "name what is called: python/mynet.net"),
    (f"eval --model mynet:net:widht=3 {D}", "did you mean width"),
    (f"eval --model mynt:net {D}", "a callable of yours is python/mynt.net"),
    (f"eval --model tim/resnet18 {D}", "did you mean timm"),
    (f"eval --model timm {D}", "write timm/NAME"),
    (f"eval --model net.pt {D}", "a file of weights is written ./net.pt:arch=…"),
    (f"eval --model ./net.pt {D}", "there is no file net.pt"),
    (rf"eval --model 'C:\nets\a.pt' {D}", r"there is no file C:\nets\a.pt"),
    (f"eval --model ./run {D}", "give the file of weights in it"),
    ("eval --model digits-cnn:width=3", "takes no options"),
    ("eval --model ensemble/(digits-cnn)", "needs two models or more"),
    ("eval --model defended/(digits-cnn)", "names no defense"),
    ("train standard --arch digits_cnn --data cifar10 --out new", "did you mean digits-cnn"),
    ("transfer --surrogate digits-cnn --victim mynet.ney --attack pgd --dataset cifar10", "did you mean net"),
    ("models pull digits-cn", "did you mean digits-cnn"),
    # data sets
    ("eval --model digits-cnn --dataset digit", "did you mean digits"),
    ("eval --model digits-cnn --dataset digits:splt=train", "did you mean split"),
    ("eval --model digits-cnn --dataset images.npz", "a file of images is written ./images.npz"),
    ("eval --model digits-cnn --dataset photos", "write folder/photos"),
    ("eval --model digits-cnn --dataset ./photos/cat", "images go into one folder a class: ./photos/cat/cat/1.png"),
    ("eval --model digits-cnn --dataset ./arrays", "give one of the files in it: ./arrays/less.npz"),
    ("corruptions --model digits-cnn", "Missing option '--dataset'"),
    ("data pull nothing", "no dataset called 'nothing'"),
    ("gate --baseline base.json --dataset ./arrays/less.npz --model digits-cnn",
     "the baseline has sample 59, less.npz only 50"),
    # attacks and defenses
    (f"{EVAL} --attack pdg", "pgd"),
    (f"{EVAL} --attack pgd:stepz=3", "did you mean step or steps"),
    (f"{EVAL} --attack pgd:steps=ten", "must be a whole number"),
    (f"{EVAL} --attack pgd(steps=3)", "name what is called: pgd:steps=3"),
    (f"{EVAL} --attack autoattack,pgd", "several are joined by +: autoattack+pgd"),
    (f"{EVAL} --attack torchattack/PGD", "did you mean torchattacks"),
    (f"{EVAL} --attack mynet.py:net", "is no attack"),
    (f"{T} --attack autoattack", "name one attack"),
    (f"{EVAL} --defense jpg", "did you mean jpeg"),
    (f"{EVAL} --defense jpeg:qualty=3", "did you mean quality"),
    (f"{EVAL} --defense mynet:net", "no defense: it has no protect(model)"),
    ("train ta --arch digits-cnn --data digits --out new", "did you mean at?"),
    ("show attack", "robustkit list attacks"),
    # eps, norms, devices, samples
    (f"{EVAL} --eps 8", "8/255"),
    (f"{EVAL} --eps 8px", "write 8/255 or 0.031"),
    (f"{EVAL} --eps 0.2,0.1", "must grow"),
    (f"{EVAL} --norm l3", "not one of linf, l2, l1, l0"),
    (f"{EVAL} --norm l0 --eps 3 --attack pgd -n 4", "pgd does not work in l0"),
    (f"audit --model digits-cnn {D} --norm l0", "not one of linf, l2, l1;"),
    (f"{EVAL} --device gpu -n 4", "auto, cpu, cuda"),
    (f"{EVAL} -n 5000", "choose 1 to 355"),
    (f"{EVAL} --indices 400", "sample 400 was asked for, but digits has only 355"),
    (f"{EVAL} --target cat", "a class from 0 to 9, least-likely or random"),
    (f"certify --model digits-cnn {D} --sigma big", "not a valid float"),
    (f"corruptions --model digits-cnn {D} --kind blur", "did you mean"),
    (f"corruptions --model digits-cnn {D} --severity 9", "must be 1, 2, 3, 4 or 5"),
    ("gate --baseline base.json --max-drop 5", "write 0.5pp or 0.5%"),
    # files and folders
    (f"{EVAL} --json nowhere/x.json", "there is no folder nowhere"),
    (f"{EVAL} --out photos -n 4", "choose another --out"),
    ("run nothere.toml", "docs/studies.md"),
    ("gate --baseline nothere.json", "make it: --update"),
    ("gate --baseline run", "robustkit gate --baseline FILE.json --update --run run"),
    ("gate --baseline base.json --run transfer", "holds a transfer run, and a run of eval is needed"),
    ("audit --run run", "run it again with eval --audit"),
    ("show ruin", "did you mean run"),
    ("show empty", "is empty; give the folder of a run"),
    ("report begun", "the run in begun is not finished; run its command again"),
    ("report run/run.json", "say where the reports go: --out DIR"),
    ("runs nothere", "nothere"),
    ("prove nothere.vnnlib --onnx net.onnx", "nothere.vnnlib"),
    ("compare run study", "holds a study, and a run of eval is needed"),
    ("compare run 'my net'", "robustkit eval --model './my net'"),
    ("plot eps study -o x.pdf", "holds a study"),
    ("plot transfer run -o x.pdf", "not of a run"),
    ("plot eps run -o x.gif", ".pdf, .svg, .png"),
    ("show damaged", "--fresh"),
    ("leaderboard render nothere", "board.toml"),
    ("report run --format pdf", "not one of html, md, tex, csv"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a network, photos, arrays, stored runs of several kinds and a baseline."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "mynet.py").write_text(MYNET)
    for name in ("photos/cat", "arrays", "empty", "study", "my net"):
        (folder / name).mkdir(parents=True)
    (folder / "photos/cat/1.png").write_bytes(b"")
    np.savez(folder / "arrays/less.npz", x=np.zeros((50, 1, 8, 8), np.float32), y=np.arange(50) % 10)
    write_text(folder / "study/study.json", "{}")
    write_text(folder / "my net/card.json", "{}")
    stored = record("R" * 60)
    RunFolder(folder / "run").open(stored.job, {}, fresh=False)
    RunFolder(folder / "run").save(stored, {})
    for copy in ("begun", "damaged"):
        shutil.copytree(folder / "run", folder / copy)
    (folder / "begun/run.json").unlink()
    (folder / "damaged/samples.parquet").write_bytes(b"nothing")
    TransferFolder(folder / "transfer").open({"id": "x"}, 1, fresh=False)
    TransferFolder(folder / "transfer").save(by_hand("sr", [False, False]), {})
    baseline.save(record("R" * 60, model="digits-cnn", data="digits"), folder / "base.json")
    return folder


@pytest.mark.parametrize(("command", "words"), ANSWERS, ids=[command for command, _ in ANSWERS])
def test_a_wrong_command_is_answered_by_a_line_that_says_what_to_do(places, monkeypatch, command, words):
    monkeypatch.chdir(places)
    monkeypatch.setenv("ROBUSTKIT_OFFLINE", "1")
    before = sorted(places.rglob("*"))
    done = CliRunner().invoke(main, shlex.split(command))
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert words in line
    assert done.stdout == ""
    after = [path for path in places.rglob("*") if "__pycache__" not in path.parts]
    assert set(after) <= set(before), "a refused command wrote something"


def test_the_table_has_every_command_and_no_row_twice():
    commands = {shlex.split(command)[0] for command, _ in ANSWERS}
    assert set(main.commands) <= commands
    assert len({command for command, _ in ANSWERS}) == len(ANSWERS) >= 60
