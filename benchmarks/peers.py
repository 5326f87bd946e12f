"""Compare qconvert with other tools on the same machine in one run; every figure is a ratio.

`make peers` runs all of it. A part that needs something missing here says so.
"""

from benchmarks import calibration, hard_nets, prepare, quantization


def main() -> None:
    calibration.main()
    prepare.main()
    quantization.main()
    hard_nets.main()


if __name__ == "__main__":
    main()
