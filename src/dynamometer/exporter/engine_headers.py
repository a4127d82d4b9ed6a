"""The headers that the user adds to requests to engines.

The values may be keys, so no message shows them. The headers are sent only to the origin of an
`--engine-url`. An engine that the exporter found does not receive them, because any process may
listen on its port; neither does another host that a redirect names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from dynamometer.errors import SettingsError
from dynamometer.exporter.targets import Target, split_name

VARIABLE: Final = "DYN_ENGINE_HEADERS"
FLAG: Final = "--engine-header"
FILE_FLAG: Final = "--engine-header-file"
_LARGEST_FILE_BYTES: Final = 64 << 10
# RFC 9110, 5.1 and 5.5.
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]+")
# The HTTP client sets the headers of the connection and of the body.
_RESERVED: Final = frozenset({"connection", "content-length", "te", "transfer-encoding", "upgrade"})


@dataclass(frozen=True)
class Header:
    """One header.

    Attributes:
        location: the flag, file or variable that contains the header, for messages.
        engine: the name of the engine that receives the header; empty for all engines.
        name: the header's name.
        value: the header's value, which `repr` omits.
    """

    location: str
    engine: str
    name: str
    value: str = field(repr=False)


class HeadersByOrigin:
    """A middleware of aiohttp's client that adds headers to requests, by origin."""

    def __init__(self, headers: Mapping[URL, Mapping[str, str]]) -> None:
        self.headers = headers

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request (or a redirected one) with the headers for its origin."""
        request.headers.update(self.headers.get(request.url.origin(), {}))
        return await handler(request)


def read(variable: str, files: Sequence[Path], flags: Sequence[str]) -> Sequence[Header]:
    """Return the headers of the variable, of the files and of the flags, in this order.

    Args:
        variable: the value of `DYN_ENGINE_HEADERS`, one header per line.
        files: paths of files, one header per line; empty lines and lines that begin with `#` are
            ignored.
        flags: headers.

    Raises:
        SettingsError: A header is malformed, or a file cannot be read. The message names the flag,
            the file and the line, and omits the value.
    """
    texts = [(VARIABLE, variable), *[(f"{FILE_FLAG} {path}", _read_file(path)) for path in files]]
    lines = [
        (f"{location}: line {number}", line.strip())
        for location, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return [
        _parse_header(location, line)
        for location, line in [*lines, *[(FLAG, flag) for flag in flags]]
    ]


def by_origin(headers: Iterable[Header], targets: Iterable[Target]) -> HeadersByOrigin:
    """Return the middleware that sends each engine its headers.

    Of several headers with one name, the last one wins, and a header for one engine wins over a
    header for all engines.

    Raises:
        SettingsError: A header does not belong to an engine with a URL, or two engines with one
            origin have different headers.
    """
    urls = {target.name: URL(target.url).origin() for target in targets if target.url is not None}
    found: dict[str, dict[str, str]] = {name: {} for name in urls}
    for header in sorted(headers, key=lambda header: bool(header.engine)):
        if not urls:
            raise SettingsError(
                f"{header.location}: needs --engine-url, because an engine that the exporter finds "
                "does not receive headers"
            )
        if header.engine and header.engine not in urls:
            raise SettingsError(
                f"{header.location}: no --engine-url is named {header.engine}: correct the "
                "name, or remove it from the header"
            )
        for name in [header.engine] if header.engine else urls:
            found[name][header.name.lower()] = header.value
    result: dict[URL, dict[str, str]] = {}
    for name, origin in urls.items():
        if result.setdefault(origin, found[name]) != found[name]:
            raise SettingsError(
                f"{FLAG}: {name} and another engine have the address {origin}, but different "
                "headers. Remove the engine's name before the header, to send it to both"
            )
    return HeadersByOrigin(result)


def _parse_header(location: str, text: str) -> Header:
    engine, line = split_name(text)
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name):
        raise SettingsError(f"{location}: must be 'Name: value', or 'ENGINE=Name: value'")
    if name.lower() in _RESERVED:
        raise SettingsError(f"{location}: {name} cannot be set: the HTTP client sets this header")
    if not _VALUE.fullmatch(value):
        raise SettingsError(
            f"{location}: the value is empty, or has characters that a header cannot contain"
        )
    return Header(location, engine, name, value)


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise SettingsError(f"{FILE_FLAG} {path}: larger than {_LARGEST_FILE_BYTES >> 10} KiB")
        return content.decode()
    except OSError as error:
        raise SettingsError(f"{FILE_FLAG} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{FILE_FLAG} {path}: must be UTF-8") from None
