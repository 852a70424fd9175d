"""How `robustkit` starts on the command line: also a broken installation ends in one line, and in 70.

It needs nothing but Python, not even the package `robustkit`. The package index has a project of that name, with a
package of that name: in one environment with this distribution, the files of whichever came last stand in its place.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

DISTRIBUTION = "robustkit-bench"
_UNEXPECTED, _INTERRUPTED = 70, 130  # robustkit.errors.ExitCode, which may not be there


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: always, with the command's exit code; 70 if it cannot be started, and why is one line on stderr.
    """
    try:
        wrong = wrong_package()
        if wrong is None:
            from robustkit.cli import main as command
    except KeyboardInterrupt:
        _end("interrupted", _INTERRUPTED)
    except (Exception, SystemExit) as error:
        lost = error.name if isinstance(error, ModuleNotFoundError) else None
        again = DISTRIBUTION if lost is None or lost.startswith("robustkit") else lost.partition(".")[0]
        wrong = (
            f"robustkit does not start, its installation is broken ({type(error).__name__}: {error}); put it right "
            f"with: pip install --force-reinstall {again}"
        )
    if wrong is not None:
        _end(wrong, _UNEXPECTED)
    command(prog_name="robustkit")


def wrong_package() -> str | None:
    """What is wrong with what would be imported as `robustkit`, in one line; None if it is ours. It is not imported."""
    spec = find_spec("robustkit")
    if spec is None or spec.origin is None:
        return f"the package robustkit is not there, or lost files; pip install --force-reinstall {DISTRIBUTION}"
    if f'DISTRIBUTION = "{DISTRIBUTION}"' in Path(spec.origin).read_text(encoding="utf-8", errors="replace"):
        return None
    return (
        f"what is imported as robustkit is a package of another project ({spec.origin}); pip uninstall robustkit, and "
        f"then pip install --force-reinstall --no-deps {DISTRIBUTION}"
    )


def _end(line: str, code: int) -> NoReturn:
    if sys.stderr is not None:
        print(f"Error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
