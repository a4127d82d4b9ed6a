"""What `/metrics` returns: the engine's families merged with the runtime's."""
