"""What code is part of a run's identity: what an attack imports and what decides a number, and nothing else."""

import ast
import shutil
import sys
import time
from pathlib import Path

import pytest
import robustkit_attacks
from robustkit_attacks.pgd import PGD

import robustkit
from robustkit import plugins
from robustkit.api import Expected
from robustkit.engine import identity
from robustkit.engine.plan import Named, make_attack, name_of

LIBRARIES = {"torchattacks", "pyautoattack"}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copies of the packages in which files can be edited, hashed under their own names without being imported."""

    def hashed(kind, *names):
        for cache in (identity._source, identity._folders):
            cache.cache_clear()
        if kind == "harness":
            return identity.harness_sha256(*names)
        return {name: identity.code_sha256(name) for name in names}

    for package in (robustkit, robustkit_attacks):
        folder = Path(package.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("robustkit", "robustkit_attacks"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path, hashed
    for cache in (identity._source, identity._folders):
        cache.cache_clear()


def append(file, text="\nCHANGED = 1\n"):
    file.write_text(file.read_text() + text)


ATTACKS = ("robustkit_attacks.pgd", "robustkit_attacks.apgd", "robustkit_attacks.transfer.attack")


def test_a_new_attack_changes_no_other_s_identity_and_a_helper_s_change_does(copied):
    folder, hashed = copied
    before = hashed("attacks", *ATTACKS)
    assert len(set(before.values())) == len(ATTACKS)
    (folder / "robustkit_attacks/new.py").write_text("from robustkit_attacks.pgd import PGD\n")
    append(folder / "robustkit_attacks/__init__.py")  # where the new attack stands in the plugin's table
    assert hashed("attacks", *ATTACKS) == before
    new = hashed("attacks", "robustkit_attacks.new")
    append(folder / "robustkit_attacks/losses.py")  # which all three need, the last through several files
    after = hashed("attacks", *ATTACKS)
    assert all(after[name] != before[name] for name in ATTACKS)
    assert hashed("attacks", "robustkit_attacks.new") != new


def test_the_harness_is_what_decides_a_number_and_not_what_shows_it(copied):
    folder, hashed = copied
    before = hashed("harness")
    for shows in ("cli/run.py", "report/page.py", "records/run.py", "doctor/trials.py", "cache/pins.py"):
        append(folder / "robustkit" / shows)
    assert hashed("harness") == before
    limit = folder / "robustkit/spec.py"
    limit.write_text(limit.read_text().replace("eps * (1 + 1e-6) + 1e-7", "eps * (1 + 1e-6) + 1e-6"))
    changed = hashed("harness")
    assert changed != before
    for decides in ("api.py", "engine/judge.py", "models/oracle.py", "numerics/streams.py", "records/votes.py"):
        append(folder / "robustkit" / decides)
        assert hashed("harness") != changed, decides
        changed = hashed("harness")


@pytest.mark.parametrize(
    ("text", "package", "found"),
    [
        ("import pk.a, os", "pk", {"pk.a", "os"}),
        ("import pk.sub.b as b", "pk", {"pk.sub.b"}),
        ("from pk import a, NAME", "pk", {"pk.a", "pk"}),
        ("from pk.a import f", "pk.sub", {"pk.a"}),
        ("from . import b", "pk.sub", {"pk.sub.b"}),
        ("from .b import f", "pk.sub", {"pk.sub.b"}),
        ("from .. import a", "pk.sub", {"pk.a"}),
        ("from ..a import *", "pk.sub", {"pk.a"}),
        (
            "def f():\n    try:\n        from pk import a\n    except E:\n        import pk.sub.b",
            "pk",
            {"pk.a", "pk.sub.b"},
        ),
        ("if TYPE_CHECKING:\n    import pk.a\nelse:\n    import pk.sub", "pk", {"pk.sub"}),
        ("match x:\n    case 1:\n        import pk.a", "pk", {"pk.a"}),
        ("async def f():\n    async with x:\n        for y in z:\n            import pk.a", "pk", {"pk.a"}),
        ("text = 'import pk.a'", "pk", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(text, package, found, tmp_path, monkeypatch):
    for file in ("pk/__init__.py", "pk/a.py", "pk/sub/__init__.py", "pk/sub/b.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.syspath_prepend(tmp_path)
    identity._folders.cache_clear()
    assert set(identity._imported(ast.parse(text).body, package)) == found
    assert "pk" not in sys.modules


def test_the_plugins_tables_give_the_hashes_that_the_attacks_give():
    specs = [
        "apgd:eot=2",
        "fab",
        "square",
        "mi",
        "torchattacks/PGD:steps=3",
        "pyautoattack/standard",
    ]
    attacks = [Named(name_of(made), made) for made in map(make_attack, specs)]
    found = identity.source_hashes(attacks)
    assert found.keys() - {named.name for named in attacks} == {identity.HARNESS} | LIBRARIES
    assert all(len(value) == 64 for value in found.values())
    assert identity.present_hashes(found) == found
    unknown = ("nothing", "defense jpeg:quality=50", "defense package.module.Own")
    assert [len(value) for value in identity.present_hashes(unknown).values()] == [0, 64, 0]


def test_every_attack_and_defense_of_the_tables_has_an_identity_and_a_wrapper_has_its_attack_s():
    for kind in ("attacks", "defenses"):
        for name, found in plugins.table(kind).items():
            assert len(identity.code_sha256(found.entry.path.partition(":")[0])) == 64, name
    plain, wrapped = (identity.source_hashes([Named("pgd", attack)]) for attack in (PGD(), Expected(PGD(), 3)))
    assert plain == wrapped


def test_an_identity_costs_little():
    attacks = [Named(name, make_attack(name)) for name in ("apgd", "fab", "square")]
    for cache in (identity._source, identity._folders):
        cache.cache_clear()
    start = time.process_time()
    identity.source_hashes(attacks)
    assert time.process_time() - start < 0.5  # 0.05 s on an idle core
    start = time.process_time()
    for _ in range(10):
        identity.source_hashes(attacks)
    assert (time.process_time() - start) / 10 < 0.02
