"""What is shipped, how it installs, and what a broken installation says: one line and 70, never Python's own 1."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import robustkit
import robustkit_bench
from robustkit import plugins
from robustkit.cli import endings, main
from robustkit.datasets.digits import digits
from robustkit.doctor import machine

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVAL = ["eval", "--model", "digits-cnn", "--attack", "fgsm", "-n", "8", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel as pip installs it, in a folder of its own; what it needs is this environment's."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return folder


def run(arguments, cwd, *paths, program=("-m", "robustkit_bench")):
    """A command where only `paths` are searched before what is installed, from an empty home."""
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(map(str, paths)), "ROBUSTKIT_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_wheel_has_its_own_name_and_all_it_needs(wheel):
    assert wheel.name.startswith("robustkit_bench-")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = message_from_bytes(opened.read(described))
        (points,) = (opened.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert about["Name"] == robustkit.DISTRIBUTION == robustkit_bench.DISTRIBUTION == "robustkit-bench"
    assert {"robustkit_bench.py", "robustkit/datasets/digits.npz", "robustkit/datasets/digits-LICENSE.txt"} <= names
    assert {"LICENSE", "robustkit/datasets/digits-LICENSE.txt"} == set(about.get_all("License-File"))
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "robustkit_bench.py", "robustkit", "robustkit_attacks", "robustkit_defenses",
    }  # fmt: skip
    needed = [text for text in about.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(re.match(r"[\w-]+", text)[0] for text in needed) == sorted(endings.NEEDED)
    assert "robustkit = robustkit_bench:main" in points


def named(requirements):
    """What distributions are imported as."""
    names = {re.match(r"[\w-]+", text)[0] for text in requirements} - {robustkit.DISTRIBUTION}
    return {{"pillow": "PIL", "scikit-learn": "sklearn"}.get(name, name) for name in names}


def test_what_is_imported_is_declared_and_what_is_needed_is_imported():
    extras = PROJECT["optional-dependencies"]
    declared = named(PROJECT["dependencies"])
    optional = named(text for name in ("zoo", "data", "attacks", "plots", "all") for text in extras[name])
    assert declared == set(endings.NEEDED)
    imported = {
        name.partition(".")[0]
        for top in ("robustkit", "attacks", "defenses")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        for name in ([each.name for each in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert declared <= imported
    ours = {name for name in imported if name.startswith("robustkit")}
    # What a library that is declared needs and gives.
    theirs = {"urllib3": "requests", "eagerpy": "foolbox", "markupsafe": "jinja2", "huggingface_hub": "transformers"}
    assert imported - set(sys.stdlib_module_names) - ours - set(theirs) <= declared | optional
    assert set(theirs.values()) <= declared | optional
    assert all(f"{robustkit.DISTRIBUTION}[" in str(extras[name]) for name in ("test", "all"))


def test_digits_are_those_of_scikit_learn_bit_by_bit():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, y = datasets.load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    splits = digits("test"), digits("train")
    assert sum(len(split) for split in splits) == len(y) == 1797
    test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    for split, rows in zip(splits, (test, ~test), strict=True):
        assert np.array_equal(split.x.numpy(), x[rows])
        assert np.array_equal(split.y.numpy(), y[rows])


def test_the_wheel_runs_away_from_the_checkout(site, tmp_path):
    done = run(["list", "attacks"], tmp_path, site)
    assert done.returncode == 0, done.stderr
    assert "apgd" in done.stdout
    done = run(EVAL, tmp_path, site)
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout
    program = (
        "import robustkit as r, robustkit_attacks as a, robustkit_defenses as d\nfor m in (r, a, d): print(m.__file__)"
    )
    where = run(["-c", program], tmp_path, site, program=())
    assert [Path(line).is_relative_to(site) for line in where.stdout.split()] == [True] * 3
    assert (site / "bin/robustkit").is_file()


# --- broken installations -----------------------------------------------------------------------------------------

MISSING = "raise ModuleNotFoundError(\"No module named 'NAME'\", name='NAME')"
QUICK = [
    ("click", MISSING, ["--help"], "robustkit does not start, its installation is broken (ModuleNotFoundError"),
    ("click", "import no_such_part", ["--help"], "pip install --force-reinstall no_such_part"),
    ("click", "raise SystemExit(1)", ["--help"], "its installation is broken (SystemExit: 1); put it right with: pip"),
    ("torch", MISSING, EVAL, "this installation is broken: torch cannot be imported (ModuleNotFoundError"),
    ("torch", "raise OSError('libcudart.so.13: cannot open shared object file')", EVAL, "torch cannot be imported (OS"),
    ("torch", "import no_such_part", EVAL, "cannot be imported (ModuleNotFoundError: No module named 'no_s"),
    ("torch", MISSING, ["doctor"], "torch cannot be imported"),
    ("torch", MISSING, ["show", "attack", "pgd"], "torch cannot be imported"),
]
ELSE = [
    ("numpy", "raise ImportError('numpy was built for another Python')", EVAL, "numpy cannot be imported (ImportError"),
    ("rich", MISSING, EVAL, "rich cannot be imported"),
    ("pyarrow", "raise RuntimeError('no such symbol')", EVAL, "pyarrow cannot be imported (RuntimeError"),
    ("safetensors", MISSING, EVAL, "safetensors cannot be imported"),
    ("jaxtyping", MISSING, EVAL, "jaxtyping cannot be imported"),
    ("platformdirs", MISSING, ["data", "ls"], "platformdirs cannot be imported"),
    ("filelock", MISSING, EVAL, "filelock cannot be imported"),
    ("scipy", MISSING, ["certify", "--model", "digits-cnn", "-n", "1", "--draws", "50"], "scipy cannot be imported"),
    ("robustkit_attacks", MISSING, EVAL, "pip install --force-reinstall robustkit-bench"),
]


@pytest.mark.parametrize(("name", "code", "arguments", "words"), [
    *QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ELSE)
])  # fmt: skip
def test_what_is_missing_or_does_not_import_is_named_and_ends_with_70(site, tmp_path, name, code, arguments, words):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{name}.py").write_text(code.replace("NAME", name))
    done = run(arguments, tmp_path, broken, site)
    assert done.returncode == 70, done.stderr + done.stdout
    assert words in done.stderr
    assert "pip install --force-reinstall" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_what_a_user_s_own_file_lacks_is_no_broken_installation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, code in (("one", "import torch.no_such"), ("two", "from torch.utils import tensorbord"), ("3", "1/0")):
        Path(f"lacks_{name}.py").write_text(code)
        done = CliRunner().invoke(main, ["eval", "--model", f"python/lacks_{name}.make", "--dataset", "digits"])
        assert done.exit_code == 2, done.output
        assert "installation" not in done.stderr


# --- another project's package of the same name -------------------------------------------------------------------


def stranger(folder, code="from .core import trend\n"):
    """What installing the other project over ours does, and then an import that fails on purpose."""
    package = folder / "robustkit"
    package.mkdir()
    (package / "__init__.py").write_text(f'"""Statistics."""\n{code}')
    return folder


@pytest.mark.parametrize("code", ["raise ImportError('not to be imported')\n", "__version__ = '0.6.0'\n"])
def test_another_project_s_package_is_told_from_ours_and_not_imported(site, tmp_path, code):
    done = run(["list", "attacks"], tmp_path, stranger(tmp_path, code), site)
    assert (done.returncode, done.stdout) == (70, "")
    assert re.fullmatch(
        r"Error: what is imported as robustkit is a package of another project \(.*/robustkit/__init__\.py\); pip "
        r"uninstall robustkit, and then pip install --force-reinstall --no-deps robustkit-bench\n", done.stderr,
    )  # fmt: skip


def test_also_as_a_module_whose_own_start_is_ours(site, tmp_path):
    mixed = stranger(tmp_path, "")
    (mixed / "robustkit/__main__.py").write_bytes((site / "robustkit/__main__.py").read_bytes())
    done = run(["list", "attacks"], tmp_path, mixed, site, program=("-m", "robustkit"))
    assert done.returncode == 70
    assert "a package of another project" in done.stderr


def test_lost_files_are_told(site, tmp_path):
    (tmp_path / "robustkit/cli").mkdir(parents=True)  # what is left when the other project is uninstalled
    (tmp_path / "robustkit_bench.py").write_bytes((site / "robustkit_bench.py").read_bytes())
    done = run(["-S", "-c", "import robustkit_bench as r; r.main()"], tmp_path, tmp_path, program=())
    assert done.returncode == 70
    assert done.stderr == (
        "Error: the package robustkit is not there, or lost files; pip install --force-reinstall robustkit-bench\n"
    )


@pytest.mark.parametrize(
    ("points", "said"), [([], "robustkit 0.6.0 is another project's"), ([SimpleNamespace(group=plugins.GROUP)], "")]
)
def test_doctor_says_when_both_are_installed(monkeypatch, points, said):
    """One that has our entry points is ours, from before it was called robustkit-bench."""
    real, found = metadata.distribution, SimpleNamespace(version="0.6.0", entry_points=points)
    monkeypatch.setattr(metadata, "distribution", lambda name: found if name == "robustkit" else real(name))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == (3 if said else 0), done.output
    assert (f"package   {said}" in done.stdout) == bool(said)


def test_without_the_namesake_doctor_has_nothing_to_say(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    assert machine.namesake() is None
    assert machine.missing_extras() == {}  # and a checkout that is not installed has no extras
