"""prometheus_client's multiprocess files: the metrics of several processes as one page."""

from dynamometer.multiprocess.collector import MultiProcessCollector, generate_latest
from dynamometer.multiprocess.directory import MultiprocessDirectory

__all__ = ["MultiProcessCollector", "MultiprocessDirectory", "generate_latest"]
