"""`python -m robustkit`: the command line."""

from robustkit.cli import main

main(prog_name="robustkit")
