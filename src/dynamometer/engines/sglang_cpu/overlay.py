"""How the CPU platform reaches an engine, whichever interpreter it runs on.

SGLang finds platforms by the metadata of installed packages. A directory in `PYTHONPATH` with
this package's own code (a link) and metadata that names the entry point is as good as an
installation, and where the package is installed as well, one distribution name counts once.
"""

from __future__ import annotations

import os
from pathlib import Path

import dynamometer
from dynamometer.engines import sglang_cpu


def switch_on(environment: dict[str, str], directory: Path) -> None:
    """Make `environment` one in which SGLang finds and uses the CPU platform.

    Args:
        environment: changed in place.
        directory: made, to be put in front of `PYTHONPATH`.
    """
    metadata = directory / f"dynamometer-{dynamometer.__version__}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: dynamometer\nVersion: {dynamometer.__version__}\n",
        encoding="utf-8",
    )
    (metadata / "entry_points.txt").write_text(
        f"[{sglang_cpu.ENTRY_POINT_GROUP}]\n"
        f"{sglang_cpu.ENTRY_POINT_NAME} = {sglang_cpu.ENTRY_POINT_VALUE}\n",
        encoding="utf-8",
    )
    (directory / "dynamometer").symlink_to(Path(dynamometer.__file__).resolve().parent)
    paths = [str(directory), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment[sglang_cpu.SWITCH] = "1"
