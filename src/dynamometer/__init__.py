"""Dynamometer: SGLang behind an OpenAI-compatible frontend, and all metrics on one page.

This module imports nothing: SGLang's processes load it to find the CPU platform.
"""

__version__ = "0.1.0"
