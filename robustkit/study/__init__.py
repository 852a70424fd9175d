"""Studies: models × defenses × attacks × threat models × seeds as one resumable job that ends in one report.

`grammar` reads the TOML file (docs/studies.md) and `plan` is what it says; `check` looks at every name and option
before anything is computed, `forecast` says what it will cost, `run` computes. `results` reads what a study left,
`tables` compares it, `report`, `transfers` and `figures` show it; these need no torch.
"""
