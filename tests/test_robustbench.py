"""RobustBench's zoo: imported without a trace, each name finds its network, the networks are made and run."""

import contextlib
import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

if not importlib.util.find_spec("robustbench"):  # importorskip would import it, which is what fails
    pytest.skip("needs robustbench: pip install 'robustkit-bench[zoo]'", allow_module_level=True)

from robustkit import load_model
from robustkit.errors import UsageError
from robustkit.models.sources import card_dataset, listing
from robustkit.models.sources.evaluating import evaluating
from robustkit.models.sources.robustbench import Robustbench, library, normalisation, resolve

SOURCE = Robustbench()
SIZE = 206

# What cannot be made with the installed packages, and why; a network that is missing here, or here without need, fails.
NOT_MADE: dict[tuple[str, str, str], str] = {}
# Networks whose input is neither normalised by constants in buffers nor taken as it is, as their papers have it.
OTHERWISE = {"Hendrycks2019Using": "2x − 1", "Ding2020MMA": "each image by its own mean and std"}


@contextlib.contextmanager
def hollow():
    """Modules whose weights are shapes only, so that 267 million of them cost nothing; buffers are real."""
    plain = nn.Module.register_parameter

    def register(self, name, param):
        if param is not None and param.numel() > 1:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        plain(self, name, param)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", register)
        yield


def key(entry):
    return (entry.dataset, entry.threat, entry.name)


def find(name, dataset="cifar10", threat=None):
    found = [
        e for e in library.entries() if (e.name, e.dataset) == (name, dataset) and e.threat == (threat or e.threat)
    ]
    return found[0]


def logits(module, x):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.cuda.amp.autocast, in three networks
        return module(x)


# Importing ------------------------------------------------------------------------------------------------------------


def test_the_import_leaves_the_environment_as_it_was():
    """In a fresh process: no stand-in is left, the package is whole, the caller's random numbers are not used."""
    script = """
import importlib.util, sys, torch
state = torch.random.get_rng_state()
before = {name: importlib.util.find_spec(name) is not None for name in ("autoattack", "pkg_resources")}
from robustkit.models.sources.robustbench import Robustbench
assert "robustbench" not in sys.modules and "timm" not in sys.modules  # loading the source loads no library
Robustbench().load("Modas2021PRIMEResNet18", {"dataset": "cifar10", "weights": "random"})
for name, was in before.items():
    assert (importlib.util.find_spec(name) is not None) == was, name
    if not was:
        assert not any(m == name or m.startswith(name + ".") for m in sys.modules), name
        try:
            __import__(name)
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError(name)
import pickle, robustbench.model_zoo.cifar10 as zoo
assert pickle.loads(pickle.dumps(zoo.Modas2021PRIMEResNet18)) is zoo.Modas2021PRIMEResNet18
assert torch.equal(torch.random.get_rng_state(), state)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout


def test_a_real_autoattack_is_used_and_stays(monkeypatch, tmp_path):
    (tmp_path / "autoattack.py").write_text("REAL = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with library._stand_ins():
            import autoattack

            assert autoattack.REAL
        assert sys.modules["autoattack"] is autoattack
    finally:
        sys.modules.pop("autoattack", None)


def test_stand_ins_go_even_when_the_import_fails():
    missing = [name for name in ("autoattack", "pkg_resources") if not importlib.util.find_spec(name)]
    with contextlib.suppress(RuntimeError), library._stand_ins():
        assert all(name in sys.modules for name in missing)
        raise RuntimeError
    assert not any(name in sys.modules for name in missing)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    library.entries.cache_clear()
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    try:
        with pytest.raises(UsageError, match=r"pip install 'robustkit-bench\[zoo\]'"):
            SOURCE.names()
    finally:
        library.entries.cache_clear()


# Names ----------------------------------------------------------------------------------------------------------------


def test_all_entries_are_listed_once_and_each_name_finds_its_own():
    names = SOURCE.names()
    assert len(names) == len(set(names)) == SIZE
    found = []
    for name in names:
        bare, _, options = name.partition(":")
        found.append(key_of(bare, options))
        assert found[-1][2] == bare
    assert sorted(found) == sorted(key(entry) for entry in library.entries())


def key_of(name, options):
    return key(resolve(name, dict(option.split("=") for option in options.split(",") if option)))


def test_a_shared_name_is_told_apart_by_options_or_by_the_evaluation():
    shared = "Wang2023Better_WRN-28-10"
    with pytest.raises(UsageError, match=r"dataset=cifar10,threat=L2.*dataset=cifar100,threat=Linf"):
        key_of(shared, "")
    assert key_of(shared, "dataset=cifar100") == ("cifar100", "Linf", shared)
    assert key_of(shared, "dataset=cifar10,threat=l2") == ("cifar10", "L2", shared)
    for evaluation, expected in (
        (("cifar10", "linf"), ("cifar10", "Linf")),
        (("cifar10", "l2"), ("cifar10", "L2")),
        (("cifar100", "l1"), ("cifar100", "Linf")),
    ):
        with evaluating(*evaluation):
            assert key_of(shared, "") == (*expected, shared)
    with evaluating("cifar100", "linf"):  # what is given counts more
        assert key_of(shared, "dataset=cifar10") == ("cifar10", "Linf", shared)
    with evaluating("cifar10", "l1"), pytest.raises(UsageError, match="several"):
        key_of(shared, "")
    with evaluating("cifar10-c", "linf"):
        assert key_of("Standard", "") == ("cifar10", "corruptions", "Standard")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Carmon2019Unlabelled", {}, "did you mean Carmon2019Unlabeled"),
        ("Carmon2019Unlabeled", {"threat": "L2"}, "dataset=cifar10,threat=Linf"),
        ("Carmon2019Unlabeled", {"thread": "L2"}, "did you mean threat"),
        ("Carmon2019Unlabeled", {"weights": "rand"}, "pretrained or random"),
        ("Carmon2019Unlabeled", {"weights": "random", "path": "a.pt"}, "takes no path="),
        ("Carmon2019Unlabeled", {"path": "nowhere.pt"}, "no file nowhere.pt"),
    ],
)
def test_errors_say_what_is_possible(name, options, said):
    with pytest.raises(UsageError, match=said):
        SOURCE.load(name, options)


def test_cards_are_known_without_loading():
    card = SOURCE.card("Carmon2019Unlabeled", {})
    assert (card.dataset, card.classes, card.input_shape) == ("cifar10", 10, (3, 32, 32))
    assert card.threat == "Linf, eps=8/255"
    assert card.licence == "MIT"
    assert "https://arxiv.org/abs/1905.13736" in card.paper
    assert "89.69%" in card.notes
    assert "59.53%" in card.notes
    assert card_dataset("robustbench/Carmon2019Unlabeled") == "cifar10"
    assert SOURCE.card("Ding2020MMA", {"threat": "L2"}).licence.startswith("Attribution-NonCommercial")
    assert SOURCE.card("AlexNet", {}).licence == ""
    assert SOURCE.card("AlexNet", {}).threat == "corruptions"
    assert SOURCE.card("Wong2020Fast", {"dataset": "imagenet"}).input_shape == (3, 288, 288)
    assert "--outputs probs" in SOURCE.card("Chen2020Adversarial", {}).notes
    for name in SOURCE.names():
        bare, _, options = name.partition(":")
        found = SOURCE.card(bare, dict(o.split("=") for o in options.split(",") if o))
        assert found.paper, name
        assert found.threat.startswith(("Linf, eps=", "L2, eps=0.5", "corruptions")), name


def test_the_listing_can_be_searched():
    rows = [row for row in listing("robustbench") if "carmon" in row[0].lower()]
    assert [row[0] for row in rows] == ["robustbench/Carmon2019Unlabeled"]
    assert "cifar10; Linf" in rows[0][1]


# Networks -------------------------------------------------------------------------------------------------------------


def test_all_networks_are_made_but_for_those_in_the_table():
    """All 206, weights as shapes only, but for one that computes with its weights while it is made (marked slow)."""
    computes = {("cifar10", "Linf", "Kang2021Stable")}
    made, failed = 0, set()
    for entry in library.entries():
        if key(entry) in computes:
            continue
        try:
            with hollow():
                module = library.construct(entry)
        except Exception:
            failed.add(key(entry))
            continue
        made += sum(p.numel() for p in module.parameters()) > 10_000
    assert failed == set(NOT_MADE)
    assert made >= 195
    assert made == len(library.entries()) - len(NOT_MADE) - len(computes)


def check_forward(entry, size):
    """Random weights: outputs of the right shape, and the first layer sees what the card says of the input."""
    module, card = SOURCE.load(entry.name, {"dataset": entry.dataset, "threat": entry.threat, "weights": "random"})
    assert not module.training
    assert "RANDOM WEIGHTS" in card.notes
    assert "random" in card.name
    x = torch.rand(size, *entry.input_shape, generator=torch.Generator().manual_seed(1))
    seen = []
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())) for m in layers]
    outputs = logits(module, x)
    for hook in hooks:
        hook.remove()
    assert outputs.shape == (size, entry.classes)
    assert outputs.isfinite().all()
    probabilities = bool(((outputs.sum(1) - 1).abs() < 1e-4).all()) and bool((outputs >= 0).all())
    assert probabilities == ("--outputs probs" in card.notes)
    if card.mean:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
        assert torch.allclose(first(seen[0], x), (x - mean) / std, atol=1e-4)
    elif entry.name not in OTHERWISE and not entry.name.startswith("Bai202"):  # members that normalise each on its own
        assert torch.equal(first(seen[0], x), x)
    return module


def first(seen, x):
    """What the first layer saw, without the border that a few networks pad themselves."""
    border = (seen.shape[-1] - x.shape[-1]) // 2
    return seen[..., border : seen.shape[-2] - border, border : seen.shape[-1] - border]


def cheap():
    """The networks that cost least: 32×32 by their number of weights, then a few for ImageNet."""
    beginnings = (
        "_R18",
        "_RN18",
        "PARN18",
        "ResNet18",
        "AugMix_WRN",
        "AugMix_ResNeXt",
        "MMA",
        "Kireev",
        "28-10",
        "28_10",
    )
    names = ("Andriushchenko2020Understanding", "Wong2020Fast", "Rice2020Overfitting", "Engstrom2019Robustness",
             "Augustin2020Adversarial", "Diffenderfer2021Winning_Binary", "Debenedetti2022Light_XCiT-S12", "Standard",
             "Carmon2019Unlabeled", "Hendrycks2019Using", "Rony2019Decoupling", "Dai2021Parameterizing")  # fmt: skip
    large = {("cifar10", "Linf", "Rice2020Overfitting"), ("imagenet", "Linf", "Wong2020Fast")}
    small = {"Salman2020Do_R18", "Tian2022Deeper_DeiT-S", "Singh2023Revisiting_ViT-S-ConvStem"}
    for entry in library.entries():
        chosen = any(part in entry.name for part in beginnings) or entry.name in names
        if entry.name in small or (chosen and entry.dataset != "imagenet" and key(entry) not in large):
            yield entry


def test_networks_run_and_normalise_as_their_cards_say():
    chosen = list(cheap())
    assert len(chosen) >= 60
    for entry in chosen:
        check_forward(entry, 2)


@pytest.mark.slow
def test_every_network_is_made_and_runs():
    done, failed = [], {}
    for entry in library.entries():
        try:
            check_forward(entry, 1 if entry.dataset == "imagenet" else 2)
        except Exception as error:
            failed[key(entry)] = f"{type(error).__name__}: {error}"[:300]
            continue
        done.append(key(entry))
    print(f"{len(done)} of {len(library.entries())} networks made and run")
    assert set(failed) == set(NOT_MADE), failed


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    (one, card), (two, _) = (
        load_model("robustbench/Modas2021PRIMEResNet18:dataset=cifar10,weights=random") for _ in range(2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert card.sha256 == ""


def test_constants_move_with_the_network():
    """Four keep a mean as a plain tensor, which would stay on the CPU when the network goes to a GPU."""
    with hollow():
        module = library.construct(find("Peng2023Robust"))
    plain = [name for part in module.modules() for name, value in vars(part).items() if isinstance(value, torch.Tensor)]
    assert not plain
    assert normalisation(module)[0]
