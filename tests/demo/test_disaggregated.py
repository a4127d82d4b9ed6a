"""`make demo-disagg`, as a new user runs it, without a terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]


def test_the_demo_shows_both_sides_and_leaves_no_process(tmp_path: Path) -> None:
    # A make that runs below another one, as in CI, prints the directory that it enters.
    make = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile")]
    make += ["-o", "setup", f"VENV={sys.prefix}"]
    done = subprocess.run(
        [*make, "demo-disagg"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, prefill, decode, after = re.split(
        r"^==> a part of .*:$", done.stdout, flags=re.MULTILINE
    )
    assert "ready after" in before
    assert "usage: " in before
    for mode in ("prefill", "decode"):
        variables = rf"DYN_FILE_KV={tmp_path}/\S+ DYN_SYSTEM_PORT=\d+ HF_HUB_OFFLINE=1"
        assert re.search(rf"\$ {variables} dyno sglang .*--disaggregation-mode {mode} ", before)
    assert "engine_type prefill" in prefill
    assert "engine_type decode" in decode
    for name in ("latency_ms", "total_mb", "speed_gb_s", "bootstrap_ms", "alloc_ms"):
        assert re.search(rf"sglang:kv_transfer_{name} +mean \S+ of [1-9]", prefill), name
    for queue in ("prefill_bootstrap", "prefill_inflight"):
        assert re.search(rf"sglang:num_{queue}_queue_reqs +\d", prefill), queue
    assert "sglang:num_decode_" not in prefill
    assert "sglang:num_prefill_" not in decode
    assert 'dynamometer_worker_info{mode="prefill"} 1' in prefill
    assert 'dynamometer_worker_info{mode="decode"} 1' in decode
    for mode in ("prefill", "decode"):
        assert f'dynamometer_frontend_workers{{mode="{mode}",state="ready"}} 1' in after
    for queue in ("decode_prealloc", "decode_transfer"):
        assert re.search(rf"sglang:num_{queue}_queue_reqs +\d", decode), queue
    assert re.search(r"dynamo_frontend_requests_total +9$", after, re.MULTILINE)
    assert done.stdout.splitlines()[-2].startswith("==> next, beside a frontend and workers")
    assert started_below(tmp_path) == []


def started_below(directory: Path) -> list[psutil.Process]:
    """Return the processes whose discovery is in a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
        except psutil.Error:
            continue
        if variables.get("DYN_FILE_KV", "").startswith(str(directory)):
            found.append(process)
    return found
