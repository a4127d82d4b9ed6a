"""The exceptions for users.

Each message names the thing at fault (a file, a port, a flag, a value) and what to do.
`cli.run` prints the message as one line, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "ArgumentError",
    "DirectoryError",
    "DiscoveryError",
    "DrainError",
    "DynamometerError",
    "EngineError",
    "ExpositionError",
    "FrontendError",
    "ObserveError",
    "SettingsError",
]


class DynamometerError(Exception):
    """The base of all errors of this project that users see."""

    exit_code = 1


class SettingsError(DynamometerError):
    """A flag or an environment variable has a value that is not allowed."""

    exit_code = 2


class ArgumentError(DynamometerError, ValueError):
    """An argument of a call is not allowed; the message names it and the allowed values."""

    exit_code = 2


class AddressError(DynamometerError):
    """The process cannot listen on an address."""


class DirectoryError(DynamometerError):
    """A directory cannot be used: it is not writable, a link, or another user's."""


class DiscoveryError(DynamometerError):
    """The directory in which processes register themselves cannot be used."""


class DrainError(DynamometerError):
    """A worker cannot be taken out of traffic, or its requests have not finished in time."""


class EngineError(DynamometerError):
    """The engine did not start, or ended by itself; the message has the engine's own reason."""


class ExpositionError(DynamometerError):
    """A page cannot be parsed; the message names the fault."""


class FrontendError(DynamometerError):
    """A frontend of several processes cannot start one of them; the message has the reason."""


class ObserveError(DynamometerError):
    """Prometheus or Grafana is not installed, does not start, or ended."""
