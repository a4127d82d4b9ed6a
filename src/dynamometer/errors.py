"""The exceptions a user can meet.

Each message names the thing at fault (a file, a port, a flag, a value) and what to do.
`cli.run` prints it as one line and ends with the error's exit code; no traceback.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "ArgumentError",
    "DirectoryError",
    "DiscoveryError",
    "DynamometerError",
    "EngineError",
    "ExpositionError",
    "SettingsError",
]


class DynamometerError(Exception):
    """The base of all errors of this project that a user can meet."""

    exit_code = 1


class SettingsError(DynamometerError):
    """A flag or an environment variable has a value that is not allowed."""

    exit_code = 2


class ArgumentError(DynamometerError, ValueError):
    """An argument of a call is not allowed; the message names it, and what is allowed."""

    exit_code = 2


class AddressError(DynamometerError):
    """An address cannot be listened on."""


class DirectoryError(DynamometerError):
    """A directory of ours cannot be used: not writable, another user's, or a link."""


class DiscoveryError(DynamometerError):
    """The place where instances are registered cannot be used."""


class EngineError(DynamometerError):
    """The engine did not start, or ended by itself; the message is its own reason."""


class ExpositionError(DynamometerError):
    """A page cannot be used; the message says why."""
