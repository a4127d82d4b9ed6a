"""The real engine for `make bench-serving`, measured with SGLang's own `bench_serving`.

SGLang serves a tiny model on the processor, behind Dynamometer's worker and frontend. The rounds
alternate between the engine's own port and the frontend.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from serving_paths import DIRECT, OURS, ServingPath, frontend, sglang_fleet
from serving_report import Results
from starting import say

from dynamometer.engines.sglang_cpu import SWITCH

STREAMS, REQUESTS, PROMPT_TOKENS, TOKENS = 8, 400, 32, 64
_ENDS_WITHIN: Final = 300
# bench_serving imports the package `datasets` (with pyarrow and pandas, 200 MB) for data that this
# benchmark does not use.
_DATASETS: Final = "def load_dataset(*_: object) -> None:\n    raise NotImplementedError\n"
_FIGURES: Final = {
    "requests/s": ("request_throughput", 1),
    "TTFT p50, ms": ("median_ttft_ms", 1),
    "TTFT p99, ms": ("p99_ttft_ms", 1),
    "ITL p50, ms": ("median_itl_ms", 2),
    "ITL p99, ms": ("p99_itl_ms", 2),
}


def real(place: Path, results: Results, *, rounds: int) -> None:
    """Measure the engine directly and behind the frontend, and add the rows to `results`."""
    place.mkdir(parents=True, exist_ok=True)
    # Two threads of torch wait for each other in every step: on two cores, any other process that
    # runs slows the engine down by a factor of five.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = place / "tiny"
    say("creating a tiny model, and starting SGLang (about 20 s)")
    command = [sys.executable, "-m", "dynamometer", "tiny-model", str(model)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (
        sglang_fleet(place, model) as engines,
        frontend(engines, processes=1, model=str(model)) as ours,
    ):
        found: dict[str, list[Mapping[str, float]]] = {DIRECT: [], OURS: []}
        say("one round that does not count (about 20 s)")
        _measure(engines.direct(), model, place / "warm.jsonl")
        for number in range(rounds):
            for path in (engines.direct(), ours):
                say(f"round {number + 1}, {path.name}: {REQUESTS} requests (about 20 s)")
                one = _measure(path, model, place / f"{path.name}-{number}.jsonl")
                found[path.name].append(one)
                wanted = REQUESTS * TOKENS
                if one["completed"] != REQUESTS or one["total_output_tokens"] != wanted:
                    results.faults.append(
                        f"bench_serving, {path.name}: {one['completed']:.0f} of {REQUESTS} answers "
                        f"and {one['total_output_tokens']:.0f} of {wanted} tokens"
                    )
    results.real.append(["path", *_FIGURES])
    for name, each in found.items():
        figures = [
            f"{statistics.median(one[key] for one in each):,.{digits}f}"
            for key, digits in _FIGURES.values()
        ]
        results.real.append([name, *figures])


def _measure(path: ServingPath, model: Path, output: Path) -> Mapping[str, float]:
    modules = output.parent / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "datasets.py").write_text(_DATASETS, encoding="utf-8")
    paths = [str(modules), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang-oai"]
    command += ["--base-url", f"http://127.0.0.1:{path.ports[0]}", "--model", str(model)]
    command += ["--tokenizer", str(model), "--dataset-name", "random-ids", "--disable-tqdm"]
    command += ["--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(TOKENS)]
    command += ["--random-range-ratio", "1", "--num-prompts", str(REQUESTS)]
    command += ["--max-concurrency", str(STREAMS), "--output-file", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_ENDS_WITHIN,
        env=os.environ | {SWITCH: "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    if done.returncode or not output.exists():
        sys.exit(f"bench_serving failed on {path.name}:\n{(done.stdout + done.stderr)[-3000:]}")
    read = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    return {key: value for key, value in read.items() if isinstance(value, int | float)}
