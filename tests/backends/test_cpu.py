"""ONNX Runtime on the CPU as reference and as backend: its file, options and kernels."""

import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import cpu, ort
from qconvert.backends.base import BuildSpec, Coverage, Engine, LoadSpec, Profile
from qconvert.backends.int8_class import recorded_class
from qconvert.backends.ort_coverage import CASTING
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import Precision
from qconvert.core.tensors import random_inputs
from tests.backends.graphs import ignore_progress, images, make_graph, write_graph
from tests.models import mixed, tiny

# The names of types in ONNX Runtime's profile, and the precision a kernel computes in.
PROFILED = {"float": "fp32", "float16": "fp16"}


def build(precision: Precision, folder: Path, **options: bool) -> Engine:
    graph = write_graph(folder, "cpu", precision)
    (folder / "engine").mkdir()
    spec = BuildSpec(precision, Profile(), threads=1, options=options)
    return cpu.build(graph, spec, folder / "engine", ignore_progress)


def open_engine(engine: Engine) -> ort.OrtSession:
    session = cpu.open(engine)
    assert isinstance(session, ort.OrtSession)
    return session


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_kernel_counts_equal_those_of_the_profiler(precision: Precision, tmp_path: Path) -> None:
    engine = build(precision, tmp_path)
    assert cpu.open(engine).coverage().by_precision == profile(engine, tmp_path)


def profile(engine: Engine, folder: Path) -> dict[str, int]:
    """Run once under ONNX Runtime's profiler; count kernels by the type of their inputs."""
    spec = cpu.load_spec(engine)
    options = ort.session_options(spec)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.create_session(engine.folder / engine.files[0], spec, options)
    session.run(None, images())
    events = json.loads(Path(session.end_profiling()).read_text())
    return dict(
        Counter(
            kernel_precision(event["args"])
            for event in events
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
        )
    )


def kernel_precision(kernel: dict[str, Any]) -> str:
    if kernel["op_name"] in CASTING:
        return "casts"
    types = [name for tensor in kernel["input_type_shape"] for name in tensor]
    return "int8" if {"int8", "uint8"} & set(types) else PROFILED[types[0]]


def test_int8_engine_is_the_smaller_optimized_copy(tmp_path: Path) -> None:
    engine = build("int8", tmp_path)
    portable = (engine.folder / engine.graph).stat().st_size
    assert engine.files == (cpu.OPTIMIZED,)
    assert engine.bytes <= (1 - cpu.MIN_SAVING) * portable
    assert engine.made_with["copy"] == "optimized"
    assert "smaller than the ONNX file" in engine.notes[0]


def test_file_quantized_for_tensorrt_keeps_its_qdq_nodes(tmp_path: Path) -> None:
    path = write_graph(tmp_path, "tensorrt-rtx", "int8")
    engine = Engine("cpu", "int8", tmp_path, path.name, (path.name,), {})
    assert cpu.load_spec(engine).config_entries["session.disable_quant_qdq"] == "1"
    outputs = cpu.open(engine).run(images())["scores"]
    expected = ort.open_cpu(make_graph("tensorrt-rtx", "int8"))(images())["scores"]
    np.testing.assert_array_equal(outputs, expected)


def test_fp16_engine_is_the_portable_file_computed_in_float(tmp_path: Path) -> None:
    engine = build("fp16", tmp_path)
    assert engine.files == ("model.onnx",)
    assert "would be in float" in engine.made_with["copy"]
    counts = cpu.open(engine).coverage().by_precision
    assert counts is not None
    assert counts["fp32"] > counts.get("fp16", 0)


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (build("int8", tmp_path / name) for name in ("one", "two"))
    assert first.files == second.files
    for name in (*first.files, first.graph):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_threads_and_spinning_are_applied_and_recorded(tmp_path: Path) -> None:
    engine = build("fp32", tmp_path, spinning=True)
    assert (engine.threads, engine.made_with["spinning"]) == (1, "True")
    options = open_engine(engine).session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_integer_kernels_are_exact_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LoadSpec(((cpu.PROVIDER, {}),), (), may_saturate=True)
    for name, expected in (("AVX-VNNI", "0"), ("AVX2 without VNNI", "1")):
        monkeypatch.setattr(ort, "int8_class", lambda name=name: recorded_class(name))
        options = ort.session_options(spec)
        assert options.get_session_config_entry("session.x64quantprecision") == expected


@pytest.mark.parametrize(("machine", "sign"), [("aarch64", "signed"), ("x86_64", "unsigned")])
def test_engine_of_any_architecture_is_right_here(
    machine: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "machine", lambda: machine)
        make_graph.cache_clear()
        engine = build("int8", tmp_path)
    make_graph.cache_clear()
    assert engine.made_with["activations"] == sign
    (expected,) = ort.open_cpu(make_graph("cpu", "fp32"))(images(16)).values()
    (outputs,) = open_engine(engine).run(images(16)).values()
    error = np.mean((outputs - expected) ** 2) / np.mean(expected**2)
    assert error < 0.01  # 20 dB


def test_model_above_2_gb_keeps_its_data_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    engine = build("fp32", tmp_path)
    assert engine.files[0] == "model.onnx"
    assert len(engine.files) == 2
    session = cpu.open(engine)
    expected = ort.open_cpu(make_graph("cpu", "fp32"))(images())["scores"]
    np.testing.assert_array_equal(session.run(images())["scores"], expected)
    assert session.coverage().by_precision


def test_engine_that_does_not_run_or_load_is_reported(tmp_path: Path) -> None:
    engine = build("fp32", tmp_path)
    with pytest.raises(QConvertError, match="cannot run this model on image"):
        cpu.open(engine).run({"image": np.zeros((1, 3, 8), np.float32)})
    (engine.folder / engine.files[0]).write_bytes(b"no model")
    with pytest.raises(QConvertError, match="CPUExecutionProvider cannot load"):
        cpu.open(engine)


def test_setting_of_the_wrong_type_is_rejected() -> None:
    spec = BuildSpec("fp32", Profile(), options={"spinning": "yes"})
    with pytest.raises(UsageError, match=r"`cpu.spinning`: .*boolean, got 'yes'"):
        cpu.cache_key(spec)


def test_bound_runs_reuse_their_memory(tmp_path: Path) -> None:
    """Tested on CPU memory; the contract tests it on a GPU."""
    session = open_engine(build("fp32", tmp_path))
    binding, _ = session.bind_memory(images())
    address = binding.get_outputs()[0].data_ptr()
    session.session.run_with_iobinding(binding)
    assert binding.get_outputs()[0].data_ptr() == address
    (scores,) = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(scores, session.run(images())["scores"])


def test_cuda_graph_session_reuses_its_buffers(tmp_path: Path) -> None:
    """A CUDA graph replays addresses, so new values must be written to the same buffers."""
    model = mixed()
    model.graph.inputs[0].shape = ir.Shape((2, 3, 16, 16))
    model.graph.outputs[0].shape = ir.Shape((2, 24))
    onnx_io.save(model, tmp_path / "fixed.onnx")
    session = ort.create_session(tmp_path / "fixed.onnx", LoadSpec(((cpu.PROVIDER, {}),), ()))
    ordinary = ort.OrtSession(session, lambda: Coverage({}))
    replayed = ort.OrtSession(session, lambda: Coverage({}), cuda_graph=True)
    batch = images(4)["image"]
    addresses = set()
    for feeds in ({"image": batch[:2]}, {"image": batch[2:]}):
        np.testing.assert_array_equal(replayed.run(feeds)["scores"], ordinary.run(feeds)["scores"])
        addresses.add(replayed.bindings[0][1]["image"].data_ptr())
    assert len(addresses) == 1


def test_cuda_graph_session_rejects_outputs_of_dynamic_shape(tmp_path: Path) -> None:
    session = open_engine(build("fp32", tmp_path))
    replayed = ort.OrtSession(session.session, session.coverage, cuda_graph=True)
    with pytest.raises(QConvertError, match="needs fixed shapes, the output `scores`"):
        replayed.run(images())


def test_nodes_are_listed_by_provider(tmp_path: Path) -> None:
    engine = build("fp32", tmp_path)
    nodes = ort.nodes_by_provider(open_engine(engine).session)
    count = len(ir.load(engine.folder / engine.graph).graph)
    assert {provider: len(names) for provider, names in nodes.items()} == {cpu.PROVIDER: count}
    assert "Conv stem" in nodes[cpu.PROVIDER]


def test_outputs_are_returned_by_name() -> None:
    outputs = ort.open_cpu(tiny())(random_inputs(onnx_io.inputs(tiny()), 3, seed=0))
    assert list(outputs) == ["scores"]
    assert outputs["scores"].shape == (3, 5)


def test_model_with_external_data_runs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = random_inputs(onnx_io.inputs(tiny()), 3, seed=0)
    expected = ort.open_cpu(tiny())(feeds)
    monkeypatch.setattr(onnx_io, "IN_MEMORY_BYTES", 100)
    np.testing.assert_array_equal(ort.open_cpu(tiny())(feeds)["scores"], expected["scores"])


def test_errors_of_the_runtime_are_one_sentence() -> None:
    model = tiny()
    model.graph.node(1).op_type = "Nonsense"
    with pytest.raises(QConvertError, match="cannot load this model") as caught:
        ort.open_cpu(model)
    assert "ONNXRuntimeError" not in str(caught.value)
    with pytest.raises(QConvertError, match=r"cannot run this model on image \(1, 3, 8\)"):
        ort.open_cpu(tiny())({"image": np.zeros((1, 3, 8), np.float32)})


def test_opening_leaves_the_model_unchanged() -> None:
    model = tiny()
    before = ir.to_onnx_text(model)
    ort.open_cpu(model)
    assert ir.to_onnx_text(model) == before
