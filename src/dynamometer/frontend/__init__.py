"""The frontend: an OpenAI-compatible HTTP server that forwards requests to workers."""
