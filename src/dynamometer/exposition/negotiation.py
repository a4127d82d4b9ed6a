"""The format and the encoding that a scraper accepts (RFC 9110, 12.5).

Prometheus 2 and 3 prefer OpenMetrics to text, some versions prefer protobuf to both, and all list
`*/*` last. Prometheus 3 adds `escaping=`: all names on our pages are in the legacy character set,
which satisfies every escaping.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

_OPENMETRICS: Final = "application/openmetrics-text"
_TEXT: Final = frozenset({"text/plain", "text/*", "*/*"})
# Text 1.0.0 is 0.0.4 with quoted names, which our pages do not have.
_VERSIONS: Final = {_OPENMETRICS: ("", "1.0.0"), "text/plain": ("", "0.0.4", "1.0.0")}


class Format(Enum):
    """A format of pages; the value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    @property
    def content_type(self) -> str:
        """The content type of a response."""
        return self.value

    @property
    def openmetrics(self) -> bool:
        """True for OpenMetrics."""
        return self is Format.OPENMETRICS


class _Preference(NamedTuple):
    """One item of a header; its name, in lower case, is a media type or an encoding."""

    name: str
    parameters: dict[str, str]
    weight: float


def choose_format(accept: str | None) -> Format:
    """Return the format that a request prefers; text if the request names neither format.

    Args:
        accept: the request's Accept header; None if missing.
    """
    best, weight = Format.TEXT, 0.0
    for preference in _preferences(accept or ""):
        found = _format(preference)
        if found is not None and preference.weight > weight:
            best, weight = found, preference.weight
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Return whether a request accepts gzip and does not prefer an uncompressed response.

    Args:
        accept_encoding: the request's Accept-Encoding header; None if missing.
    """
    weights = {one.name: one.weight for one in _preferences(accept_encoding or "")}
    explicit = [weights[name] for name in ("gzip", "x-gzip") if name in weights]
    gzip = max(explicit) if explicit else weights.get("*", 0.0)
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _format(preference: _Preference) -> Format | None:
    if preference.parameters.get("version", "") not in _VERSIONS.get(preference.name, ("",)):
        return None
    if preference.name == _OPENMETRICS:
        return Format.OPENMETRICS
    return Format.TEXT if preference.name in _TEXT else None


def _preferences(header: str) -> Iterable[_Preference]:
    """Return the preferences in a header, in order; invalid ones are skipped."""
    for part in header.split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        parameters = {}
        for piece in rest:
            key, _, value = piece.partition("=")
            parameters[key.strip().lower()] = value.strip().strip('"')
        weight = _weight(parameters.pop("q", "1"))
        if name and weight is not None:
            yield _Preference(name.lower(), parameters, weight)


def _weight(text: str) -> float | None:
    digits = text.replace(".", "", 1)
    if not digits.isascii() or not digits.isdecimal():
        return None
    weight = float(text)
    return weight if weight <= 1 else None
