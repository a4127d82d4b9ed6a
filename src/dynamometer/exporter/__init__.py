"""The page alone, beside an engine that somebody else started."""
