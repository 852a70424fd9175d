"""The engine: plan shards, attack the survivors, judge, journal. `measure` is the way in."""
