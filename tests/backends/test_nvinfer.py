"""The native builder, for real: TensorRT for RTX builds without any GPU."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qconvert.backends import nvinfer, ort, precision_coverage, tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Precision, Profile
from qconvert.backends.engine_folder import wrap_engine
from qconvert.backends.nvinfer import BuildProgress, run_with_progress
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from tests.backends.graphs import graph, written
from tests.models import from_text, mixed

RTX = tensorrt_rtx.PROVIDER


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    return module


def quiet(text: str, fraction: float | None) -> None:
    """Hear nothing."""


def built(root: Path, precision: Precision, **options: str | int) -> Engine:
    root.mkdir(exist_ok=True)
    (root / "engine").mkdir()
    named = {name.replace("_", "-"): value for name, value in options.items()}
    spec = BuildSpec(precision, Profile(1, 2, 4), options=named)
    return tensorrt_rtx.build(
        written(root, "tensorrt-rtx", precision), spec, root / "engine", quiet
    )


def test_an_engine_lies_beside_its_graph_and_the_model_that_names_it(
    trt: ModuleType, tmp_path: Path
) -> None:
    engine = built(tmp_path, "fp16")
    assert sorted(path.name for path in engine.folder.iterdir()) == [
        "model.engine",
        "model.onnx",
        "model_ctx.onnx",
    ]
    assert engine.files == ("model_ctx.onnx", "model.engine")
    assert "tensorrt-rtx 1" in engine.made_with["builder"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_second_build_differs_in_the_engine_at_most(
    trt: ModuleType, precision: Precision, tmp_path: Path
) -> None:
    first, second = built(tmp_path / "a", precision), built(tmp_path / "b", precision)
    for name in (first.graph, first.files[0]):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert second.bytes == pytest.approx(first.bytes, rel=0.01)


def test_more_profiles_go_into_one_engine(trt: ModuleType, tmp_path: Path) -> None:
    one = built(tmp_path / "a", "fp32")
    more = built(tmp_path / "b", "fp32", more_profiles="1,1,1 8,8,8")
    assert more.bytes > one.bytes
    with pytest.raises(UsageError, match="three batch sizes"):
        built(tmp_path / "c", "fp32", more_profiles="8,8")


def test_a_fixed_batch_needs_no_profile(trt: ModuleType, tmp_path: Path) -> None:
    model = mixed()
    image = model.graph.inputs[0]
    image.shape = ir.Shape((2, 3, 16, 16))
    onnx_io.save(model, tmp_path / "fixed.onnx")
    wishes = nvinfer.NativeBuildOptions((Profile(1, 8, 32),))
    inputs = onnx_io.inputs(model)
    assert nvinfer.build_engine(trt, tmp_path / "fixed.onnx", inputs, wishes, quiet)


def test_the_build_tells_how_far_it_is(trt: ModuleType, tmp_path: Path) -> None:
    heard: list[tuple[str, float | None]] = []
    source = written(tmp_path, "tensorrt-rtx", "fp32")
    wishes = nvinfer.NativeBuildOptions((Profile(1, 2, 4),))
    inputs = onnx_io.inputs(mixed())
    nvinfer.build_engine(trt, source, inputs, wishes, lambda text, done: heard.append((text, done)))
    fractions = [done for _, done in heard if done is not None]
    assert fractions == sorted(fractions)
    assert heard[-1] == ("built", 1.0)


def test_ctrl_c_ends_a_build_and_the_next_one_works(
    trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvinfer, "POLL_SECONDS", 0.001)
    source, inputs = written(tmp_path, "tensorrt-rtx", "int8"), onnx_io.inputs(mixed())
    wishes = nvinfer.NativeBuildOptions((Profile(1, 2, 4),))

    def interrupted(text: str, fraction: float | None) -> None:
        assert text != "built"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nvinfer.build_engine(trt, source, inputs, wishes, interrupted)
    assert nvinfer.build_engine(trt, source, inputs, wishes, quiet)


def test_what_the_parser_refuses_is_told_with_the_node(trt: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "asymmetric.onnx"
    onnx_io.save(graph("cpu", "int8"), source)
    wishes, inputs = nvinfer.NativeBuildOptions((Profile(),)), onnx_io.inputs(mixed())
    with pytest.raises(QConvertError, match="TensorRT for RTX cannot read this model") as caught:
        nvinfer.build_engine(trt, source, inputs, wishes, quiet)
    assert "(QuantizeLinear): " in str(caught.value)
    assert "zero points of 0" in caught.value.hint


def test_a_model_that_names_an_engine_is_one_the_runtime_knows(tmp_path: Path) -> None:
    model = wrap_engine(mixed(), "model.engine", RTX)
    onnx_io.save(model, tmp_path / "model_ctx.onnx")
    proto = onnx.load(tmp_path / "model_ctx.onnx")
    [node] = proto.graph.node
    told = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert told["ep_cache_context"] == b"model.engine"
    assert (told["embed_mode"], told["main_context"]) == (0, 0)
    assert [str(spec) for spec in onnx_io.outputs(model)] == ["scores: float32[N, 24]"]
    # The runtime takes the operator and its attributes, and reads who can load the engine.
    with pytest.raises(QConvertError, match=f"EPContext node generated by '{RTX}'"):
        ort.create_session(
            tmp_path / "model_ctx.onnx", ort.session_options(), ["CPUExecutionProvider"]
        )


@pytest.mark.parametrize("path", ["/elsewhere/model.engine", "../model.engine"])
def test_an_engine_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="beside its model"):
        wrap_engine(mixed(), path, RTX)


def test_progress_never_goes_back_and_a_phase_fills_a_step_of_its_parent() -> None:
    progress = BuildProgress()
    progress.begin("build", None, 2)
    progress.begin("graph", "build", 4)
    assert progress.step("graph")
    assert progress.fraction == 0.125
    progress.end("graph")
    progress.begin("graph again", "build", 100)
    progress.step("graph again")
    assert progress.fraction == 0.125
    progress.step("build")
    assert (progress.fraction, progress.doing) == (0.5, "graph again")
    progress.stopped = True
    assert not progress.step("build")
    assert progress.fraction == 1.0
    assert not progress.step("never begun")


def test_what_the_work_raises_comes_out_of_the_thread() -> None:
    def failing() -> None:
        raise QConvertError("no room", hint="make some")

    with pytest.raises(QConvertError, match="no room"):
        run_with_progress(failing, BuildProgress(), quiet)


def test_layers_of_an_engine_count_by_what_they_read() -> None:
    layers = """{"Layers": [
        {"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
        {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8 NHWC32"}],
         "Outputs": [{"Format/Datatype": "Half"}]},
        {"LayerType": "gemm", "Inputs": [{"Datatype": "BFloat16"}]},
        {"LayerType": "kgen", "Inputs": [], "Outputs": [{"Format/Datatype": "FP16"}]},
        {"LayerType": "signal", "Inputs": [], "Outputs": []}
    ]}"""
    counts = precision_coverage.layer_precisions(layers)
    assert counts == {"bf16": 1, "casts": 1, "fp16": 1, "int8": 1, "other": 1}
    assert precision_coverage.layer_precisions('{"Layers": ["conv1", "conv2"]}') is None
    assert precision_coverage.layer_precisions("no JSON") is None


def test_a_network_with_two_inputs_gets_both_into_the_profile(
    trt: ModuleType, tmp_path: Path
) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    two (float[N, 4] left, float[N, 4] right) => (float[N, 4] sum) { sum = Add (left, right) }
    """
    model = from_text(text)
    onnx_io.save(model, tmp_path / "two.onnx")
    wishes = nvinfer.NativeBuildOptions((Profile(1, 2, 4),))
    assert nvinfer.build_engine(trt, tmp_path / "two.onnx", onnx_io.inputs(model), wishes, quiet)
    assert np.dtype(np.float32) == onnx_io.inputs(model)[1].dtype
