"""What the rest needs to know of each engine: a file an engine; see `interface`."""
