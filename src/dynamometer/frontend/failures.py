"""The table of failures: the labels under which failed requests are counted.

The values of classes and reasons are values of NVIDIA Dynamo. Each failed request is counted once,
under the last error that its client received. If the client closes the connection before it
received an error, the request is counted as cancelled and not as failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dynamometer.names import error_type, failure_class, failure_reason


@dataclass(frozen=True)
class Failure:
    """One kind of failure.

    Attributes:
        kind: the value of the label `class` of the family of failures.
        reason: the value of the label `reason` of the family of failures.
        error: the value of the label `error_type` of the family of finished requests.
    """

    kind: str
    reason: str
    error: str


# The body cannot be parsed.
UNREADABLE: Final = Failure(
    failure_class.INVALID_REQUEST, failure_reason.INVALID, error_type.VALIDATION
)
# The frontend or the engine refuses the content of the request.
REFUSED: Final = Failure(
    failure_class.INVALID_REQUEST, failure_reason.INVALID_ARGUMENT, error_type.VALIDATION
)
UNAUTHENTICATED: Final = Failure(
    failure_class.UNAUTHENTICATED, failure_reason.UNAUTHENTICATED, error_type.VALIDATION
)
FORBIDDEN: Final = Failure(
    failure_class.PERMISSION_DENIED, failure_reason.PERMISSION_DENIED, error_type.VALIDATION
)
NOT_FOUND: Final = Failure(failure_class.NOT_FOUND, failure_reason.NOT_FOUND, error_type.NOT_FOUND)
TOO_LARGE: Final = Failure(
    failure_class.PAYLOAD_TOO_LARGE, failure_reason.PAYLOAD_TOO_LARGE, error_type.VALIDATION
)
UNSUPPORTED_MEDIA: Final = Failure(
    failure_class.UNSUPPORTED_MEDIA, failure_reason.UNSUPPORTED_MEDIA, error_type.VALIDATION
)
RATE_LIMITED: Final = Failure(
    failure_class.RATE_LIMITED, failure_reason.RATE_LIMITED, error_type.OVERLOAD
)
# The engine accepts no request now, because its queue is full.
OVERLOADED: Final = Failure(
    failure_class.CAPACITY_EXHAUSTED, failure_reason.EXHAUSTED, error_type.OVERLOAD
)
# No worker is ready, or this frontend is ending.
NO_WORKER: Final = Failure(
    failure_class.UNAVAILABLE, failure_reason.WORKER_UNAVAILABLE, error_type.UNAVAILABLE
)
# No worker accepted a connection.
NOT_REACHED: Final = Failure(
    failure_class.UNAVAILABLE, failure_reason.CANNOT_CONNECT, error_type.UNAVAILABLE
)
# The connection to the worker broke, or the worker left discovery, before the response.
WORKER_LOST: Final = Failure(
    failure_class.UNAVAILABLE, failure_reason.DISCONNECTED, error_type.UNAVAILABLE
)
# The worker reports that its engine ended before the response. With prefill and decode apart, also:
# that its engine is not ready.
ENGINE_DIED: Final = Failure(
    failure_class.UNAVAILABLE, failure_reason.ENGINE_SHUTDOWN, error_type.UNAVAILABLE
)
# The connection to the worker broke during the response, or the worker reported during the response
# that its engine ended.
BROKEN_OFF: Final = Failure(
    failure_class.UNAVAILABLE, failure_reason.STREAM_INCOMPLETE, error_type.UNAVAILABLE
)
# The engine reports a fault of its own.
ENGINE_FAULT: Final = Failure(failure_class.INTERNAL, failure_reason.UNKNOWN, error_type.INTERNAL)
NOT_IMPLEMENTED: Final = Failure(
    failure_class.NOT_IMPLEMENTED, failure_reason.NOT_IMPLEMENTED, error_type.NOT_IMPLEMENTED
)
# A fault of this frontend.
INTERNAL: Final = Failure(failure_class.INTERNAL, failure_reason.INTERNAL, error_type.INTERNAL)

ALL: Final = (
    UNREADABLE,
    REFUSED,
    UNAUTHENTICATED,
    FORBIDDEN,
    NOT_FOUND,
    TOO_LARGE,
    UNSUPPORTED_MEDIA,
    RATE_LIMITED,
    OVERLOADED,
    NO_WORKER,
    NOT_REACHED,
    WORKER_LOST,
    ENGINE_DIED,
    BROKEN_OFF,
    ENGINE_FAULT,
    NOT_IMPLEMENTED,
    INTERNAL,
)
# Failures that are caused by full queues.
REJECTIONS: Final = frozenset({OVERLOADED})
_BY_STATUS: Final = {
    401: UNAUTHENTICATED,
    403: FORBIDDEN,
    404: NOT_FOUND,
    413: TOO_LARGE,
    415: UNSUPPORTED_MEDIA,
    429: RATE_LIMITED,
    501: NOT_IMPLEMENTED,
    502: ENGINE_DIED,
    503: OVERLOADED,
    529: OVERLOADED,
}
_CLIENT_CLOSED_REQUEST: Final = 499


def of_answer(status: int) -> Failure | None:
    """Return the failure for an error that an engine reports.

    Args:
        status: the HTTP status, or the code of an error in a stream.

    Returns:
        The failure; None if the engine reports that the request was cancelled.
    """
    if status == _CLIENT_CLOSED_REQUEST:
        return None
    return _BY_STATUS.get(status, ENGINE_FAULT if status >= 500 else REFUSED)
