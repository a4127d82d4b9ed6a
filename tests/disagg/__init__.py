"""Real engines with prefill and decode apart.

A package, so that its fixtures of package scope end their engines before other tests start theirs.
"""
