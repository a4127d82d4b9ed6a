"""prometheus_client's multiprocess files: what several processes of an engine have counted."""

from dynamometer.multiprocess.directory import MultiprocessDirectory

__all__ = ["MultiprocessDirectory"]
