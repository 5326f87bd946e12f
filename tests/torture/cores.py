"""Run qconvert as if the machine had NUMBER cores, for Python and for ONNX Runtime.

python -P cores.py NUMBER ARGS...
"""

import os
import sys
from typing import Any

import onnxruntime

from qconvert.cli import run


def limit_cores(cores: int) -> None:
    """Report `cores` as the number of CPUs, and use it in sessions without a thread count."""
    os.cpu_count = lambda: cores
    os.sched_getaffinity = lambda pid: set(range(cores))
    opened = onnxruntime.InferenceSession.__init__

    def open_with(self: Any, model: Any, options: Any = None, *rest: Any, **more: Any) -> None:
        if options is not None and not options.intra_op_num_threads:
            options.intra_op_num_threads = cores
        opened(self, model, options, *rest, **more)

    onnxruntime.InferenceSession.__init__ = open_with


if __name__ == "__main__":
    limit_cores(int(sys.argv[1]))
    sys.argv = ["qconvert", *sys.argv[2:]]
    run()
