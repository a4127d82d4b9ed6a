"""`make fuzz`: atheris over files and texts, bounded by count and time.

Each target runs in a process of its own, starts with its corpus in this directory, and ends at its
bound or at the first input that fails; that input is kept as a file, and its path is printed. The
last line is the number of inputs executed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = (
    "multiprocess_file",
    "multiprocess_entries",
    "text_page",
    "openmetrics_page",
    "accept_header",
)
_DONE = re.compile(r"Done (\d+) (?:runs )?in|^#(\d+)\s", re.MULTILINE)
_LONGEST_INPUT = 2048
_FILES_IN = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="which; all")
    parser.add_argument("--runs", type=int, default=200_000, help="most inputs a target")
    parser.add_argument("--seconds", type=int, default=120, help="most seconds a target")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), help="for bad inputs"
    )
    options = parser.parse_args()
    total, failed = 0, []
    for target in options.targets:
        executed, ok = run(target, options.runs, options.seconds, options.findings)
        print(f"{target}: {executed} inputs{'' if ok else ', FAILED'}", flush=True)
        total += executed
        failed += [] if ok else [target]
    print(f"{total} inputs executed, {len(failed)} of {len(options.targets)} targets failed")
    return 1 if failed else 0


def run(target: str, runs: int, seconds: int, findings: Path) -> tuple[int, bool]:
    """Fuzz one target; return the number of inputs executed, and True if none failed."""
    place = _FILES_IN if _FILES_IN.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        corpus, scratch = Path(directory) / "corpus", Path(directory) / "scratch"
        scratch.mkdir()
        shutil.copytree(HERE / "corpus" / target, corpus)
        findings.mkdir(parents=True, exist_ok=True)
        found = subprocess.run(
            [
                sys.executable,
                str(HERE / "one.py"),
                target,
                str(corpus),
                f"-runs={runs}",
                f"-max_total_time={seconds}",
                f"-max_len={_LONGEST_INPUT}",
                "-timeout=20",
                f"-artifact_prefix={findings}/{target}-",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "FUZZ_SCRATCH": str(scratch)},
        )
    if found.returncode:
        print(found.stdout[-4000:])
    counts = [int(a or b) for a, b in _DONE.findall(found.stdout)]
    return max(counts, default=0), found.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
