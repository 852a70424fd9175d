"""The engine: plan shards, attack the survivors, judge, journal."""
