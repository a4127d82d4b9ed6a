"""The worker: the process that starts an engine, watches it, and serves its page and requests."""
