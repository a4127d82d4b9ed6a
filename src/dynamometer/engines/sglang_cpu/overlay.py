"""Install the CPU platform for an engine on any interpreter, by `PYTHONPATH`.

SGLang finds platforms in the metadata of installed packages. A directory in `PYTHONPATH` with a
link to this package and with metadata that names the entry point works like an installation. If
the package is installed as well, Python uses one of the two, because their names are equal.
"""

from __future__ import annotations

import os
from pathlib import Path

import dynamometer
from dynamometer.engines import sglang_cpu


def enable(environment: dict[str, str], directory: Path) -> None:
    """Change `environment` so that SGLang finds and uses the CPU platform.

    Args:
        environment: the engine's environment, changed in place.
        directory: the directory to create, and to put in front of `PYTHONPATH`.
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
