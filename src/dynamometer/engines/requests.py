"""Read the members of a request's body that routing and metrics need, and add usage if needed.

The members are read from the top level of the body, by the engine's rules. To read another member,
add a field to `_Request` and to `RequestBody`, or to `_PairedRequest` if only requests to a prefill
and a decode worker need it. Only the engine validates the request; all other bytes are forwarded
unchanged.

A body may be large and hostile: msgspec checks JSON without creating objects for members that are
not read (3 to 10 ms for 16 MiB, at most 30 ms). In a form, only two short fields are searched.
"""

from __future__ import annotations

import email.parser
import email.policy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from operator import attrgetter
from typing import Final

import msgspec

from dynamometer.engines.json_members import set_member, set_members
from dynamometer.engines.kinds import PAIRING_MEMBERS
from dynamometer.runtime.record import Json

# The strings that pydantic, and so the engine, accepts as true ("Conversion Table", lax mode).
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_LONGEST_VALUE: Final = 65536
# The limit of Starlette's form parser.
_MOST_PARTS: Final = 1000
_LONGEST_FIELD: Final = 2048
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NULL: Final = msgspec.Raw(b"null")
TOO_DEEP: Final = "The request body is not valid JSON: it is nested too deeply"


class _Request(msgspec.Struct):
    model: msgspec.Raw = _NULL
    stream: msgspec.Raw = _NULL
    stream_options: msgspec.Raw = _NULL
    sampling_params: msgspec.Raw = _NULL
    custom_labels: msgspec.Raw = _NULL


# A request with the members that no client may set.
_FullRequest: Final = msgspec.defstruct(
    "_FullRequest", [(name, msgspec.Raw, _NULL) for name in PAIRING_MEMBERS], bases=(_Request,)
)
_pairing_members: Final = attrgetter(*PAIRING_MEMBERS)
_ALL_MISSING: Final = (_NULL,) * len(PAIRING_MEMBERS)


class _PairedRequest(msgspec.Struct):
    n: msgspec.Raw = _NULL
    best_of: msgspec.Raw = _NULL
    sampling_params: msgspec.Raw = _NULL
    background: msgspec.Raw = _NULL


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = _NULL


class _Sampling(msgspec.Struct):
    n: msgspec.Raw = _NULL
    beam_width: msgspec.Raw = _NULL


class _FirstSampling(msgspec.Struct, array_like=True):
    """The sampling parameters of each prompt; SGLang uses the first `n` for all prompts."""

    first: _Sampling


_decoder: Final[msgspec.json.Decoder[_Request]] = msgspec.json.Decoder(_FullRequest)


@lru_cache(maxsize=8)
def _paired_decoder(members: frozenset[str]) -> msgspec.json.Decoder[_PairedRequest]:
    fields = [(name, msgspec.Raw, _NULL) for name in members]
    return msgspec.json.Decoder(msgspec.defstruct("_Paired", fields, bases=(_PairedRequest,)))


class BadBodyError(Exception):
    """The body cannot be parsed; the message is for the client."""


@dataclass(kw_only=True, slots=True)
class RequestBody:
    """A request's body, with the members that were read.

    `set_model` replaces `content`, so that only one copy of a large body is kept.

    Attributes:
        content: the client's bytes, with the model of `set_model`.
        model: the requested model; None if the body does not name a model.
        stream: True if the client requests a stream.
        add_usage: True if the client requests a stream without its usage, so that the frontend must
            request the usage (`with_usage`) to know the token counts.
        samples: the number of answers to each prompt; above 1 only on SGLang's own route.
        custom_labels: True if the body sets labels of the engine's metrics, which SGLang's own
            route reads.
        refused: the name of a member that clients must not send; None without such a member.
        form: True if the content is a form, and not JSON.
    """

    content: bytes
    model: str | None = None
    stream: bool = False
    add_usage: bool = False
    samples: int = 1
    custom_labels: bool = False
    refused: str | None = None
    form: bool = False

    def remove_custom_labels(self) -> None:
        """Set no labels of the engine's metrics."""
        self.content = set_member(self.content, ("custom_labels",), b"null")
        self.custom_labels = False

    def set_model(self, name: str) -> None:
        """Request another model; a form stays unchanged."""
        if name != self.model and not self.form:
            self.content = set_member(self.content, ("model",), msgspec.json.encode(name))
            self.model = name

    def with_usage(self) -> bytes:
        """Return the content with `stream_options.include_usage` set to true."""
        return set_member(self.content, ("stream_options", "include_usage"), b"true")

    def set_members(self, members: Mapping[str, Json]) -> None:
        """Set members at the top level; the body is not a form."""
        encoded = {name: msgspec.json.encode(value) for name, value in members.items()}
        self.content = set_members(self.content, encoded)

    def without_stream(self, *, options: bool) -> bytes:
        """Return the content as a request for an answer that is not streamed.

        Args:
            options: remove `stream_options`, too: SGLang's Rust server accepts it only for streams.
        """
        if not self.stream:
            return self.content
        return set_members(
            self.content, {"stream": b"false"} | ({"stream_options": b"null"} if options else {})
        )

    def unsupported(self, members: frozenset[str]) -> tuple[str | None, str] | None:
        """Return why a prefill and a decode engine together do not support the request.

        SGLang gives all samples of a prompt the same room; its schedulers then hang or end.

        Args:
            members: see `PairingFields.rank_members`.

        Returns:
            The name of the member at fault, None for the whole body, and the reason; None if the
            request is supported.
        """
        if self.form:
            return None, "the body must be a JSON object"
        request = _paired_decoder(members).decode(self.content)
        counts = (("n", request.n), ("best_of", request.best_of))
        for name, value in (*counts, *_sample_counts(request.sampling_params)):
            if not _is_one(value):
                return name, f"{name} must be 1"
        for name in sorted(members):
            if bytes(getattr(request, name)) != b"null":
                return name, f"{name} must not be set"
        if _is_true(request.background):
            return "background", "background must be false"
        return None


def parse(content: bytes, content_type: str) -> RequestBody:
    """Parse a body: a JSON object, or a form with a file (audio transcription).

    Raises:
        BadBodyError: The body is neither; the message names the fault and its position.
    """
    if content_type.strip().lower().startswith("multipart/form-data"):
        return _parse_form(content, content_type)
    if not content.strip():
        raise BadBodyError("The request body is empty: it must be a JSON object")
    if content.startswith(_BYTE_ORDER_MARK):
        raise BadBodyError("The request body is not valid JSON: it begins with a byte order mark")
    try:
        request = _decoder.decode(content)
        model = _model(request.model)
        stream = _is_true(request.stream)
        add_usage = stream and _can_add_usage(request.stream_options)
    except msgspec.ValidationError:
        raise BadBodyError("The request body must be a JSON object") from None
    except RecursionError:
        raise BadBodyError(TOO_DEEP) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"The request body is not valid JSON: {error}") from None
    return RequestBody(
        content=content,
        model=model,
        stream=stream,
        add_usage=add_usage,
        samples=_samples(bytes(request.sampling_params)),
        custom_labels=bytes(request.custom_labels) != b"null",
        refused=None if _pairing_members(request) == _ALL_MISSING else _refused(request),
    )


def _refused(request: _Request) -> str | None:
    """Return the first member that is not null of those that no client may set."""
    given = zip(PAIRING_MEMBERS, _pairing_members(request), strict=True)
    return next((name for name, value in given if bytes(value) != b"null"), None)


def _model(value: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(value, type=str | None)
    except msgspec.ValidationError:
        raise BadBodyError("model must be a string") from None


def _scalar(value: msgspec.Raw) -> Json:
    """Return a value; an empty object for a long one, and for a number that no float can hold."""
    if len(bytes(value)) > _LONGEST_VALUE:
        return {}
    try:
        read: Json = msgspec.json.decode(value)
    except msgspec.ValidationError:
        return {}
    return read


def _is_true(value: msgspec.Raw) -> bool:
    read = _scalar(value)
    if isinstance(read, str):
        return read.lower() in _TRUE
    return read == 1 and isinstance(read, bool | int | float)


def _can_add_usage(options: msgspec.Raw) -> bool:
    """Return True for options that do not request usage yet, False for options of a wrong type."""
    try:
        read = msgspec.json.decode(options, type=_StreamOptions | None)
    except msgspec.ValidationError:
        return False
    return read is None or not _is_true(read.include_usage)


def _samples(parameters: bytes) -> int:
    """Return `n` of SGLang's `sampling_params`; 1 if it is missing or not a positive integer.

    SGLang counts a beam search as one request, whatever its `n` (GenerateReqInput of io_struct).
    """
    if parameters == b"null":
        return 1
    try:
        if parameters.startswith(b"["):
            sampling = msgspec.json.decode(parameters, type=_FirstSampling).first
        else:
            sampling = msgspec.json.decode(parameters, type=_Sampling)
        if (msgspec.json.decode(sampling.beam_width, type=int | None) or 1) > 1:
            return 1
        return max(1, msgspec.json.decode(sampling.n, type=int | None) or 1)
    except msgspec.ValidationError:
        return 1


def _sample_counts(parameters: msgspec.Raw) -> Iterator[tuple[str, msgspec.Raw]]:
    """Return `n` of SGLang's `sampling_params`, with its name: one for all prompts, or of each."""
    try:
        read = msgspec.json.decode(parameters, type=_Sampling | list[_Sampling] | None)
    except msgspec.ValidationError:  # SGLang refuses it
        return
    for sampling in read if isinstance(read, list) else [read] if read else []:
        yield "sampling_params.n", sampling.n


def _is_one(value: msgspec.Raw) -> bool:
    """Return whether a number of samples is missing, null or 1."""
    return _scalar(value) in (None, 1)


def _parse_form(content: bytes, content_type: str) -> RequestBody:
    """Parse `model` and `stream` of a form; of several fields with one name, the last is used."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace") if boundary else b""
    # The first delimiter may be the body's first line (RFC 2046, 5.1.1).
    place = -2 if delimiter and content.startswith(delimiter[2:]) else content.find(delimiter)
    if not delimiter or place == -1:
        raise BadBodyError(
            "The request body does not contain the boundary that its Content-Type names"
        )
    fields: dict[str, str] = {}
    for _ in range(_MOST_PARTS):
        begin = place + len(delimiter)
        place = content.find(delimiter, begin)
        if place < 0:
            break
        head_end = content.find(b"\r\n\r\n", begin, begin + _LONGEST_FIELD)
        if 0 <= head_end < place and place - head_end < _LONGEST_FIELD:
            name = _field_name(content[begin:head_end])
            if name in ("model", "stream"):
                fields[name] = content[head_end + 4 : place].decode("utf-8", "replace")
    stream = fields.get("stream", "").lower() in _TRUE
    return RequestBody(content=content, model=fields.get("model"), stream=stream, form=True)


def _field_name(head: bytes) -> str | None:
    """Return the name of a field from its part's header lines; None for a file."""
    parser = email.parser.BytesHeaderParser(policy=email.policy.compat32)
    part = parser.parsebytes(head.lstrip())
    if part.get_param("filename", header="content-disposition") is not None:
        return None
    name = part.get_param("name", header="content-disposition")
    return name if isinstance(name, str) else None
