"""The exposition format: bytes in, bytes out; nothing of files or sockets."""
