"""All kinds of engines, and the routes and prefixes of all of them together.

To add an engine, write one module beside `sglang` with a class that implements `Engine`, and add
the class to `ENGINES`. Only an engine whose answers have a new format also needs a member of
`Usage` and functions in `dialects` that read the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dynamometer.engines.interface import Engine, Route
from dynamometer.engines.mocker import Mocker
from dynamometer.engines.sglang import SGLang

DEFAULT: Final[Engine] = SGLang()
"""The engine of a URL or a record that names no kind."""

ENGINES: Final[Mapping[str, Engine]] = {engine.name: engine for engine in (DEFAULT, Mocker())}
"""All engines, by kind."""

ROUTES: Final[Mapping[str, Route]] = {
    path: route for engine in ENGINES.values() for path, route in engine.routes.items()
}
"""The inference routes of all engines, by path."""

METRIC_PREFIXES: Final = tuple(
    dict.fromkeys(prefix for engine in ENGINES.values() for prefix in engine.metric_prefixes)
)
"""The prefixes of all engines' family names."""

PAIRING_MEMBERS: Final = tuple(
    sorted({name for engine in ENGINES.values() for name in engine.pairing_fields.members})
)
"""The members of a body that no client may set; see `PairingFields.members`."""


def find(kind: str) -> Engine | None:
    """Return the engine of this kind; `DEFAULT` for an empty kind, None for an unknown one."""
    return ENGINES.get(kind) if kind else DEFAULT
