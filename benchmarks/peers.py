"""Compare qconvert with other tools on the same machine in one run.

`make peers` runs all parts. A part that lacks its data set says so and is skipped.
"""

from benchmarks import (
    any_cpu,
    calibration,
    demo_tasks,
    detectors,
    dynamic,
    hard_nets,
    prepare,
    quantization,
)


def main() -> None:
    calibration.main()
    prepare.main()
    quantization.main()
    any_cpu.main()
    hard_nets.main()
    dynamic.main()
    demo_tasks.main()
    detectors.main()


if __name__ == "__main__":
    main()
