"""Transfer attacks: parts that compose (`attack.py`), the CWA family (`cwa.py`), well-known names (`presets.py`).

What an attack climbs on are the members of `case.oracle`, the surrogates; an oracle without members is the only one.
Nothing is asked of a victim. All is per sample: gradients, momenta, weights and random numbers.
"""
