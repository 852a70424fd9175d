"""Per-sample mathematics: sums over rows, projections, and random numbers that belong to samples."""
