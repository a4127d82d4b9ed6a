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
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Final

import msgspec

from dynamometer.engines.json_members import set_member, set_members

# The strings that pydantic, and so the engine, accepts as true ("Conversion Table", lax mode).
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_LONGEST_VALUE: Final = 65536
# The limit of Starlette's form parser.
_MOST_PARTS: Final = 1000
_LONGEST_FIELD: Final = 2048
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NULL: Final = msgspec.Raw(b"null")

# Headers that replace members of the body, if SGLang has SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES
# (`_HEADER_OVERRIDES` of request_headers).
REMOVED_HEADERS: Final = frozenset(
    b"x-override-" + name
    for name in (
        b"rid",
        b"bootstrap-host",
        b"bootstrap-port",
        b"bootstrap-room",
        b"conversation-id",
        b"routed-dp-rank",
        b"disagg-prefill-dp-rank",
        b"priority",
    )
)
# SGLang chooses the data-parallel ranks of a pair: a prefill worker fails on another rank.
REMOVED_FROM_PAIRS: Final = frozenset({b"x-data-parallel-rank"})


class _Request(msgspec.Struct):
    model: msgspec.Raw = _NULL
    stream: msgspec.Raw = _NULL
    stream_options: msgspec.Raw = _NULL
    sampling_params: msgspec.Raw = _NULL
    custom_labels: msgspec.Raw = _NULL
    # The members that only a frontend may set: see `REFUSED`.
    bootstrap_host: msgspec.Raw = _NULL
    bootstrap_port: msgspec.Raw = _NULL
    bootstrap_room: msgspec.Raw = _NULL
    bootstrap_pair_key: msgspec.Raw = _NULL
    disagg_prefill_dp_rank: msgspec.Raw = _NULL
    decode_tp_size: msgspec.Raw = _NULL


# A request that joins the room of another one can end the engines of both.
REFUSED: Final = _Request.__struct_fields__[5:]


class _PairedRequest(msgspec.Struct):
    n: msgspec.Raw = _NULL
    best_of: msgspec.Raw = _NULL
    sampling_params: msgspec.Raw = _NULL
    routed_dp_rank: msgspec.Raw = _NULL
    data_parallel_rank: msgspec.Raw = _NULL
    background: msgspec.Raw = _NULL


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = _NULL


class _Sampling(msgspec.Struct):
    n: msgspec.Raw = _NULL
    beam_width: msgspec.Raw = _NULL


class _FirstSampling(msgspec.Struct, array_like=True):
    """The sampling parameters of each prompt; SGLang uses the first `n` for all prompts."""

    first: _Sampling


_decoder: Final = msgspec.json.Decoder(_Request)


class BadBodyError(Exception):
    """The body cannot be parsed; the message is for the client."""


@dataclass(kw_only=True)
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

    def join(self, bootstrap: str, room: int) -> None:
        """Let a prefill and a decode worker find each other.

        Args:
            bootstrap: the address of the prefill worker's bootstrap server; see `Record.bootstrap`.
            room: the number of the request; of a batch of N prompts, the first of N numbers.
        """
        host, _, port = bootstrap.rpartition(":")
        members = {
            "bootstrap_host": msgspec.json.encode(host),
            "bootstrap_port": port.encode(),
            "bootstrap_room": b"%d" % room,
        }
        self.content = set_members(self.content, members)

    def without_stream(self) -> bytes:
        """Return the content as a request for an answer that is not streamed."""
        return set_member(self.content, ("stream",), b"false") if self.stream else self.content

    def refused_in_pairs(self) -> tuple[str | None, str] | None:
        """Return why a prefill and a decode worker together do not support the request.

        SGLang gives all samples of a prompt the same room; its schedulers then hang or end.

        Returns:
            The name of the member at fault, None for the whole body, and the reason; None if the
            request is supported.
        """
        if self.form:
            return None, "the body must be a JSON object"
        request = msgspec.json.decode(self.content, type=_PairedRequest)
        counts = (("n", request.n), ("best_of", request.best_of))
        for name, value in (*counts, *_sample_counts(request.sampling_params)):
            if not _is_one(value):
                return name, f"{name} must be 1"
        for name, value in (
            ("routed_dp_rank", request.routed_dp_rank),
            ("data_parallel_rank", request.data_parallel_rank),
        ):
            if bytes(value) != b"null":
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
        raise BadBodyError("The request body is not valid JSON: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"The request body is not valid JSON: {error}") from None
    return RequestBody(
        content=content,
        model=model,
        stream=stream,
        add_usage=add_usage,
        samples=_samples(bytes(request.sampling_params)),
        custom_labels=bytes(request.custom_labels) != b"null",
        refused=_refused(request),
    )


def _refused(request: _Request) -> str | None:
    """Return the name of a member of `REFUSED` that is not null; None if all are."""
    if (
        request.bootstrap_host
        is request.bootstrap_port
        is request.bootstrap_room
        is request.bootstrap_pair_key
        is request.disagg_prefill_dp_rank
        is request.decode_tp_size
    ):  # all are missing
        return None
    return next((name for name in REFUSED if bytes(getattr(request, name)) != b"null"), None)


def _model(value: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(value, type=str | None)
    except msgspec.ValidationError:
        raise BadBodyError("model must be a string") from None


def _is_true(value: msgspec.Raw) -> bool:
    text = bytes(value)
    if len(text) > _LONGEST_VALUE:
        return False
    read = msgspec.json.decode(text)
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
    return len(bytes(value)) <= _LONGEST_VALUE and msgspec.json.decode(value) in (None, 1)


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
