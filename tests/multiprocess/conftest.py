from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from writer import Writer


@pytest.fixture(scope="session")
def writer() -> Iterator[Writer]:
    """Forks processes that write with prometheus_client."""
    found = Writer()
    yield found
    found.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory."""
    found = tmp_path / "metrics"
    found.mkdir()
    return found
