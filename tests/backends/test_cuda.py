"""The CUDA backend, as far as it works without a GPU."""

from pathlib import Path

import pytest

from qconvert.backends import cuda
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core.errors import UsageError
from tests.backends.graphs import ignore_progress, write_graph


def engine_of(spec: BuildSpec) -> Engine:
    key = cuda.cache_key(spec)
    return Engine("cuda", spec.precision, Path(), "model.onnx", ("model.onnx",), key)


def test_cpu_fallback_is_disabled_unless_allowed() -> None:
    spec = cuda.load_spec(engine_of(BuildSpec("fp32", Profile())))
    assert spec.config_entries == {"session.disable_cpu_ep_fallback": "1"}
    assert spec.providers == (("CUDAExecutionProvider", {"device_id": "0"}),)
    options = {"allow-fallback": True}
    spec = cuda.load_spec(engine_of(BuildSpec("fp32", Profile(), options=options)))
    assert not spec.config_entries
    assert spec.providers[1:] == (("CPUExecutionProvider", {}),)


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
