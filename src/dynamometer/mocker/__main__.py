"""`python -m dynamometer.mocker`."""

from dynamometer.cli import run

if __name__ == "__main__":
    run("mocker", program="python -m dynamometer.mocker")
