"""A stranger's package: one table, one attack."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(attacks={"corner": Entry("third_party_attack.corner:Corner", "the corner of the ball, in one step")})
