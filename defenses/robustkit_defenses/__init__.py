"""Native defenses. One defense, one file; this table is all that adding one needs besides."""

from robustkit.plugins import Plugin

PLUGIN = Plugin()
