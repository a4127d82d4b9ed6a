"""The engines that flags select, with their names, and the options of all engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from dynamometer.errors import SettingsError
from dynamometer.exporter import finder
from dynamometer.exporter.finder import FoundEngine
from dynamometer.exposition.label_bounds import LabelLimits
from dynamometer.metrics.http_source import FETCH_DEADLINE_SECONDS

UNNAMED: Final = "engine"
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")
_NAMED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of every engine of an exporter.

    Attributes:
        identity: the engine's `worker_id` on the exporter's own families.
        constant: labels for every series that does not have them.
        model_label: add the label `model`.
        model: the value of the label `model`; empty for the name that the engine serves.
        prefixes: prefixes of the families to show; empty to show all.
        max_series: the highest number of series from an engine's files.
        label_limits: the limits of label values.
        health_path: the engine's health route; empty to check only the port.
        health_interval: seconds between two requests to the health route; 0 to send none while the
            engine is ready.
        health_deadline: seconds in which the health route must answer.
        page_deadline: seconds in which the engine's own page must arrive.
    """

    identity: str = ""
    constant: Mapping[str, str] = field(default_factory=dict)
    model_label: bool = False
    model: str = ""
    prefixes: tuple[str, ...] = ()
    max_series: int
    label_limits: LabelLimits = field(default_factory=LabelLimits)
    health_path: str
    health_interval: float
    health_deadline: float
    page_deadline: float = FETCH_DEADLINE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Target:
    """One engine that the flags select, or that the exporter found.

    Attributes:
        name: the engine's name on the exporter's own families and in the log.
        named: the name comes from a flag.
        first: the engine's first process, if found or given by its pid.
        directories: the given directories of its multiprocess files.
        url: the given address, without a path.
        page_url: the given URL of its own `/metrics`.
    """

    name: str
    named: bool = False
    first: FoundEngine | None = None
    directories: tuple[str, ...] = ()
    url: str | None = None
    page_url: str | None = None

    @property
    def description(self) -> str:
        """The engine's process, directories and address, for the log."""
        parts = []
        if self.first is not None:
            model = f" serving {self.first.model}" if self.first.model else ""
            parts.append(f"process {self.first.description} of {self.first.user}{model}")
        url = self.url or (self.first.url if self.first is not None else None)
        return ", ".join([*parts, *self.directories, *([url] if url else [])])


class NamedValue(NamedTuple):
    """The value of a flag, with the engine's name; empty if the flag does not contain one."""

    name: str
    value: str

    @property
    def given(self) -> str:
        """The text of the flag, for messages."""
        return f"{self.name}={self.value}" if self.name else self.value or repr("")


class _Address(NamedTuple):
    """The address of an engine without a path, and the URL of its own page."""

    base: str
    page: str


@dataclass(frozen=True, kw_only=True)
class TargetFlags:
    """The flags that select engines, in the order of the command line."""

    pids: Sequence[NamedValue] = ()
    directories: Sequence[NamedValue] = ()
    urls: Sequence[NamedValue] = ()

    def __bool__(self) -> bool:
        return bool(self.pids or self.directories or self.urls)


def split_name(text: str) -> NamedValue:
    """Split `NAME=VALUE`; the name is empty if the text is only a value."""
    found = _NAMED.fullmatch(text)
    return NamedValue(found[1], found[2]) if found else NamedValue("", text)


def select(flags: TargetFlags) -> list[Target]:
    """Return the engines that `flags` select; may block.

    Flags of different kinds with the same name, or without a name, select one engine.

    Raises:
        SettingsError: A value is invalid, a flag is repeated with the same name, or a process
            cannot be inspected.
    """
    names = dict.fromkeys(one.name for one in (*flags.pids, *flags.directories, *flags.urls))
    return [_target(name, flags) for name in names]


def _target(name: str, flags: TargetFlags) -> Target:
    pid = _single_value("--pid", name, flags.pids)
    url = _single_value("--engine-url", name, flags.urls)
    first = finder.engine_of(_parse_pid(pid)) if pid is not None else None
    address = _parse_url(url) if url is not None else None
    return Target(
        name=name or (first.name if first else UNNAMED),
        named=bool(name),
        first=first,
        directories=tuple(_absolute(one) for one in flags.directories if one.name == name),
        url=address.base if address else None,
        page_url=address.page if address else None,
    )


def _absolute(directory: NamedValue) -> str:
    if not directory.value:
        raise _not_a_directory(directory.given)
    return str(Path(directory.value).absolute())


def check_directories(targets: Sequence[Target]) -> None:
    """Check that each path of `targets` that exists is a directory; may block.

    Raises:
        SettingsError: A path leads to another kind of file.
    """
    for target in targets:
        for text in target.directories:
            path = Path(text)
            try:
                wrong = path.exists() and not path.is_dir()
            except OSError:  # no permission: the check of the engine's files reports that
                continue
            if wrong:
                raise _not_a_directory(text)


def _not_a_directory(text: str) -> SettingsError:
    return SettingsError(f"--multiproc-dir {text}: must be a directory")


def _single_value(flag: str, name: str, values: Sequence[NamedValue]) -> NamedValue | None:
    found = [one for one in values if one.name == name]
    if len(found) > 1:
        raise SettingsError(
            f"{flag} {found[0].given} and {flag} {found[1].given}: give each engine a name of its "
            f"own, as in {flag} one={found[0].value} {flag} two={found[1].value}"
        )
    return found[0] if found else None


def _parse_pid(pid: NamedValue) -> int:
    text = pid.value
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(2**32)):
        raise SettingsError(f"--pid {pid.given}: must be the number of a process, or NAME=NUMBER")
    return int(text)


def _parse_url(url: NamedValue) -> _Address:
    text = url.value
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
            f"--engine-url {url.given}: must be a URL such as http://127.0.0.1:30000, "
            "or the whole URL of a metrics page"
        )
    if "@" in parts.netloc:  # /health and the log would show the password
        raise SettingsError(
            "--engine-url: a user and a password in the URL are not supported: use "
            "--engine-header-file"
        )
    base = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return _Address(base, f"{base}{path}{query}" if path else f"{base}/metrics{query}")
