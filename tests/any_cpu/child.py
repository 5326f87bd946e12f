"""Runs files with ONNX Runtime's defaults: `child.py FOLDER` writes NAME.out.npz for NAME.onnx.

It runs as a script, with nothing but NumPy and ONNX Runtime.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    """Run every file of a folder on the tensors of NAME.npz."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        with np.load(path.with_suffix(".npz")) as stored:
            outputs = session.run(None, dict(stored))
        names = [output.name for output in session.get_outputs()]
        arrays = dict(zip(names, outputs, strict=True))
        np.savez(path.with_suffix(".out.npz"), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
