"""`python -m dynamometer.sglang`: a worker around SGLang."""

from dynamometer.cli import run

if __name__ == "__main__":
    run("sglang", program="python -m dynamometer.sglang")
