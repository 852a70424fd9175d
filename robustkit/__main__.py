"""`python -m robustkit`: the command line."""

from robustkit_bench import main

main()
