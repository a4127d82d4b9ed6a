"""SGLang's `--config FILE`: flags in a YAML file, which the command line overrides.

The file goes to SGLang untouched; it is read here as well, because the worker must know a few of
the flags that may stand in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_LARGEST_BYTES: Final = 1 << 20


def with_file(arguments: Sequence[str], directory: Path | None = None) -> list[str]:
    """The words of the file that `--config` names, then `arguments`: as SGLang reads them.

    A file that cannot be read adds nothing: SGLang says what is wrong with it.

    Args:
        arguments: the flags.
        directory: where SGLang runs; None: here.
    """
    words = list(arguments)
    if "--config" not in words[:-1]:
        return words
    import yaml  # a megabyte, and few need it

    path = (directory or Path()) / words[words.index("--config") + 1]
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            return words  # a pipe would be waited for
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return words
    if not isinstance(content, dict):
        return words
    return [word for key, value in content.items() for word in _flag(str(key), value)] + words


def _flag(key: str, value: object) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *(str(item) for item in value)] if value else []
    return [flag, str(value)]
