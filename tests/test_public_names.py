"""The names that `robustkit` gives: the same objects however much of the package was imported."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, robustkit
first = {name: getattr(robustkit, name) for name in robustkit.__all__}
for module in pkgutil.iter_modules(robustkit.__path__):  # importing robustkit.x sets the attribute x of robustkit
    if module.name != "__main__":
        importlib.import_module(f"robustkit.{module.name}")
changed = [name for name in first if getattr(robustkit, name) is not first[name]]
assert not changed, changed
assert set(robustkit.__all__) == set(dir(robustkit)) == {*robustkit._LAZY, "__version__"}
"""


def test_a_public_name_means_the_same_before_and_after_its_submodules_are_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
