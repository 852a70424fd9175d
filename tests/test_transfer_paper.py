"""The paper's runs: the ImageNet protocol in one command, with untrained weights, and the benchmark on kit networks."""

import json
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import kit
from robustkit import plugins, spec
from robustkit.api import ThreatModel
from robustkit.cli import main
from robustkit.errors import UsageError
from robustkit.transfers import plan
from tests.needs import kit as needs_kit

HERE = Path(__file__).parent.parent / "reports/paper/cwa"
CONFIG = tomllib.loads((HERE / "imagenet.toml").read_text())


def needs(*packages):
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_the_protocol_s_sets_and_attacks_are_the_paper_s():
    assert spec.number(CONFIG["eps"]) == 16 / 255
    assert CONFIG["n"] == 1000
    assert [len(members) for members in CONFIG["surrogates"].values()] == [6, 4]
    assert {name for members in CONFIG["surrogates"].values() for name in members} == set(CONFIG["surrogate"])
    assert len(CONFIG["victim"]) == 24
    attacks = plan.parse_attacks(CONFIG["attack"], ThreatModel("linf", 16 / 255))
    assert [each.label for each in attacks] == list(CONFIG["attack"])
    cost = {each.label: each.attack for each in attacks}
    assert cost["MI-CWA"].gradients(6) == 2 * cost["MI"].gradients(6) == 120  # methods.md 5.5: about 2× MI


def test_the_command_asks_for_what_the_file_says(monkeypatch):
    from robustkit.cli import transfer as cli_transfer

    asked = []

    def measure(surrogates, victims, attacks, arguments, **_):
        asked.append((surrogates, victims, attacks, arguments["sets"]))
        raise UsageError("enough")

    monkeypatch.setattr(cli_transfer, "_measure", measure)
    assert CliRunner().invoke(main, ["transfer", "--config", str(HERE / "imagenet.toml")]).exit_code == 2
    sets = {name: tuple(members) for name, members in CONFIG["surrogates"].items()}
    assert asked == [(CONFIG["surrogate"], CONFIG["victim"], CONFIG["attack"], sets)]


def test_a_quoted_name_may_be_anything():
    from robustkit.cli.transfer import named, surrogate_sets

    assert named(('"ViT-B/16"=torchvision/vit_b_16:weights=none', "a=b:c=d", "digits-cnn")) == {
        "ViT-B/16": "torchvision/vit_b_16:weights=none", "a": "b:c=d", "digits-cnn": "digits-cnn",
    }  # fmt: skip
    assert surrogate_sets(('"all: (2+)"=(ViT-B/16)+a',), {"ViT-B/16": "x", "a": "y"})[1] == {
        "all: (2+)": ("ViT-B/16", "a")
    }
    assert surrogate_sets(("one + two=a+b",), {"a": "y", "b": "z"})[1] == {"one + two": ("a", "b")}


@needs("torchvision", "timm", "robustbench")
@pytest.mark.parametrize("text", [*CONFIG["surrogate"].values(), *CONFIG["victim"].values()])
def test_every_model_of_the_protocol_is_known_with_its_weights_pinned(text):
    parsed = spec.parse(text)
    card = plugins.load("sources", parsed.source)().card(parsed.name, parsed.options)
    assert card.classes == 1000
    if parsed.source == "torchvision":
        assert parsed.options["weights"] == "IMAGENET1K_V1"


@needs("torchvision", "robustbench")
def test_the_protocol_runs_with_untrained_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    np.savez("images.npz", x=x, y=np.array([3, 999]))
    models = [
        "--surrogate", "ResNet-18=torchvision/resnet18:weights=none",
        "--surrogate", "Salman R50=robustbench/Salman2020Do_R50:dataset=imagenet,threat=Linf,weights=random",
        "--surrogates", "paper=ResNet-18+Salman R50", "--surrogates", "normal=ResNet-18",
        "--victim", "SqueezeNet=torchvision/squeezenet1_1:weights=none",
        "--victim", "PGDAT ResNet-18=robustbench/Salman2020Do_R18:dataset=imagenet,threat=Linf,weights=random",
    ]  # fmt: skip
    small = ["--dataset", "./images.npz", "-n", "2", "--tile", "2"]
    attacks = ["--attack", "FGSM=fgsm", "--attack", "MI-CWA=mi-cwa:settings=code,steps=1"]
    command = ["transfer", "--config", str(HERE / "imagenet.toml"), *models, *small, *attacks, "--quiet", "--json", "-"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["job"]["eps"] == 16 / 255
    assert shown["job"]["surrogates"] == {"paper": ["ResNet-18", "Salman R50"], "normal": ["ResNet-18"]}
    assert len(shown["summary"]["matrix"]) == 2 * 2 * 4
    costs = {(c["surrogates"], c["attack"]): c["backwards_per_image"] for c in shown["summary"]["costs"]}
    assert costs == {("paper", "FGSM"): 2, ("paper", "MI-CWA"): 4, ("normal", "FGSM"): 1, ("normal", "MI-CWA"): 2}


@needs_kit
def test_the_benchmark_writes_its_tables_into_the_readme(tmp_path, monkeypatch):
    from benchmarks import cwa

    monkeypatch.setattr(cwa, "NORMAL", ("resnet20_std",))
    monkeypatch.setattr(cwa, "VICTIMS", ("cnn_a_std", "kw_base_2px"))
    monkeypatch.setitem(sys.modules, "benchmarks.kit", kit)
    shutil.copy(HERE / "README.md", tmp_path / "README.md")
    record = cwa.measure(range(4), 4, ["MI", "MI-CWA"], tmp_path / "run", quiet=True)
    assert record.established
    halves = [
        cwa.measure(half, 4, ["MI", "MI-CWA"], tmp_path / f"{half}", quiet=True) for half in (range(2), range(2, 4))
    ]
    joined = cwa.joined(halves)
    assert (joined.cells, joined.clean_accuracy) == (record.cells, record.clean_accuracy)
    assert joined.costs["normal", "MI"].seconds == sum(half.costs["normal", "MI"].seconds for half in halves)
    # Four gradients of single surrogates an image: equal, whatever the attack and the set.
    assert {cost.backwards for cost in record.costs.values()} == {4.0}
    assert record.costs["normal", "MI"].forwards == 4.0
    for _ in range(2):  # what was written before is replaced
        cwa.write(record, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Not run yet" not in text
    assert text.count(cwa.BEGIN) == text.count("| normal | MI | 4 | 4 |") == 1
    assert "First 4 CIFAR-10 test images, Linf 8/255" in text
    assert "## ImageNet" in text
    assert (tmp_path / "matrix.csv").read_text().count("\n") == 1 + 2 * 2 * 4
    assert (tmp_path / "heatmap.png").exists()


def test_the_benchmark_compares_all_the_attacks_that_it_should_at_equal_budget():
    from benchmarks import cwa

    assert list(cwa.ATTACKS) == [
        "MI", "DI", "TI", "VMI", "SSA", "logit", "SVRE", "AdaEA", "SMER", "MI-SAM", "MI-CSE", "MI-CWA", "VMI-CWA",
    ]  # fmt: skip
    budgeted = {label: cwa.with_budget(name, 420) for label, name in cwa.ATTACKS.items()}
    for label, _, attack in plan.parse_attacks(budgeted, ThreatModel("linf", 8 / 255)):
        for members in (len(cwa.NORMAL), len(cwa.NORMAL) + 1):
            assert 0.9 * 420 <= attack.gradients(members) <= 420, label
