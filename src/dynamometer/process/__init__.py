"""The operating system: child processes, directories, signals, the event loop, tasks."""
