"""A frontend, a prefill worker and a decode worker, for all tests of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from disagg.pair import FLAGS, LIMITS, REQUESTS, Pair, send
from stack import Answer, Stack


@pytest.fixture(scope="package")
def aggregated_answers(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Answer]:
    """Return the answers of one engine that computes both phases; the engine has ended."""
    directory = tmp_path_factory.mktemp("aggregated")
    stack = Stack(directory, tiny_model, directory / "discovery")
    with (
        stack.run_frontend() as (_, url),
        stack.run_worker("--model", str(tiny_model), *FLAGS) as worker,
    ):
        worker.wait_until_ready()
        return {name: send(url, request) for name, request in REQUESTS.items()}


@pytest.fixture(scope="package")
def pair(
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    aggregated_answers: Mapping[str, Answer],  # its engine must not run beside these two
) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    stack = Stack(directory, tiny_model, directory / "discovery", LIMITS)
    flags = ("--model", str(tiny_model), *FLAGS)
    with (
        stack.run_frontend() as (frontend, url),
        stack.run_worker(*flags, "--disaggregation-mode", "prefill") as prefill,
        stack.run_worker(*flags, "--disaggregation-mode", "decode") as decode,
    ):
        prefill.wait_until_ready()
        decode.wait_until_ready()
        yield Pair(frontend, url, prefill, decode)
