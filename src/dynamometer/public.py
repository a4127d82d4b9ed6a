"""The public names of a package, imported when they are first used.

prometheus_client chooses where values live when it is imported, and an engine's process must set
`PROMETHEUS_MULTIPROC_DIR` before that. So a package does not import what it offers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Make the `__getattr__` of a package (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: of each public name the module of the package that has it.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
