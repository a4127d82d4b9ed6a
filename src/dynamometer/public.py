"""Import the public names of a package on first use.

prometheus_client chooses the storage of values when it is imported, and an engine's process must
set `PROMETHEUS_MULTIPROC_DIR` before that. So a package does not import its public names itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return a `__getattr__` for a package (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: the module of the package that defines each public name.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
