"""Run qconvert under a clock that jumps.

    python -P clock.py STEP,STEP,... ARGS...

Each reading of the clock is off by the next STEP in seconds; after the last, the first comes again.
"""

import itertools
import sys
import time

from qconvert.cli import run

if __name__ == "__main__":
    steps = itertools.cycle([float(step) for step in sys.argv[1].split(",")])
    real = time.time
    time.time = lambda: real() + next(steps)
    sys.argv = ["qconvert", *sys.argv[2:]]
    run()
