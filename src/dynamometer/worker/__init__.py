"""The process that owns an engine: starts it, watches it, speaks for it, and outlives it."""
