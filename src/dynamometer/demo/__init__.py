"""`dyno demo`: everything at once, on real requests."""
