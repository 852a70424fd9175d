"""How the bundled networks are made: `python -m tools.zoo.make NAME`."""
