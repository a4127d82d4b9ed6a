"""The recording rules and alerts that the package contains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from conftest import ROOT

FILES: Final = ROOT / "src" / "dynamometer" / "observability" / "files"
RULES: Final = sorted((FILES / "rules").glob("*.yml"))
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def rules() -> Sequence[dict[str, Any]]:
    return [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def scaled(text: str, *, divisor: int = 60) -> str:
    """Return the text of rules with every duration divided by `divisor`."""

    def divide(match: re.Match[str]) -> str:
        return f"{int(match[1]) * _SECONDS[match[2]] * 1000 // divisor}ms"

    return re.sub(r"(?<![\w.])(\d+)([smhd])\b", divide, text)
