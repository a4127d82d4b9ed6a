"""Headers that the user gives for requests to engines: keys, which no message shows.

They go to the origin of an `--engine-url` alone: neither to an engine that was found, because any
process may listen on its port, nor to another host that a redirect names.
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
from dynamometer.exporter.targets import Target, named

VARIABLE: Final = "DYN_ENGINE_HEADERS"
FLAG: Final = "--engine-header"
FILE_FLAG: Final = "--engine-header-file"
_LARGEST_FILE_BYTES: Final = 64 << 10
# RFC 9110, 5.1 and 5.5.
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]+")
# Of the connection and of the body, which are the client's.
_RESERVED: Final = frozenset({"connection", "content-length", "te", "transfer-encoding", "upgrade"})


@dataclass(frozen=True)
class Header:
    """One header.

    Attributes:
        where: the flag or variable that has it, for messages.
        engine: the name of the engine that gets the header; empty for all.
        name: of the header.
        value: not in its `repr`.
    """

    where: str
    engine: str
    name: str
    value: str = field(repr=False)


class HeadersByOrigin:
    """A middleware of aiohttp's client: adds headers to requests, by their origin."""

    def __init__(self, headers: Mapping[URL, Mapping[str, str]]) -> None:
        self.headers = headers

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request, or what a redirect made of it."""
        request.headers.update(self.headers.get(request.url.origin(), {}))
        return await handler(request)


def read(variable: str, files: Sequence[Path], flags: Sequence[str]) -> Sequence[Header]:
    """Return the headers of the variable, of the files and of the flags, in this order.

    Args:
        variable: the text of `DYN_ENGINE_HEADERS`, one header a line.
        files: of one header a line; empty lines and those that begin with `#` are ignored.
        flags: one header each.

    Raises:
        SettingsError: A header is malformed, or a file cannot be read. The message names flag, file
            and line, and no value.
    """
    texts = [(VARIABLE, variable), *[(f"{FILE_FLAG} {path}", _content(path)) for path in files]]
    lines = [
        (f"{where}: line {number}", line.strip())
        for where, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return [_header(where, line) for where, line in [*lines, *[(FLAG, flag) for flag in flags]]]


def by_origin(headers: Iterable[Header], targets: Iterable[Target]) -> HeadersByOrigin:
    """Return the middleware that sends each engine its headers.

    Of one name, a later header wins, and one for an engine alone wins over one for all.

    Raises:
        SettingsError: A header belongs to no engine with a URL, or two engines of one origin
            would get different ones.
    """
    urls = {target.name: URL(target.url).origin() for target in targets if target.url is not None}
    found: dict[str, dict[str, str]] = {name: {} for name in urls}
    for header in sorted(headers, key=lambda header: bool(header.engine)):
        if not urls:
            raise SettingsError(
                f"{header.where}: needs --engine-url; engines that were found get no header"
            )
        if header.engine and header.engine not in urls:
            raise SettingsError(f"{header.where}: no --engine-url is named {header.engine}")
        for name in [header.engine] if header.engine else urls:
            found[name][header.name.lower()] = header.value
    result: dict[URL, dict[str, str]] = {}
    for name, origin in urls.items():
        if result.setdefault(origin, found[name]) != found[name]:
            raise SettingsError(
                f"{FLAG}: {name} and another engine have the address {origin}, and not the same "
                "headers: name no engine before them"
            )
    return HeadersByOrigin(result)


def _header(where: str, text: str) -> Header:
    engine, line = named(text)
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: must be 'Name: value', or 'ENGINE=Name: value'")
    if name.lower() in _RESERVED:
        raise SettingsError(f"{where}: {name} cannot be set")
    if not _VALUE.fullmatch(value):
        raise SettingsError(
            f"{where}: the value is empty, or has characters that no header can have"
        )
    return Header(where, engine, name, value)


def _content(path: Path) -> str:
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
