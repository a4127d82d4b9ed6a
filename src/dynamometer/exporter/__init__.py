"""The exporter: the page alone, beside engines that already run."""
