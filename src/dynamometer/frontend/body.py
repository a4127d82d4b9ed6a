"""A request's body: what the frontend reads of it, and the one thing that it adds.

What a request means is the engine's business. The frontend reads `model`, `stream`,
`stream_options` and SGLang's `sampling_params.n`, and forwards the same bytes; where a stream's
tokens could not be counted otherwise, `stream_options.include_usage` is set by a splice that leaves
all other bytes alone.

A body may be large and hostile, and is read on the event loop: JSON is checked by msgspec, which
makes no object of what nobody asked for (64 MiB of empty lists: 0.2 s), and a form is searched
for a few short fields.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Final

import msgspec

# As pydantic reads them, and so the engine (docs: "Conversion Table", bool in lax mode).
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_LONGEST_VALUE: Final = 65536
_MOST_PARTS: Final = 64
_LONGEST_PART_HEADER: Final = 2048
_BOUNDARY: Final = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
_FIELD: Final = re.compile(rb'\bname="?(model|stream)"?(?:;|\r|$)')
_NULL: Final = msgspec.Raw(b"null")


class _Request(msgspec.Struct):
    model: msgspec.Raw = _NULL
    stream: msgspec.Raw = _NULL
    stream_options: msgspec.Raw = _NULL
    sampling_params: msgspec.Raw = _NULL


class _Sampling(msgspec.Struct):
    n: msgspec.Raw = _NULL
    beam_width: msgspec.Raw = _NULL


class _FirstSampling(msgspec.Struct, array_like=True):
    """Of a list, one for each prompt; SGLang takes `n` of the first for all."""

    first: _Sampling


_decoder: Final = msgspec.json.Decoder(_Request)


class BadBodyError(Exception):
    """The body cannot be understood; the message is for the client."""


class TooLargeError(Exception):
    """The body is longer than allowed, once decompressed."""


@dataclass(frozen=True, kw_only=True)
class RequestBody:
    """What the frontend knows of a body; `model` is None where it names none.

    `add_usage`: its stream would not say how many tokens it took, and can be asked to. `samples`:
    how many answers to each prompt SGLang's own route is to give.
    """

    content: bytes
    model: str | None = None
    stream: bool = False
    add_usage: bool = False
    stream_options: bytes = b"null"
    samples: int = 1

    def with_usage(self) -> bytes:
        """The body with `stream_options.include_usage` set to true."""
        if self.stream_options != b"null":
            options = msgspec.json.decode(self.stream_options) | {"include_usage": True}
            fresh = msgspec.json.encode(options)
        else:
            fresh = b'{"include_usage":true}'
        member = rb'("stream_options"\s*:\s*)' + re.escape(self.stream_options)
        spliced, count = re.subn(member, lambda match: match[1] + fresh, self.content)
        if count == 1:
            return spliced
        # Not there, or its place is in doubt: of a name given twice the last one counts.
        closing = self.content.rindex(b"}")
        empty = self.content[:closing].rstrip().endswith(b"{")
        option = (b"" if empty else b",") + b'"stream_options":' + fresh
        return self.content[:closing] + option + self.content[closing:]


def parse(content: bytes, content_type: str) -> RequestBody:
    """Read a body: a JSON object, or a form with a file (audio transcription).

    Raises:
        BadBodyError: it is neither; says what is wrong, and where.
    """
    if content_type.lower().startswith("multipart/form-data"):
        return _parse_form(content, content_type)
    if not content.strip():
        raise BadBodyError("The request body is empty: it must be a JSON object")
    try:
        request = _decoder.decode(content)
        model = _model(request.model)
        stream = _is_true(request.stream)
        options = bytes(request.stream_options)
    except msgspec.ValidationError:
        raise BadBodyError("The request body must be a JSON object") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadBodyError(f"The request body is no JSON that can be read: {error}") from None
    return RequestBody(
        content=content,
        model=model,
        stream=stream,
        add_usage=stream and _lacks_usage(options),
        stream_options=options,
        samples=_samples(bytes(request.sampling_params)),
    )


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


def _lacks_usage(options: bytes) -> bool:
    """Whether usage can be asked for; what is no object is the engine's to refuse."""
    if options == b"null":
        return True
    if len(options) > _LONGEST_VALUE:
        return False
    try:
        read = msgspec.json.decode(options, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return False
    return not _is_true(read.get("include_usage", _NULL))


def _samples(parameters: bytes) -> int:
    """`n` of SGLang's `sampling_params`; 1 where it is not said, or not so.

    A search by beams is one request to it, whatever its `n` (GenerateReqInput, of its io_struct).
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


def _parse_form(content: bytes, content_type: str) -> RequestBody:
    """`model` and `stream` of a form; its parts, files among them, go on as they are."""
    boundary = _BOUNDARY.search(content_type)
    delimiter = b"--" + boundary[1].strip().encode("latin-1", "replace") if boundary else b""
    if not delimiter or delimiter not in content:
        raise BadBodyError("The request body is no form with the boundary that its header names")
    fields: dict[bytes, str] = {}
    begin = content.find(delimiter)
    for _ in range(_MOST_PARTS):
        end = content.find(delimiter, begin + len(delimiter))
        if end < 0:
            break
        header_end = content.find(b"\r\n\r\n", begin, begin + _LONGEST_PART_HEADER)
        field = _FIELD.search(content, begin, header_end) if header_end > 0 else None
        if field and end - header_end < _LONGEST_PART_HEADER:
            value = content[header_end + 4 : end].removesuffix(b"\r\n")
            fields[field[1]] = value.decode("utf-8", "replace")
        begin = end
    stream = fields.get(b"stream", "").lower() in _TRUE
    return RequestBody(content=content, model=fields.get(b"model"), stream=stream)


def decompressed(content: bytes, encoding: str, *, limit: int) -> bytes:
    """A body as it was before its `Content-Encoding`.

    Args:
        content: as it came.
        encoding: `gzip`, `deflate` or `identity`.
        limit: the most bytes that there may be; not more than that is decompressed.

    Raises:
        BadBodyError: it is not what its encoding says, or that is another one.
        TooLargeError: it is longer than `limit`.
    """
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(encoding)
    if encoding == "identity":
        return content
    if bits is None:
        raise BadBodyError(f"Content-Encoding {encoding[:40]!r} is not supported: gzip is")
    decoder = zlib.decompressobj(bits)
    try:
        plain = decoder.decompress(content, limit + 1)
    except zlib.error:
        raise BadBodyError(f"The request body is no {encoding}, as its header says") from None
    if len(plain) > limit:
        raise TooLargeError
    if not decoder.eof:
        raise BadBodyError(f"The request body is half a {encoding}")
    return plain
