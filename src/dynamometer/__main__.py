"""`python -m dynamometer`: the same as `dyno`."""

from dynamometer.cli import main

if __name__ == "__main__":
    main()
