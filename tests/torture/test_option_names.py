"""Every TensorRT option in use exists in ONNX Runtime's provider library."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnxruntime
import pytest

from tests.backends.test_tensorrt import used_options

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

LIBRARY = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
KNOWN = Path(__file__).parents[1] / "backends" / "trt_options.txt"


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


def missing(names: set[str], library: bytes) -> list[str]:
    """Return the names that the library does not contain, not even as the end of another name."""
    return sorted(name for name in names if f"{name}\0".encode() not in library)


def test_provider_options_in_use_exist_in_the_library(library: bytes) -> None:
    names = used_options()
    assert missing(names, library) == []
    assert missing({"trt_no_such_option"}, library) == ["trt_no_such_option"]


def test_stored_option_list_matches_the_library(library: bytes) -> None:
    lines = KNOWN.read_text(encoding="utf-8").splitlines()
    assert missing({line for line in lines if line and line[0] != "#"}, library) == []
