"""The audit: is a robust accuracy real, or do gradients hide what breaks the model? Evidence first, then a verdict.

`run.audit` measures, `rules` turns what was measured into checks, `findings` is what a record keeps, `plots` draws it.
This module, `findings`, `rules` and `plots` load no torch.

Sources: Athalye, Carlini, Wagner 2018, arXiv:1802.00420, section 3.1, for signs of masked gradients; Carlini et al.
2019, arXiv:1902.06705, section 5, for the list to go through; Croce & Hein 2020, arXiv:2003.01690, for queries as a
cross-check; Zhang, Nikolić, Carlini, Tramèr 2024, arXiv:2411.14834, for stand-ins.
"""

from robustkit.records.findings import INVALID, NOT_AUDITED, SUSPECT, UNDECIDED, VALID, Audit, Check, Series

__all__ = ["INVALID", "NOT_AUDITED", "SUSPECT", "UNDECIDED", "VALID", "Audit", "Check", "Series"]
