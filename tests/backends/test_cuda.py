"""The CUDA engine, as far as it is decided without a GPU."""

from pathlib import Path

import pytest

from qconvert.backends import cuda
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core.errors import UsageError
from tests.backends.graphs import written


def made(spec: BuildSpec) -> Engine:
    return Engine(
        "cuda", spec.precision, Path(), "model.onnx", ("model.onnx",), cuda.cache_key(spec)
    )


def test_nothing_but_the_gpu_unless_it_is_allowed() -> None:
    found = cuda.load_spec(made(BuildSpec("fp32", Profile())))
    assert found.config_entries == {"session.disable_cpu_ep_fallback": "1"}
    assert found.provider_list == [("CUDAExecutionProvider", {"device_id": "0"})]
    found = cuda.load_spec(made(BuildSpec("fp32", Profile(), options={"allow-fallback": True})))
    assert not found.config_entries
    assert found.provider_list[1:] == [("CPUExecutionProvider", {})]


def test_a_cuda_graph_is_for_fixed_shapes(tmp_path: Path) -> None:
    spec = BuildSpec("fp32", Profile(), options={"cuda-graph": True, "device": 1})
    found = cuda.load_spec(made(spec))
    assert found.cuda_graph
    assert found.providers[0][1] == {"device_id": "1", "enable_cuda_graph": "1"}
    (tmp_path / "engine").mkdir()
    source = written(tmp_path, "cuda", "fp32")
    with pytest.raises(UsageError, match="a CUDA graph needs fixed shapes"):
        cuda.build(source, spec, tmp_path / "engine", lambda text, fraction: None)


def test_the_engine_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    source = written(tmp_path, "cuda", "fp16")
    spec = BuildSpec("fp16", Profile())
    engine = cuda.build(source, spec, tmp_path / "engine", lambda text, fraction: None)
    assert (engine.folder / engine.files[0]).read_bytes() == source.read_bytes()
    assert engine.bytes == source.stat().st_size
