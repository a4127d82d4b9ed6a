"""The check of a streamed answer: its framing, its tokens in their order, and its bytes.

The simulated engine numbers its tokens (` mock0`, ` mock1`), so that a lost, repeated or
reordered event is visible. The checksum covers all bytes that are the same in each answer.
"""

from __future__ import annotations

import re
import zlib

_WORD = re.compile(rb'" mock(\d+)"')
# The parts of an event that differ between two answers to the same request.
_OF_ONE_ANSWER = re.compile(rb'"(?:id|created)": ?(?:"[^"]*"|\d+)')
_SIZE = re.compile(rb"[0-9a-fA-F]+")
_DONE = b"data: [DONE]\n\n"


class AnswerError(Exception):
    """An answer is not as its engine sent it; the message names the fault."""


def fault_of(answer: bytes, tokens: int, checksum: int | None) -> str | None:
    """Return the fault of an answer with its head, and None for a correct one.

    Args:
        answer: all bytes that were received for one request.
        tokens: the number of tokens that were requested.
        checksum: the checksum of the body; None: check the tokens only.
    """
    try:
        body = body_of(answer)
        check_tokens(body, tokens)
    except AnswerError as error:
        return str(error)
    if checksum is not None and (found := checksum_of(body)) != checksum:
        return f"the bytes of the answer differ: checksum {found:08x}, not {checksum:08x}"
    return None


def body_of(answer: bytes) -> bytes:
    """Return the body of an answer with status 200 and chunked encoding.

    Raises:
        AnswerError: The answer has another form.
    """
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise AnswerError(f"the answer begins with {head[:100]!r}")
    if not re.search(rb"(?im)^transfer-encoding: *chunked\r?$", head):
        raise AnswerError("the answer is not chunked")
    parts, place = [], 0
    while True:
        line_end = rest.find(b"\r\n", place)
        size_text = rest[place:line_end] if line_end >= 0 else b""
        if not _SIZE.fullmatch(size_text):
            raise AnswerError(f"a chunk's size is {rest[place : place + 20]!r}")
        size = int(size_text, 16)
        begin, end = line_end + 2, line_end + 2 + size
        if rest[end : end + 2] != b"\r\n":
            raise AnswerError("a chunk is longer or shorter than its size")
        place = end + 2
        if not size:
            break
        parts.append(rest[begin:end])
    if place != len(rest):
        raise AnswerError(f"{len(rest) - place} bytes follow the end of the answer")
    return b"".join(parts)


def check_tokens(body: bytes, tokens: int) -> None:
    """Check the numbers of the tokens.

    Raises:
        AnswerError: Tokens are missing, repeated or not in order, or the last event is missing.
    """
    if not body.endswith(_DONE):
        raise AnswerError(f"the answer ends with {body[-100:]!r} instead of [DONE]")
    numbers = list(map(int, _WORD.findall(body)))
    if numbers != list(range(tokens)):
        wrong = next((i for i, n in enumerate(numbers) if i != n), len(numbers))
        raise AnswerError(
            f"{len(numbers)} tokens instead of {tokens}, correct only before token {wrong}"
        )


def checksum_of(body: bytes) -> int:
    """Return the checksum of all bytes except the ids and times of the answer."""
    return zlib.crc32(_OF_ONE_ANSWER.sub(b"", body))
