"""Which format, and which encoding, a scraper is given (RFC 9110, 12.5).

Prometheus 2 and 3 ask for OpenMetrics before text, some for protobuf before both, and each
says `*/*` last; Prometheus 3 adds an `escaping=`. All names on our pages are in the legacy
character set, so every escaping is satisfied.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

_OPENMETRICS: Final = "application/openmetrics-text"
_TEXT: Final = frozenset({"text/plain", "text/*", "*/*"})
# Text 1.0.0 is 0.0.4 with quoted names, of which we have none.
_VERSIONS: Final = {_OPENMETRICS: ("", "1.0.0"), "text/plain": ("", "0.0.4", "1.0.0")}


class Format(Enum):
    """A format that pages are rendered in; the value is its content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    @property
    def content_type(self) -> str:
        """The content type of an answer."""
        return self.value

    @property
    def openmetrics(self) -> bool:
        """Whether it is OpenMetrics."""
        return self is Format.OPENMETRICS


class _Wish(NamedTuple):
    word: str
    parameters: dict[str, str]
    weight: float


def choose_format(accept: str | None) -> Format:
    """Return the format that a request prefers; text where it names neither.

    Args:
        accept: the request's Accept header; None without one.
    """
    best, weight = Format.TEXT, 0.0
    for wish in _wishes(accept or ""):
        found = _format(wish)
        if found is not None and wish.weight > weight:
            best, weight = found, wish.weight
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a scraper wants gzip, and no other way rather.

    Args:
        accept_encoding: the request's Accept-Encoding header; None without one.
    """
    weights = {wish.word: wish.weight for wish in _wishes(accept_encoding or "")}
    explicit = [weights[word] for word in ("gzip", "x-gzip") if word in weights]
    gzip = max(explicit) if explicit else weights.get("*", 0.0)
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _format(wish: _Wish) -> Format | None:
    if wish.parameters.get("version", "") not in _VERSIONS.get(wish.word, ("",)):
        return None
    if wish.word == _OPENMETRICS:
        return Format.OPENMETRICS
    return Format.TEXT if wish.word in _TEXT else None


def _wishes(header: str) -> Iterable[_Wish]:
    """What a header lists, in its order; what cannot be understood is passed over."""
    for part in header.split(","):
        word, *rest = (piece.strip() for piece in part.split(";"))
        parameters = {}
        for piece in rest:
            name, _, value = piece.partition("=")
            parameters[name.strip().lower()] = value.strip().strip('"')
        weight = _weight(parameters.pop("q", "1"))
        if word and weight is not None:
            yield _Wish(word.lower(), parameters, weight)


def _weight(text: str) -> float | None:
    digits = text.replace(".", "", 1)
    if not digits.isascii() or not digits.isdecimal():
        return None
    weight = float(text)
    return weight if weight <= 1 else None
