"""Stand in for the package `tensorrt-cu13-libs`: importing it loads TensorRT's libraries."""

import ctypes
from pathlib import Path

for name in ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"):
    if (path := Path(__file__).parent / name).exists():
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
