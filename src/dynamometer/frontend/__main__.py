"""The entry point of `python -m dynamometer.frontend`."""

from dynamometer.cli import run

if __name__ == "__main__":
    run("frontend", program="python -m dynamometer.frontend")
