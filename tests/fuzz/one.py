"""One target under atheris: `one.py TARGET CORPUS [libFuzzer's flags]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["dynamometer"]):
    import targets


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
