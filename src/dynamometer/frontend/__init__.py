"""OpenAI-compatible HTTP in front of the workers: picks one, forwards, counts."""
