"""Which engines the user means: `--pid`, `--multiproc-dir` and `--engine-url`, with names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from dynamometer.errors import SettingsError
from dynamometer.exporter import finder
from dynamometer.exporter.finder import Running

UNNAMED: Final = "engine"
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")
_NAMED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the user has said of an engine.

    Attributes:
        name: what it is called on the page's own families and in the log.
        named: whether the user has called it so.
        running: its first process, where it was found or its pid was given.
        directories: of its multiprocess files, where they were given.
        url: where it answers, without a path, where that was given.
        page_url: of its own `/metrics`.
    """

    name: str
    named: bool = False
    running: Running | None = None
    directories: tuple[str, ...] = ()
    url: str | None = None
    page_url: str | None = None

    @property
    def text(self) -> str:
        """What it is, for the user."""
        words = []
        if self.running is not None:
            model = f" serving {self.running.model}" if self.running.model else ""
            words.append(f"process {self.running.what} of {self.running.user}{model}")
        url = self.url or (self.running.url if self.running is not None else None)
        return ", ".join([*words, *self.directories, *([url] if url else [])])


class Named(NamedTuple):
    """A flag's value; `name` is empty where it has none."""

    name: str
    value: str


class Url(NamedTuple):
    """Where an engine answers, without a path; and its own page."""

    base: str
    page: str


@dataclass(frozen=True, kw_only=True)
class Given:
    """The flags, in the order given."""

    pids: Sequence[Named] = ()
    directories: Sequence[Named] = ()
    urls: Sequence[Named] = ()

    def __bool__(self) -> bool:
        return bool(self.pids or self.directories or self.urls)


def named(value: str) -> Named:
    """`NAME=VALUE`, or `VALUE`."""
    found = _NAMED.fullmatch(value)
    return Named(found[1], found[2]) if found else Named("", value)


def targets(given: Given) -> list[Target]:
    """The engines that are meant; flags of one name mean one engine. May block: see `finder`.

    Raises:
        SettingsError: a value is none of its kind, or two engines have one name.
    """
    names = dict.fromkeys(one.name for one in (*given.pids, *given.directories, *given.urls))
    return [_target(name, given) for name in names]


def _target(name: str, given: Given) -> Target:
    pid = _only("--pid", name, given.pids)
    url = _only("--engine-url", name, given.urls)
    running = finder.look_at(_pid(pid)) if pid is not None else None
    where = _url(url) if url is not None else None
    return Target(
        name=name or (running.name if running else UNNAMED),
        named=bool(name),
        running=running,
        directories=tuple(_directory(one.value) for one in given.directories if one.name == name),
        url=where.base if where else None,
        page_url=where.page if where else None,
    )


def _directory(text: str) -> str:
    if not text:
        raise _not_a_directory(repr(text))
    return str(Path(text).absolute())


def check_directories(meant: Sequence[Target]) -> None:
    """Check that the directories of `meant` are directories where they exist; may block.

    Raises:
        SettingsError: One is something else.
    """
    for target in meant:
        for text in target.directories:
            path = Path(text)
            try:
                wrong = path.exists() and not path.is_dir()
            except OSError:  # not to be read: the engine's own look says so
                continue
            if wrong:
                raise _not_a_directory(text)


def _not_a_directory(text: str) -> SettingsError:
    return SettingsError(f"--multiproc-dir {text}: must be a directory")


def _only(flag: str, name: str, values: Sequence[Named]) -> str | None:
    found = [one.value for one in values if one.name == name]
    if len(found) > 1:
        raise SettingsError(
            f"{flag} {found[0]} and {flag} {found[1]}: several engines need a name each, as in "
            f"{flag} one={found[0]} {flag} two={found[1]}"
        )
    return found[0] if found else None


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(2**32)):
        raise SettingsError(
            f"--pid {text or repr(text)}: must be the number of a process, or NAME=NUMBER"
        )
    return int(text)


def _url(text: str) -> Url:
    whole = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(whole)
        valid = (
            parts.scheme in ("http", "https")
            and _HOST.fullmatch(parts.hostname or "") is not None
            and bool((parts.hostname or "").encode("idna"))
            and parts.port != 0
        )
    except ValueError:
        valid = False
    if not valid:
        raise SettingsError(
            f"--engine-url {text or repr(text)}: must be such as http://127.0.0.1:30000, or the "
            "whole URL of a text page"
        )
    if "@" in parts.netloc:  # it would be in the log, and on /health
        raise SettingsError("--engine-url: a user and password in it are not supported")
    base = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return Url(base, f"{base}{path}{query}" if path else f"{base}/metrics{query}")
