"""The CPU engine: which file it is, what it is told, and which kernels run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import cpu, ort
from qconvert.backends.base import BuildSpec, Coverage, Engine, Precision, Profile
from qconvert.backends.precision_coverage import CASTING, CASTS
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.run.targets import resolve
from tests.backends.graphs import graph, images, written
from tests.models import mixed

# What the runtime's own profile calls types, where a kernel computes in them.
PROFILED = {"float": "fp32", "float16": "fp16"}


def built(precision: Precision, folder: Path, **options: bool) -> Engine:
    source = written(folder, "cpu", precision)
    (folder / "engine").mkdir()
    spec = BuildSpec(precision, Profile(), threads=1, options=options)
    return cpu.build(source, spec, folder / "engine", lambda text, fraction: None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_kernels_are_counted_as_the_runtime_profiles_them(
    precision: Precision, tmp_path: Path
) -> None:
    engine = built(precision, tmp_path)
    assert cpu.open(engine).coverage().by_precision == profiled(engine, tmp_path)


def profiled(engine: Engine, folder: Path) -> dict[str, int]:
    """Run once under the runtime's profiler and count kernels by the type of what they read."""
    options = cpu._options(cpu.load_spec(engine))
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    path = engine.folder / engine.files[0]
    session = ort.create_session(path, options, [cpu.PROVIDER])
    session.run(None, images())
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [
        event["args"]
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
    ]
    return dict(Counter(_word(each) for each in ran))


def _word(kernel: dict[str, Any]) -> str:
    if kernel["op_name"] in CASTING:
        return CASTS
    types = [name for each in kernel["input_type_shape"] for name in each]
    return "int8" if {"int8", "uint8"} & set(types) else PROFILED[types[0]]


def test_int8_loads_the_optimized_copy_because_it_is_smaller(tmp_path: Path) -> None:
    engine = built("int8", tmp_path)
    portable = (engine.folder / engine.graph).stat().st_size
    assert engine.files == (cpu.OPTIMIZED,)
    assert engine.bytes <= (1 - cpu.WORTH) * portable
    assert engine.made_with["copy"] == "optimized"
    assert "smaller than the portable ONNX" in engine.notes[0]
    got = cpu.open(engine).run(images())["scores"]
    wanted = ort.open_cpu(graph("cpu", "int8"))(images())["scores"]
    np.testing.assert_array_equal(got, wanted)


def test_a_file_quantized_for_tensorrt_answers_as_its_graph_says(tmp_path: Path) -> None:
    path = written(tmp_path, "tensorrt-rtx", "int8")
    (engine,) = resolve([path]).engines.values()
    wanted = ort.open_cpu(graph("tensorrt-rtx", "int8"))(images())["scores"]
    np.testing.assert_array_equal(cpu.open(engine).run(images())["scores"], wanted)
    assert cpu.load_spec(engine).config_entries["session.disable_quant_qdq"] == "1"


def test_half_precision_keeps_the_portable_file_and_says_how_it_computes(tmp_path: Path) -> None:
    engine = built("fp16", tmp_path)
    assert engine.files == ("model.onnx",)
    assert "would be in float" in engine.made_with["copy"]
    counts = cpu.open(engine).coverage().by_precision
    assert counts is not None
    assert counts["fp32"] > counts.get("fp16", 0)


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        (tmp_path / name).mkdir()
    first, second = (built("int8", tmp_path / name) for name in names)
    assert first.files == second.files
    for name in (*first.files, first.graph):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_threads_and_spinning_are_set_and_recorded(tmp_path: Path) -> None:
    engine = built("fp32", tmp_path, spinning=True)
    assert (engine.threads, engine.made_with["spinning"]) == (1, "True")
    session = cpu.open(engine)
    assert isinstance(session, ort.OrtSession)
    options = session.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_integers_are_exact_on_every_cpu_and_fast_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort, "integer_instructions", lambda: "VNNI")
    assert ort.x64_quant_precision() == "0"
    monkeypatch.setattr(ort, "integer_instructions", lambda: "")
    assert ort.x64_quant_precision() == "1"


def test_a_model_above_2_gb_keeps_its_data_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    engine = built("fp32", tmp_path)
    assert engine.files[0] == "model.onnx"
    assert len(engine.files) == 2
    got = cpu.open(engine)
    wanted = ort.open_cpu(graph("cpu", "fp32"))(images())["scores"]
    np.testing.assert_array_equal(got.run(images())["scores"], wanted)
    assert got.coverage().by_precision


def test_what_does_not_load_or_run_is_told(tmp_path: Path) -> None:
    engine = built("fp32", tmp_path)
    with pytest.raises(QConvertError, match="cannot run this model on image"):
        cpu.open(engine).run({"image": np.zeros((1, 3, 8), np.float32)})
    (engine.folder / engine.files[0]).write_bytes(b"no model")
    with pytest.raises(QConvertError, match="CPUExecutionProvider cannot load"):
        cpu.open(engine)


def test_a_setting_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    spec = BuildSpec("fp32", Profile(), options={"spinning": "yes"})
    with pytest.raises(UsageError, match=r"`cpu.spinning` must be of type bool"):
        cpu.cache_key(spec)


def test_bound_runs_reuse_their_memory(tmp_path: Path) -> None:
    """Tried on the CPU's memory; on a GPU the contract's test does it."""
    opened = cpu.open(built("fp32", tmp_path))
    assert isinstance(opened, ort.OrtSession)
    bound = ort.bind_dynamic(opened.session, images(), "cpu", 0)
    first = bound.binding.get_outputs()[0].data_ptr()
    bound.run()
    assert bound.binding.get_outputs()[0].data_ptr() == first
    np.testing.assert_array_equal(bound.outputs()["scores"], opened.run(images())["scores"])


def test_a_captured_session_keeps_to_one_memory(tmp_path: Path) -> None:
    """A CUDA graph replays addresses, so new values must go where the first ones were."""
    model = mixed()
    model.graph.inputs[0].shape = ir.Shape((2, 3, 16, 16))
    model.graph.outputs[0].shape = ir.Shape((2, 24))
    onnx_io.save(model, tmp_path / "fixed.onnx")
    session = ort.create_session(tmp_path / "fixed.onnx", ort.session_options(), [cpu.PROVIDER])
    plain = ort.OrtSession(session, lambda: Coverage({}))
    captured = ort.OrtSession(session, lambda: Coverage({}), cuda_graph=True)
    both = images(4)["image"]
    places = set()
    for feeds in ({"image": both[:2]}, {"image": both[2:]}):
        np.testing.assert_array_equal(captured.run(feeds)["scores"], plain.run(feeds)["scores"])
        places.add(captured.bindings[0].inputs["image"].data_ptr())
    assert len(places) == 1


def test_a_captured_session_refuses_outputs_of_open_shape(tmp_path: Path) -> None:
    opened = cpu.open(built("fp32", tmp_path))
    assert isinstance(opened, ort.OrtSession)
    captured = ort.OrtSession(opened.session, opened.read_coverage, cuda_graph=True)
    with pytest.raises(QConvertError, match="needs fixed shapes, the output `scores`"):
        captured.run(images())


def test_nodes_are_told_by_provider(tmp_path: Path) -> None:
    engine = built("fp32", tmp_path)
    session = cpu.open(engine)
    assert isinstance(session, ort.OrtSession)
    taken = ort.nodes_by_provider(session.session)
    assert ort.count_nodes(taken) == {
        cpu.PROVIDER: len(ir.load(engine.folder / engine.graph).graph)
    }
    assert "Conv stem" in taken[cpu.PROVIDER]
