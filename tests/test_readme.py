"""README says what is true: its table of attacks is the table of attacks, and its files exist."""

import re
from pathlib import Path

from robustkit import plugins
from robustkit.api import NORMS, Attack, ModelFacts, ThreatModel

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def works_in(name):
    made = plugins.load("attacks", name)()
    if isinstance(made, Attack):
        return [norm for norm in NORMS if norm in made.norms]
    facts, works = ModelFacts(10, False, True, 0, ()), []
    for norm in NORMS:
        try:
            made.attacks(ThreatModel(norm, 1.0), facts)
        except Exception:
            continue
        works.append(norm)
    return works


def test_the_table_of_attacks_is_the_table_of_attacks():
    rows = [
        f"| `{name}` | {', '.join(works_in(name))} | {found.entry.summary} |"
        for name, found in plugins.table("attacks").items()
    ]
    assert "\n".join(rows) in README, "put this into README.md:\n" + "\n".join(rows)


def test_what_readme_and_architecture_point_to_exists():
    for document in (README, (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")):
        for link in re.findall(r"\]\(([^)#]+)\)", document):
            assert link.startswith("http") or (ROOT / link).exists(), link
