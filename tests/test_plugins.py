import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from robustkit import plugins
from robustkit.cli import main
from robustkit.doctor.machine import broken_plugins
from robustkit.errors import UsageError
from robustkit.plugins import Entry, Plugin


def point(name: str, plugin: object, value: str = "") -> SimpleNamespace:
    return SimpleNamespace(name=name, value=value or f"{name}:PLUGIN", load=lambda: plugin)


@pytest.fixture
def installed(monkeypatch):
    """Make these entry points the only ones."""

    def install(*points: SimpleNamespace) -> None:
        monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.GROUP else ())
        plugins.clear()

    yield install
    plugins.clear()


def attacks(**paths: str) -> Plugin:
    return Plugin(attacks={name: Entry(path, "a test's") for name, path in paths.items()})


def test_names_of_all_plugins_come_in_one_table_with_the_plugin_they_are_from(installed):
    installed(point("mine", attacks(a="m:A")), point("yours", attacks(b="n:B")))
    found = plugins.table("attacks")
    assert {name: (entry.entry.path, entry.plugin) for name, entry in found.items()} == {
        "a": ("m:A", "mine"),
        "b": ("n:B", "yours"),
    }
    assert plugins.table("datasets") == {}


def test_two_plugins_with_one_name_are_refused_naming_both(installed):
    installed(point("mine", attacks(pgd="m:A")), point("yours", attacks(pgd="n:B")))
    with pytest.raises(UsageError) as error:
        plugins.load("attacks", "pgd")
    for word in ("'pgd'", "mine", "yours", "uninstall one"):
        assert word in str(error.value)


def test_one_name_for_things_of_two_kinds_is_no_clash(installed):
    installed(point("mine", attacks(file="m:A")), point("yours", Plugin(datasets={"file": Entry("n:B", "")})))
    assert plugins.table("attacks")["file"].plugin == "mine"
    assert plugins.table("datasets")["file"].plugin == "yours"


def test_an_entry_point_that_is_listed_twice_counts_once(installed):
    installed(point("mine", attacks(a="m:A")), point("mine", attacks(a="m:A")))
    assert list(plugins.table("attacks")) == ["a"]


def test_a_plugin_that_does_not_load_is_named_with_its_error(installed):
    def fail() -> None:
        raise ImportError("no module named missing")

    installed(SimpleNamespace(name="broken", value="broken:PLUGIN", load=fail))
    assert plugins.table("attacks") == {}
    with pytest.raises(
        UsageError, match=r"'broken' \(broken:PLUGIN\) does not load: ImportError: no module named miss"
    ):
        plugins.load("attacks", "pgd")


def test_an_entry_point_that_is_no_plugin_is_named(installed):
    installed(point("odd", {"attacks": {}}))
    (told,) = plugins.broken()
    assert "'odd'" in told
    assert "must be a robustkit.plugins.Plugin, and is of type dict" in told


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (["a"], "are of type list"),
        ("a", "are of type str"),
        ({"a": "m:A"}, "'a' to a str; write Entry('pkg.module:Name', '…')"),
        ({"a": ("m:A", "")}, "'a' to a tuple"),
        ({3: Entry("m:A", "")}, "3 is no name"),
        ({"a": Entry("m.A", "")}, "say where 'a' is by 'm.A'; write package.module:Name"),
        ({"a": Entry(None, "")}, "say where 'a' is by None"),
    ],
    ids=str,
)
def test_a_broken_table_stops_only_what_needs_it(installed, table, words):
    wrong = Plugin(attacks=table, defenses={"d": Entry("fractions:Fraction", "")})
    installed(point("good", attacks(pgd="fractions:Fraction")), point("wrong", wrong))
    assert plugins.load("attacks", "pgd") is plugins.load("defenses", "d")
    (told,) = plugins.broken()
    assert told.startswith("plugin 'wrong' (wrong:PLUGIN): its attacks ")
    assert words in told
    with pytest.raises(UsageError, match="no attack called 'a'") as error:
        plugins.load("attacks", "a")
    assert told in str(error.value)


def test_a_plugin_that_ends_the_process_is_told_and_the_others_go_on(installed, capsys):
    def leave() -> None:
        raise SystemExit(3)

    gone = SimpleNamespace(name="gone", value="gone:PLUGIN", load=leave)
    installed(gone, point("good", attacks(ratio="fractions:Fraction")))
    done = CliRunner().invoke(main, ["list", "attacks"])
    assert done.exit_code == 0
    assert "ratio" in done.stdout
    assert "plugin 'gone' (gone:PLUGIN) does not load: SystemExit: 3; mend it or uninstall it" in done.stderr
    assert len(broken_plugins()) == 1


def test_a_source_is_looked_at_as_a_whole_before_it_is_asked(installed):
    class Half:
        def load(self, name, options):
            return None

    class Needs:
        def __init__(self, where):
            pass

    sys.modules[__name__].Half = Half
    sys.modules[__name__].Needs = Needs
    sources = {name: Entry(f"{__name__}:{name.title()}", "") for name in ("half", "needs")}
    installed(point("mine", Plugin(sources=sources, attack_sources=sources)))
    for kind, name, words in (
        ("sources", "half", "the model source 'half' of plugin 'mine' has no names; see robustkit.api"),
        ("attack_sources", "half", "has no names, no make, no card"),
        ("sources", "needs", "cannot be made without arguments"),
    ):
        with pytest.raises(UsageError) as error:
            plugins.source(kind, name)
        assert words in str(error.value)


def test_an_unknown_name_is_told_the_close_ones(installed):
    installed(point("mine", attacks(pgd="m:A", square="m:B")))
    with pytest.raises(UsageError) as error:
        plugins.load("attacks", "pdg")
    assert "no attack called 'pdg'; did you mean pgd?" in str(error.value)
    assert "pgd, square" in str(error.value)


def test_looking_at_the_table_imports_nothing_and_loading_imports_the_one_named(installed):
    installed(point("mine", attacks(good="fractions:Fraction", bad="no.such.module:Thing")))
    assert list(plugins.table("attacks")) == ["good", "bad"]
    assert plugins.load("attacks", "good").__name__ == "Fraction"
    with pytest.raises(UsageError, match=r"needs 'no', which is not installed: pip install 'no'"):
        plugins.load("attacks", "bad")
    installed(point("mine", Plugin(attacks={"far": Entry("no.such:Thing", "", "robustkit-bench[zoo]")})))
    with pytest.raises(UsageError, match=r"pip install 'robustkit-bench\[zoo\]'"):
        plugins.load("attacks", "far")


def test_a_class_has_its_name_in_the_table_or_its_own_in_lower_case(installed):
    installed(point("mine", attacks(ratio="fractions:Fraction")))
    assert plugins.name_of("attacks", plugins.load("attacks", "ratio")) == "ratio"
    assert plugins.name_of("attacks", SimpleNamespace) == "simplenamespace"


def test_the_packages_own_plugins_are_found():
    assert plugins.table("sources")["file"].plugin == "robustkit"
    assert "fgsm" in plugins.table("attacks")
    assert all(entry.entry.summary for kind in ("attacks", "sources") for entry in plugins.table(kind).values())
