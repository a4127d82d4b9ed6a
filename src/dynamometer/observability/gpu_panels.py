"""The dashboard of NVIDIA GPUs: dcgm-exporter's families, for the GPUs of each worker's machine.

Both sides name a GPU by its UUID: dcgm-exporter in the label `UUID`, a worker in the label `uuid`
of `dynamometer_accelerator_info`. A worker shows all GPUs of its machine, whichever its engine
uses.
"""

from __future__ import annotations

from typing import Final

from dynamometer.names import build
from dynamometer.panels import Dashboard, Mode, Page, Panel, Query, Row, Unit, Variable, rate

_LEGEND: Final = "{{instance}} GPU {{index}}"
_ALL: Final = 'UUID!=""'


def _of_workers(expr: str) -> str:
    """Return the values of GPUs, with the worker's instance and the number of the GPU."""
    return (
        f'{build.ACCELERATOR_INFO}{{instance=~"$instance"}} * on (uuid) group_left () '
        f'max by (uuid) (label_join({expr}, "uuid", "", "UUID"))'
    )


def _panel(
    title: str, unit: Unit, expr: str, description: str, *, bad_from: float | None = None
) -> Panel:
    return Panel(
        title=title,
        unit=unit,
        queries=[Query(_of_workers(expr), _LEGEND)],
        description=description,
        pages=frozenset({Page.WORKER, Page.DCGM}),
        needs=Mode.GPU,
        bad_from=bad_from,
    )


_WORK: Final = Row(
    "Work",
    [
        _panel(
            "Utilization",
            Unit.PERCENT,
            f"DCGM_FI_DEV_GPU_UTIL{{{_ALL}}}",
            "Is each GPU at work? It is the share of time in which any kernel ran, not the share "
            "of the GPU in use. Low under load: the engine waits for its CPU.",
        ),
        _panel(
            "Memory bandwidth in use",
            Unit.PERCENT,
            f"DCGM_FI_DEV_MEM_COPY_UTIL{{{_ALL}}}",
            "Is memory the limit? Decoding reads all weights for each step: high here with a low "
            "number of running requests means that larger batches cost little.",
        ),
        _panel(
            "Memory in use",
            Unit.MEBIBYTES,
            f"DCGM_FI_DEV_FB_USED{{{_ALL}}}",
            "Does another process use the GPU? An engine takes its memory at the start and keeps "
            "it; a later change is a restart, or another process.",
        ),
        _panel(
            "Free memory",
            Unit.MEBIBYTES,
            f"DCGM_FI_DEV_FB_FREE{{{_ALL}}}",
            "Is there room for activations? Below about a gigabyte, long prompts can end in an "
            "out-of-memory error: lower --mem-fraction-static.",
        ),
    ],
)

_HEALTH: Final = Row(
    "Health",
    [
        _panel(
            "Power",
            Unit.WATTS,
            f"DCGM_FI_DEV_POWER_USAGE{{{_ALL}}}",
            "What does a GPU draw? At its limit, it lowers its clock: compare with the clock.",
        ),
        _panel(
            "Temperature",
            Unit.CELSIUS,
            f"DCGM_FI_DEV_GPU_TEMP{{{_ALL}}}",
            "Is the cooling sufficient? From about 85 °C on, a GPU lowers its clock.",
            bad_from=85,
        ),
        _panel(
            "Clock",
            Unit.MEGAHERTZ,
            f"DCGM_FI_DEV_SM_CLOCK{{{_ALL}}}",
            "Does a GPU slow down under load? One with a lower clock than its neighbours delays "
            "all ranks of tensor parallelism.",
        ),
        _panel(
            "Last XID error",
            Unit.NUMBER,
            f"DCGM_FI_DEV_XID_ERRORS{{{_ALL}}}",
            "Has the driver reported a fault? 0: none. Any other value is its code in NVIDIA's "
            "list; 48, 79 and 94 are faults of the hardware.",
            bad_from=1,
        ),
        _panel(
            "PCIe retries per second",
            Unit.PER_SECOND,
            rate("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", _ALL),
            "Is the connection to the machine faulty? Any steady rate is a bad slot, riser or "
            "cable, and slows down transfers.",
        ),
        _panel(
            "Failed row remapping",
            Unit.NUMBER,
            f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{_ALL}}}",
            "Is the memory of a GPU worn? 1: faulty rows could not be replaced; exchange the GPU.",
            bad_from=1,
        ),
    ],
)

GPU: Final = Dashboard(
    uid="dynamometer-gpu",
    title="GPU",
    description="dcgm-exporter's families for the GPUs of each worker's machine, joined by UUID. "
    "It needs dcgm-exporter among Prometheus' targets.",
    variables=[Variable("instance", "Instance", build.ACCELERATOR_INFO, "instance")],
    rows=[_WORK, _HEALTH],
    needs=Mode.GPU,
)
