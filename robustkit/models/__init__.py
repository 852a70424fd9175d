"""Models: loaded, defended, opened for a measurement, examined, called in tiles, and offered to attacks as oracles."""
