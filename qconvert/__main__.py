"""`python -m qconvert` is `qconvert`."""

from qconvert.cli import run

if __name__ == "__main__":
    run()
