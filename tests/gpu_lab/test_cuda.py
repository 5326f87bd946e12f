"""ONNX Runtime's CUDA provider: its kernels, shapes on the CPU, and what `doctor` says of it."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from qconvert.backends.cuda import KERNELS
from qconvert.core.formats import Precision
from tests.gpu_lab.cuda_kernels import read_on
from tests.gpu_lab.engines import do, prepare, result
from tests.gpu_lab.lab import environment, generate
from tests.gpu_lab.lab.environment import Host
from tests.models import from_text

# A class token for every image, as a ViT of dynamic batch has it: the CPU computes its shape.
TOKENS = """
<ir_version: 10, opset_import: ["": 20]>
vit (float[N, 3, 8, 8] image) => (float[N, K] y)
<float[1, 1, 192] token = {}, int64[1] zero = {0}, int64[1] one = {1}, int64[2] rest = {1, 192}> {
  shape = Shape (image)
  batch = Slice (shape, zero, one)
  sizes = Concat <axis = 0> (batch, rest)
  tokens = Expand (token, sizes)
  flat = Flatten (tokens)
  pooled = GlobalAveragePool (image)
  row = Flatten (pooled)
  y = Concat <axis = 1> (flat, row)
}
"""


def vit() -> ir.Model:
    text = TOKENS.replace("= {},", "= {" + ", ".join(["0.5"] * 192) + "},", 1)
    model = from_text(text)
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    return model


@pytest.mark.proves("cuda", "table of kernels by operator, type and opset", by="real wheel")
def test_kernel_table_is_that_of_the_wheel(gpu: Callable[..., Host], tmp_path: Path) -> None:
    assert read_on(gpu(), tmp_path) == KERNELS.read_text()


@pytest.mark.proves("cuda", "outputs in {precision}", by="real wheel")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_runs_whole_on_the_gpu(
    gpu: Callable[..., Host], tmp_path: Path, precision: Precision
) -> None:
    values = result(do(gpu(), prepare(tmp_path / "e", "cuda", precision), "build", "run"))
    assert set(values["by_provider"]) == {"CUDAExecutionProvider"}
    assert values["by_precision"][precision] > 3


@pytest.mark.proves("cuda", "arithmetic on shapes stays on the CPU", by="real wheel")
def test_arithmetic_on_shapes_may_run_on_the_cpu(gpu: Callable[..., Host], tmp_path: Path) -> None:
    values = result(do(gpu(), prepare(tmp_path / "e", "cuda", model=vit()), "build", "run"))
    assert values["by_provider"]["CPUExecutionProvider"] >= 2
    assert values["by_provider"]["CUDAExecutionProvider"] >= 3
    assert values["by_precision"]["other"] >= 2


@pytest.mark.proves("cuda", "operator without a kernel is named", by="real wheel")
@pytest.mark.proves("cuda", "`allow-fallback`", by="real wheel")
def test_computation_on_the_cpu_is_refused_by_name(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    model = from_text("""
    <ir_version: 10, opset_import: ["": 20]>
    net (float[N, 3, 4, 4] image) => (float[N, 3] y) { d = Det (image) y = Relu (d) }
    """)
    for node in model.graph:
        node.name = node.op_type.lower()
    done = do(gpu(), prepare(tmp_path / "e", "cuda", model=model), "build", "run")
    assert done.code == 3
    assert "the CPU would run Det det, for which CUDA has no kernel" in done.err
    assert "hint: use another precision, or accept it: `--set cuda.allow-fallback=true`" in done.err
    folder = prepare(tmp_path / "f", "cuda", model=model, allow_fallback=True)
    assert result(do(gpu(), folder, "build", "run"))["by_provider"]["CPUExecutionProvider"] == 1


@pytest.mark.proves("cuda", "spelling of every option", by="real wheel")
def test_settings_reach_the_provider(gpu: Callable[..., Host], tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", "cuda", prefer_nhwc=True, use_tf32=False, gpu_mem_limit=512)
    values = result(do(gpu(), folder, "build", "run"))
    assert values["notes"] == []


@pytest.mark.proves("cuda", "newer opset lowered", by="real wheel")
def test_newer_opset_is_lowered_and_runs(gpu: Callable[..., Host], tmp_path: Path) -> None:
    from tests.backends.graphs import make_graph

    model = make_graph("cuda", "fp32").clone()
    model.opset_imports[""] = 22
    values = result(do(gpu(), prepare(tmp_path / "e", "cuda", model=model), "build", "run"))
    assert "stored with opset 21" in " ".join(values["notes"])
    assert set(values["by_provider"]) == {"CUDAExecutionProvider"}


@pytest.mark.parametrize(
    ("library", "reason", "backends"),
    [
        ("libcublasLt.so.13", "libcublas", {"cuda", "tensorrt"}),
        ("libcudnn.so.9", "cudnn", {"cuda", "tensorrt"}),
        ("libnvinfer.so.10", ".so.10: cannot open shared object", {"tensorrt"}),
    ],
)
def test_doctor_names_a_missing_library(
    library: str, reason: str, backends: set[str], tmp_path: Path
) -> None:
    libraries = [name for name in generate.LIBRARIES if name != library]
    folder = environment.make_host(tmp_path / "machine", libraries=libraries)
    done = Host(folder).qconvert("doctor", "--json", cwd=tmp_path)
    states = json.loads(done.out)["backends"]
    for name in ("cuda", "tensorrt"):
        assert states[name]["runs"] is (name not in backends), name
        if name in backends:
            assert reason in states[name]["reason"]
            assert states[name]["cure"]


@pytest.mark.parametrize(
    ("script", "reason", "cure"),
    [
        (
            {"driver": "550.54.14", "cuda": 12040},
            "too old for CUDA 13: found 550.54.14 (CUDA 12.4)",
            "driver 580 or newer",
        ),
        ({"gpus": ("7.0",)}, "needs a GPU of compute capability 7.5", "--backend cpu"),
        ({"cu_init": 999}, "cuInit returns 999", "--gpus all"),
    ],
)
def test_doctor_compares_driver_and_gpu(
    gpu: Callable[..., Host], tmp_path: Path, script: dict[str, object], reason: str, cure: str
) -> None:
    done = gpu(**script).qconvert("doctor", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    for name in ("cuda", "tensorrt"):
        state = json.loads(done.out)["backends"][name]
        assert reason in state["reason"]
        assert cure in state["cure"]
