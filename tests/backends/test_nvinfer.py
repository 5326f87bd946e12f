"""The native builder, on TensorRT for RTX, which builds without a GPU."""

import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends import nvinfer, ort, subprocess_worker, tensorrt_rtx
from qconvert.backends.base import BuildProgressCallback, BuildSpec, Engine, LoadSpec, Profile
from qconvert.backends.nvinfer import NativeBuildOptions, count_precisions, wrap_engine
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import Precision
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.shifted_tensors import find_shiftable
from tests.backends.graphs import ignore_progress, write_graph
from tests.calibrate.activations import summarize
from tests.models import from_text, mixed
from tests.quantize.quantized_models import scheme
from tests.quantize.test_shifted_tensors import FEEDS
from tests.quantize.test_shifted_tensors import network as shiftable_network

RTX = tensorrt_rtx.PROVIDER
OPTIONS = NativeBuildOptions(onnx_io.inputs(mixed()), (Profile(1, 2, 4),))


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    return module


@pytest.fixture
def graph(trt: ModuleType, tmp_path: Path) -> Path:
    return write_graph(tmp_path, "tensorrt-rtx", "fp32")


def build(root: Path, precision: Precision, **options: str | int) -> Engine:
    (root / "engine").mkdir(parents=True)
    spec = BuildSpec(
        precision,
        Profile(1, 2, 4),
        options={name.replace("_", "-"): value for name, value in options.items()},
    )
    graph = write_graph(root, "tensorrt-rtx", precision)
    return tensorrt_rtx.build(graph, spec, root / "engine", ignore_progress)


def build_in_child(graph: Path, output: Path, progress: BuildProgressCallback) -> None:
    job, module = "qconvert.backends.nvinfer:build_job", "tensorrt_rtx"
    subprocess_worker.call(
        job, module, graph, OPTIONS, output, product="TensorRT for RTX", report=progress
    )


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rtx_builds_differ_only_in_the_engine(
    trt: ModuleType, precision: Precision, tmp_path: Path
) -> None:
    first, second = build(tmp_path / "a", precision), build(tmp_path / "b", precision)
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == ["model.engine", "model.onnx", "model_ctx.onnx"]
    assert first.files == ("model_ctx.onnx", "model.engine")
    assert "tensorrt-rtx 1" in first.made_with["builder"]
    for name in (first.graph, first.files[0]):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert second.bytes == pytest.approx(first.bytes, rel=0.01)


@pytest.mark.long
def test_shifted_grids_need_no_kernels_of_their_own(trt: ModuleType, tmp_path: Path) -> None:
    model = shiftable_network()
    options = QuantizeOptions("minmax", rest="fp16")
    plan = make_plan(model, scheme("tensorrt-rtx"), summarize(model, FEEDS), options)
    shifted = replace(plan, shifted=tuple(find_shiftable(model.graph, plan)))
    assert len(shifted.shifted) == 3
    sizes = []
    for number, row in enumerate((plan, shifted)):
        graph, folder = tmp_path / f"{number}.onnx", tmp_path / str(number)
        folder.mkdir()
        half = convert_to_half(apply_plan(model, row), "fp16", dict.fromkeys(row.tensors, 10.0))
        onnx_io.save(half.model, graph)
        spec = BuildSpec("int8", Profile(1, 2, 4))
        sizes.append(tensorrt_rtx.build(graph, spec, folder, ignore_progress).bytes)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.long
@pytest.mark.proves("tensorrt-rtx", "several profiles", by="real builder")
def test_more_profiles_make_one_larger_engine(trt: ModuleType, tmp_path: Path) -> None:
    one = build(tmp_path / "a", "fp32")
    assert build(tmp_path / "b", "fp32", more_profiles="1,1,1 8,8,8").bytes > one.bytes


@pytest.mark.parametrize("profiles", ["8,8", "8,1,1", "1,x,2"])
def test_invalid_more_profiles_are_rejected(profiles: str) -> None:
    spec = BuildSpec("fp32", Profile(), options={"more-profiles": profiles})
    with pytest.raises(UsageError, match="three ascending batch sizes"):
        tensorrt_rtx.cache_key(spec)


@pytest.mark.long
@pytest.mark.proves("tensorrt-rtx", "fixed batch, several inputs", by="real builder")
def test_fixed_batch_and_several_inputs_build(trt: ModuleType, tmp_path: Path) -> None:
    model = mixed()
    model.graph.inputs[0].shape = ir.Shape((2, 3, 16, 16))
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    two (float[N, 4] left, float[N, 4] right) => (float[N, 4] sum) { sum = Add (left, right) }
    """
    for name, network in (("fixed", model), ("two", from_text(text))):
        path = tmp_path / f"{name}.onnx"
        onnx_io.save(network, path)
        options = replace(OPTIONS, inputs=onnx_io.inputs(network))
        assert nvinfer.build_engine(trt, path, options, ignore_progress)


@pytest.mark.slow
@pytest.mark.proves("tensorrt-rtx", "progress of a build", by="real builder")
def test_worker_reports_progress_and_writes_the_engine(graph: Path) -> None:
    reports: list[tuple[str, float | None]] = []
    output = graph.with_name("model.engine")
    build_in_child(graph, output, lambda *report: reports.append(report))
    fractions = [fraction for _, fraction in reports if fraction is not None]
    assert fractions == sorted(fractions)
    assert reports[-1] == ("built", 1.0)
    assert output.stat().st_size > 1000


@pytest.mark.slow
def test_ctrl_c_kills_the_worker(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[-1]

    def interrupt(text: str, fraction: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", record)
    output = graph.with_name("model.engine")
    with pytest.raises(KeyboardInterrupt):
        build_in_child(graph, output, interrupt)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert not output.exists()


def test_crash_of_the_builder_is_reported(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(QConvertError, match=r"TensorRT for RTX crashed on .* \(SIGABRT\)"):
        nvinfer.require_parsable("tensorrt_rtx", graph)


@pytest.mark.long
def test_engine_that_cannot_be_written_is_an_os_error(graph: Path) -> None:
    output = graph.with_name("no") / "model.engine"
    with pytest.raises(FileNotFoundError, match=r"no/model\.engine"):
        build_in_child(graph, output, ignore_progress)


@pytest.mark.slow
@pytest.mark.proves("tensorrt-rtx", "operator that the parser refuses", by="real builder")
def test_refusal_of_the_parser_names_the_node_and_a_remedy(trt: ModuleType, tmp_path: Path) -> None:
    asymmetric = write_graph(tmp_path, "cpu", "int8")
    with pytest.raises(QConvertError, match="TensorRT for RTX cannot read this model") as caught:
        nvinfer.require_parsable("tensorrt_rtx", asymmetric)
    assert "(QuantizeLinear): " in str(caught.value)
    assert "zero points of 0" in caught.value.hint


def test_wrapped_engine_is_a_model_that_onnx_runtime_knows(tmp_path: Path) -> None:
    model = wrap_engine(mixed(), "model.engine", RTX)
    path = tmp_path / "model_ctx.onnx"
    onnx_io.save(model, path)
    [node] = onnx.load(path).graph.node
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert attributes["ep_cache_context"] == b"model.engine"
    assert (attributes["embed_mode"], attributes["main_context"]) == (0, 0)
    assert [str(spec) for spec in onnx_io.outputs(model)] == ["scores: float32[N, 24]"]
    # ONNX Runtime accepts the operator and its attributes, and reads which provider loads it.
    with pytest.raises(QConvertError, match=f"EPContext node generated by '{RTX}'"):
        ort.create_session(path, LoadSpec((("CPUExecutionProvider", {}),), ()))


@pytest.mark.parametrize("path", ["/elsewhere/model.engine", "../model.engine"])
def test_engine_outside_the_folder_of_its_model_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match="in the folder of its model"):
        wrap_engine(mixed(), path, RTX)


def test_progress_never_goes_back_and_a_phase_fills_a_step_of_its_parent() -> None:
    reports: list[tuple[str, float | None]] = []
    trt: Any = SimpleNamespace(IProgressMonitor=object)
    monitor = nvinfer.progress_monitor(trt, lambda *report: reports.append(report), interval=0)
    monitor.phase_start("build", None, 2)
    monitor.phase_start("graph", "build", 4)
    assert monitor.step_complete("graph", 0)
    assert reports[-1] == ("graph", 0.125)
    monitor.phase_finish("graph")
    monitor.phase_start("graph again", "build", 100)
    monitor.step_complete("graph again", 0)
    assert reports[-1] == ("graph again", 0.125)
    monitor.step_complete("build", 0)
    monitor.step_complete("build", 1)
    assert reports[-2:] == [("build", 0.5), ("build", 1.0)]


def test_layers_count_by_the_type_they_read() -> None:
    layers = """{"Layers": [
        {"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8 NHWC32"}],
         "Outputs": [{"Format/Datatype": "Half"}]},
        {"LayerType": "gemm", "Inputs": [{"Datatype": "BFloat16"}]},
        {"LayerType": "kgen", "Inputs": [], "Outputs": [{"Format/Datatype": "FP16"}]},
        {"LayerType": "kgen", "Inputs": [{"Format/Datatype": "FP8 E4M3"}]},
        {"LayerType": "kgen", "Inputs": [{"Format/Datatype": "FP4 E2M1"}]},
        {"LayerType": "NoOp", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {"LayerType": "signal", "Inputs": [], "Outputs": []}
    ]}"""
    counts = {"bf16": 1, "casts": 1, "fp16": 1, "fp4": 1, "fp8": 1, "int8": 1, "other": 1}
    assert count_precisions(layers) == counts
    assert count_precisions('{"Layers": ["conv1", "conv2"]}') is None
    assert count_precisions("no JSON") is None


@pytest.mark.long
@pytest.mark.proves("tensorrt-rtx", "INT8 convolution in groups of few channels", by="real builder")
def test_int8_groups_of_few_channels_are_padded_by_the_builder(
    trt: ModuleType, tmp_path: Path
) -> None:
    """The reason for the rule `no_narrow_groups`; if it fails, the builder has learned better."""

    def engine_bytes(group: int) -> int:
        lines, shape = [], (64, 64 // group, 3, 3)
        for layer in range(4):
            lines += [
                f"q{layer} = QuantizeLinear (x{layer}, s, z)",
                f"d{layer} = DequantizeLinear (q{layer}, s, z)",
                f"w{layer} = DequantizeLinear (i{layer}, s, z)",
                f"x{layer + 1} = Conv <pads: ints = [1, 1, 1, 1], group: int = {group}> "
                f"(d{layer}, w{layer})",
            ]
        random = np.random.default_rng(0)
        weights: dict[str, NDArray[np.generic]] = {
            f"i{n}": random.integers(-99, 99, shape).astype(np.int8) for n in range(4)
        }
        weights |= {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
        text = "grouped (float[1, 64, 56, 56] x0) => (float[1, 64, 56, 56] x4)"
        network = from_text(f"{text} {{ {' '.join(lines)} }}", **weights)
        path = tmp_path / f"{group}.onnx"
        onnx_io.save(network, path)
        options = NativeBuildOptions(onnx_io.inputs(network), (Profile(),))
        (tmp_path / "engine").write_bytes(nvinfer.build_engine(trt, path, options, ignore_progress))
        return (tmp_path / "engine").stat().st_size

    plain, depthwise = engine_bytes(16), engine_bytes(64)  # 4 channels a group, and 1
    assert depthwise - plain > 100 * 4 * 64 * 9  # over 100 times the bytes of its weights
