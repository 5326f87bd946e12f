"""Every TensorRT option in use exists in ONNX Runtime's provider library."""

import itertools
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import qconvert.backends
from qconvert.backends.base import BuildSpec, Precision, Profile
from qconvert.backends.tensorrt import load_options, provider_options, read_options
from qconvert.core.tensors import TensorSpec

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

LIBRARY = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
KNOWN = Path(__file__).parents[1] / "backends" / "trt_options.txt"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
IMAGE = TensorSpec("image", np.dtype(np.float32), ("N", 3, 224, 224))


@pytest.fixture(scope="module")
def library() -> bytes:
    """Return the provider library from the GPU package of the installed release."""
    release = f"onnxruntime-gpu=={onnxruntime.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, release],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if process.returncode:
            pytest.skip(f"{release} cannot be had: {process.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(LIBRARY)


def used() -> set[str]:
    """Return every option that building or loading an engine can use."""
    names: set[str] = set()
    for precision, flags, flag in itertools.product(PRECISIONS, (False, True), (False, True)):
        switches = ("hardware-compatible", "weight-stripped", "cuda-graph", "allow-fallback")
        for switch in switches:
            options: dict[str, Any] = {"workspace": 1, "timing-cache": "t", switch: flag}
            spec = BuildSpec(precision, Profile(1, 8, 32), options=options)
            names |= set(provider_options(spec, Path("engine"), flags, [IMAGE]))
            names |= set(load_options(read_options(spec), Path("engine")))
    for source in Path(qconvert.backends.__file__).parent.glob("*.py"):
        names |= set(re.findall(r'"(trt_\w+)"', source.read_text(encoding="utf-8")))
    return names


def missing(names: set[str], library: bytes) -> list[str]:
    """Return the names that the library does not contain, not even as the end of another name."""
    return sorted(name for name in names if f"{name}\0".encode() not in library)


def test_provider_options_in_use_exist_in_the_library(library: bytes) -> None:
    names = used()
    assert len(names) > 20
    assert missing(names, library) == []
    assert missing({"trt_no_such_option"}, library) == ["trt_no_such_option"]


def test_stored_option_list_matches_the_library(library: bytes) -> None:
    lines = KNOWN.read_text(encoding="utf-8").splitlines()
    assert missing({line for line in lines if line and line[0] != "#"}, library) == []
