"""Compare qconvert with other tools on the same machine in one run; every figure is a ratio.

`make peers` runs all of it. A part that needs something missing here says so.
"""

from benchmarks import calibration, prepare


def main() -> None:
    calibration.main()
    prepare.main()


if __name__ == "__main__":
    main()
