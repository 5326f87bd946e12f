"""Where the time of INT8 goes on this CPU: operators of FP32 and INT8 networks, by kind.

    python -m benchmarks.cpu_operators              # all networks
    python -m benchmarks.cpu_operators NAME ...     # these of timm's, or `demo`

timm's networks have random weights, so only their times mean something. The INT8 file runs as ONNX
Runtime's defaults do, and as the engine that `qconvert build` makes of it. All run in turns on one
thread; of every operator the least time counts, which other work on the machine disturbs least.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import nets
from qconvert import api
from qconvert.backends import cpu
from qconvert.backends.base import BuildSpec, Profile
from qconvert.backends.int8_class import int8_class
from qconvert.backends.ort_profile import OperatorTime, read_profile
from qconvert.demo import demo_files

NETS = (
    *("demo", "efficientnet_lite0", "efficientnet_b0", "mobilenetv3_large_100"),
    *("mobilenetv3_small_100", "seresnet18"),
)
BATCHES, ROUNDS = (1, 8), {1: 40, 8: 10}
Images = NDArray[np.float32]
KINDS = {
    "products": ("Conv", "FusedConv", "Gemm", "MatMul", "QLinearConv", "QGemm", "QLinearMatMul"),
    "conversions": (
        *("QuantizeLinear", "DequantizeLinear", "Cast"),
        *("Transpose", "ReorderInput", "ReorderOutput"),
    ),
}


def main(names: Sequence[str]) -> None:
    print(f"ONNX Runtime {onnxruntime.__version__}, {int8_class().name}")
    print("milliseconds of products | conversions | all other operators, and their sum")
    for name in names or NETS:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder))


def compare(name: str, folder: Path) -> None:
    """Print the times of a network in FP32 and INT8."""
    source = folder / "source.onnx"
    if name == "demo":
        source.write_bytes(demo_files.NETWORK.read_bytes())
    else:
        nets.export(nets.timm_net(name), source, optimize=True)
    files = {"FP32": folder / "fp32.onnx", "INT8": folder / "int8.onnx"}
    api.export(source, output=files["FP32"])
    side = onnxruntime.InferenceSession(source).get_inputs()[0].shape[-1]
    random = np.random.default_rng(0)
    np.save(folder / "images.npy", random.standard_normal((16, 3, side, side), np.float32))
    api.quantize(
        source,
        output=files["INT8"],
        images=folder / "images.npy",
        settings={"quantize.effort": "none"},
    )
    for batch in BATCHES:
        files["engine"] = build(files["INT8"], batch, folder / f"engine-{batch}")
        images = random.standard_normal((batch, 3, side, side), np.float32)
        sums = {file: by_kind(times) for file, times in profile(files, images).items()}
        totals = {file: sum(kinds.values()) for file, kinds in sums.items()}
        gains = [f"{file} {totals['FP32'] / totals[file]:.2f}x" for file in ("INT8", "engine")]
        print(f"{name}, batch {batch}: {', '.join(gains)}")
        for file, kinds in sums.items():
            parts = " | ".join(f"{ms:7.2f}" for ms in kinds.values())
            print(f"    {file:6} {parts} = {totals[file]:7.2f}", flush=True)


def build(file: Path, batch: int, folder: Path) -> Path:
    """Build the engine for a batch size, and return what it loads."""
    folder.mkdir()
    spec = BuildSpec("int8", Profile(1, batch, max(BATCHES)), threads=1)
    engine = cpu.build(file, spec, folder, lambda *_: None)
    return folder / engine.files[0]


def profile(files: Mapping[str, Path], images: Images) -> dict[str, tuple[OperatorTime, ...]]:
    """Return the operators of every file with their least times; the files take turns."""
    sessions = {}
    for file, path in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling = 1, True
        options.profile_file_prefix = str(path.with_suffix(""))
        options.log_severity_level = 4
        sessions[file] = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    for _ in range(ROUNDS[len(images)]):
        for session in sessions.values():
            session.run(None, {session.get_inputs()[0].name: images})
    texts = {file: Path(session.end_profiling()).read_text() for file, session in sessions.items()}
    return {file: read_profile(text, {}) for file, text in texts.items()}


def by_kind(times: Sequence[OperatorTime]) -> dict[str, float]:
    """Return the milliseconds of each kind of operator."""
    kinds = {op: kind for kind, operators in KINDS.items() for op in operators}
    sums = dict.fromkeys((*KINDS, "other"), 0.0)
    for time in times:
        sums[kinds.get(time.op, "other")] += time.ms
    return sums


if __name__ == "__main__":
    main(sys.argv[1:])
