"""Parts of the queries for the runtime's families, and the pages that have them."""

from __future__ import annotations

from typing import Final

from dynamometer.names import build, name_prefix
from dynamometer.panels import Page

# Series of a process; of a model in it; of a data-parallel rank of the model's engine.
PROCESS: Final = 'instance=~"$instance"'
MODEL: Final = f'model=~"$model", {PROCESS}'
RANK: Final = f'{MODEL}, dp_rank=~"$rank"'

# Where prefill and decode are apart, the prefill worker has each request, too.
EXCEPT_PREFILL: Final = f'unless on (instance) {build.WORKER_INFO}{{mode="prefill"}}'

FRONTEND_PAGE: Final = frozenset({Page.FRONTEND})
WORKER_PAGE: Final = frozenset({Page.WORKER})
PROCESSES: Final = frozenset({Page.FRONTEND, Page.WORKER, Page.EXPORTER})


def frontend(name: str) -> str:
    """Return the full name of a family of the frontend, with its default prefix."""
    return f"{name_prefix.FRONTEND}_{name}"


def worker(name: str) -> str:
    """Return the full name of a family of a worker's endpoint."""
    return f"{name_prefix.COMPONENT}_{name}"


def plane(name: str) -> str:
    """Return the full name of a family of the requests from a frontend to workers."""
    return f"{name_prefix.REQUEST_PLANE}_{name}"
