"""The CUDA backend, as far as it works without a GPU."""

from contextlib import nullcontext
from pathlib import Path

import onnx_ir as ir
import pytest

from qconvert.backends import cuda
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.backends.system_probe import Installed
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.formats import Precision
from tests.backends.graphs import ignore_progress, write_graph
from tests.models import from_text


def engine_of(spec: BuildSpec) -> Engine:
    key = cuda.cache_key(spec)
    return Engine("cuda", spec.precision, Path(), "model.onnx", ("model.onnx",), key)


def node(operator: str, opset: int, dtype: str = "float", **attributes: str) -> ir.Model:
    """Return a model of one operator, on an input of four dimensions."""
    text = "".join(f"<{name} = {value}>" for name, value in attributes.items())
    return from_text(f"""
    <ir_version: 10, opset_import: ["": {opset}]>
    one ({dtype}[1, 3, 8, 8] x) => ({dtype}[1, 3, h, w] y) {{ y = {operator} {text} (x) }}
    """)


def test_settings_become_provider_options() -> None:
    assert cuda.load_spec(engine_of(BuildSpec("fp32", Profile()))).providers == (
        ("CUDAExecutionProvider", {"device_id": "0"}),
    )
    options = {"prefer-nhwc": True, "use-tf32": False, "gpu-mem-limit": 512, "device": 1}
    [(_, loaded)] = cuda.load_spec(
        engine_of(BuildSpec("fp32", Profile(), options=options))
    ).providers
    assert loaded == {
        "device_id": "1",
        "prefer_nhwc": "1",
        "use_tf32": "0",
        "gpu_mem_limit": str(512 * 2**20),
    }


def test_opset_is_lowered_where_that_gives_kernels(tmp_path: Path) -> None:
    model = node("MaxPool", 22, kernel_shape="[2, 2]")
    assert cuda.nodes_without_kernel(model, "fp32", 22) == ["MaxPool (opset 22)"]
    onnx_io.save(model, tmp_path / "g.onnx")
    (tmp_path / "engine").mkdir()
    spec = BuildSpec("fp32", Profile())
    cuda.require_readable(tmp_path / "g.onnx", spec)
    engine = cuda.build(tmp_path / "g.onnx", spec, tmp_path / "engine", ignore_progress)
    assert onnx_io.load(engine.folder / engine.files[0]).opset_imports[""] == 21
    assert "stored with opset 21" in engine.notes[0]


def test_opset_with_kernels_is_kept() -> None:
    assert cuda.best_opset(node("Relu", 23), "fp32") == (23, [])
    assert cuda.best_opset(node("MaxPool", 20, kernel_shape="[2, 2]"), "fp32") == (20, [])


@pytest.mark.parametrize(
    ("operator", "precision", "opset"),
    [("MaxPool", "bf16", 22), ("Clip", "bf16", 20), ("LeakyRelu", "bf16", 20), ("Det", "fp32", 20)],
)
def test_operator_without_a_kernel_is_refused_before_any_work(
    operator: str, precision: Precision, opset: int, tmp_path: Path
) -> None:
    attributes = {"kernel_shape": "[2, 2]"} if operator == "MaxPool" else {}
    onnx_io.save(node(operator, opset, **attributes), tmp_path / "g.onnx")
    with pytest.raises(UsageError, match=f"no CUDA kernel in {precision} for {operator}"):
        cuda.require_readable(tmp_path / "g.onnx", BuildSpec(precision, Profile()))
    spec = BuildSpec(precision, Profile(), options={"allow-fallback": True})
    cuda.require_readable(tmp_path / "g.onnx", spec)


def test_table_of_kernels_judges_its_own_release_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_io.save(node("Det", 20), tmp_path / "g.onnx")
    for release, known in (("1.31.2", True), ("1.40.0", False)):
        monkeypatch.setattr(
            cuda, "detect", lambda release=release: Installed({"onnxruntime-gpu": release})
        )
        with nullcontext() if not known else pytest.raises(UsageError, match="no CUDA kernel"):
            cuda.require_readable(tmp_path / "g.onnx", BuildSpec("fp32", Profile()))


def test_arithmetic_on_shapes_needs_no_kernel() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    tokens (float[N, 4] x) => (float[N, 4] y) {
      shape = Shape (x)
      ones = ConstantOfShape (shape)
      odd = Det (ones)
      y = Add (x, x)
    }
    """
    graph = from_text(text).graph
    assert cuda.nodes_that_read_values(graph) == {"Add"}


def test_cuda_graph_needs_fixed_shapes(tmp_path: Path) -> None:
    spec = BuildSpec("fp32", Profile(), options={"cuda-graph": True, "device": 1})
    load_spec = cuda.load_spec(engine_of(spec))
    assert load_spec.cuda_graph
    assert load_spec.providers[0][1] == {"device_id": "1", "enable_cuda_graph": "1"}
    (tmp_path / "engine").mkdir()
    graph = write_graph(tmp_path, "cuda", "fp32")
    with pytest.raises(UsageError, match="a CUDA graph needs fixed shapes"):
        cuda.build(graph, spec, tmp_path / "engine", ignore_progress)


def test_engine_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    graph = write_graph(tmp_path, "cuda", "fp16")
    engine = cuda.build(graph, BuildSpec("fp16", Profile()), tmp_path / "engine", ignore_progress)
    assert (engine.folder / engine.files[0]).read_bytes() == graph.read_bytes()
    assert engine.bytes == graph.stat().st_size
