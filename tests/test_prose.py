"""The prose of docs and source is plain technical English.

`BANNED` is the one list of wordings that the tests refuse, each with the better wording. Reviewers
look for plain words that are wrong only in some sentences ("less", "lose", "told").
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dynamometer"

# A regular expression, case-insensitive, and the better wording.
BANNED = {
    r"\b(?:is|are|was|were|be) no\b(?! (?:longer|more than))": "is not a, are not, does not",
    r"\bno more\b(?! (?:than|\w+ than))": "no longer",
    r"\banew\b": "again",
    r"\bwhoever\b": "the user, the caller, a reader: name the subject",
    r"\bwhomever\b": "the user, the caller, a reader: name the subject",
    r"\bthe peer\b": "NVIDIA Dynamo, or prometheus_client",
    r"\bpeer's\b": "NVIDIA Dynamo's, or prometheus_client's",
    r"\bhalf an? (?:character|gzip)\b": "unpaired surrogate; truncated gzip body",
    r"\bnot to be (?:had|seen|found)\b": "missing, unavailable, invisible",
    r"\bbur(?:y|ies|ied)\b": "reap",
    r"\bawaken\w*\b": "restart, read again",
    r"\bwelcomes?\b": "accept",
    r"\bpatience\b": "deadline, timeout",
    r"\ba row of\b": "a list of, a sequence of",
    r"\bsays? nothing\b": "does not report, is empty",
    r"\bwithout a word\b": "without a message",
    r"\bnone of (?:it|this machine's)\b": "not part of the value, not an address of this machine",
    r"\bnothing of\b": "no part of",
    r"\bkeeping on\b": "run until cancelled",
    r"\b(?:nobody|no one|somebody|someone)\b": "no process, a user, a thread: name the subject",
    r"\bwhat (?:it|they|there) (?:is|are|was|were|has|have|had|gives?|knows?)\b": "the NOUN",
    r"\bmakes? of (?:it|them|this)\b": "return for, parse as",
    r"\bhand(?:s|ed|ing)? out\b": "return, provide",
    r"\bgets? to know\b": "receive, read, detect",
    r"\bfor good\b": "permanently",
    r"\bfor ever\b": "forever, without a limit",
    r"\bfor want of\b": "without, because there is not enough",
    r"\b(?:is|are) to be\b": "must be, will be",
    r"\bless what\b": "except",
    r"\bto begin with\b": "at first",
    r"\baltogether\b": "in total",
    r"\bbegun\b": "started",
    r"\bin between\b": "meanwhile, between A and B",
    r"\bhalf (?:read|written)\b": "partly read, partly written",
    r"\b(?:come|comes|came|coming) back\b": "restart, reappear",
    r"\btell(?:s|ing)? (?:\w+ ){0,3}apart\b": "distinguish",
    r"\b(?:leave|leaves|leaving|left) (?:[\w'-]+ ){0,4}out\b": "omit, skip",
    r"\black(?:s|ed)\b": "do not have; missing",
    r"\bnamesakes?\b": "of the same name",
}
# The beginning of a docstring, case-sensitive, and the better beginning.
BANNED_BEGINNINGS = {
    r"What\b": "a verb (Return ...) or a noun phrase",
    r"Whether\b": "Return whether ..., or: True if ...",
    r"How\b": "Return the number of ..., or a noun phrase",
    r"Where\b": "a noun phrase that names the place",
    r"Who\b|Whose\b": "a noun phrase that names the thing",
    r"Which\b": "the processes that ..., the choice of ...",
    r"Why\b": "the reason for ...",
    r"When\b": "a noun phrase that names the time",
    r"Its?\b": "a noun phrase or a verb",
    r"Nothing\b": "delete a docstring that has no content",
    r"No \w+ is\b": "delete a docstring that has no content",
    r"None: ": "`Return None when ...`, only if the function returns None",
    r"That\b": "a noun phrase",
    r"(?:They|Them|Those|These|There|Their)\b": "a noun phrase",
    r"(?:As|By|From|Of|Until|With|Without|Less)\b": "a noun phrase or a verb",
    r"(?:If|So)\b": "a verb: Return ...",
}
ROOT_PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
# Generated pages contain the help texts of SGLang and of `src/`, which other checks cover.
GENERATED = ("metrics.md", "configuration.md")
# Other files with prose for users and developers.
OTHERS = [
    ROOT / "pyproject.toml",
    ROOT / "Makefile",
    ROOT / ".ci" / "run",
    *(path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()),
    *sorted(SOURCE.rglob("*.yml")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *(path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)),
]
DOCS = [
    *(ROOT / name for name in ROOT_PAGES),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in GENERATED),
    ROOT / "docs" / "families.toml",
    ROOT / "docs" / "generate.py",
]


def wordings(text: str) -> Iterator[str]:
    """Return each banned wording in a text, with the better wording."""
    joined = " ".join(text.split())
    for pattern, better in BANNED.items():
        for match in re.finditer(pattern, joined, re.IGNORECASE):
            around = joined[max(0, match.start() - 30) : match.end() + 30]
            yield f"...{around}...: write {better}"


def beginnings(docstring: str) -> Iterator[str]:
    """Return the banned beginning of a docstring, with the better beginning."""
    for pattern, better in BANNED_BEGINNINGS.items():
        if re.match(pattern, docstring):
            yield f"{docstring.splitlines()[0]!r}: write {better}"


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Return the docstrings of a module, its classes and functions."""
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and (found := ast.get_docstring(node)):
            yield found


def strings_and_comments(source: str) -> Iterator[str]:
    """Return the text of all strings, docstrings included, and of adjacent comment lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    comments: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and token.start[0] != last + 1:
                yield " ".join(comments)
                comments = []
            comments.append(token.string.lstrip("# "))
            last = token.start[0]
    yield " ".join(comments)


def faults(path: Path) -> list[str]:
    """Return the banned wordings and beginnings in a page or a module."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(wordings(source))
    found = [fault for text in strings_and_comments(source) for fault in wordings(text)]
    return found + [fault for text in docstrings(ast.parse(source)) for fault in beginnings(text)]


@pytest.mark.parametrize("path", [*DOCS, *OTHERS], ids=lambda path: path.name)
def test_docs_use_plain_wordings(path: Path) -> None:
    assert not faults(path)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_source_uses_plain_wordings(path: Path) -> None:
    assert not faults(path)


def test_banned_wordings_are_found() -> None:
    assert list(wordings("There are no\nfiles, and whoever asks the peer reads anew."))
    assert len(list(wordings("is no number; is no longer one"))) == 1
    assert list(beginnings("Whether it is ready."))
    assert not list(beginnings("Return whether the engine is ready."))
