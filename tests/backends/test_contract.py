"""The contract that every backend must satisfy, tested on all backends that work here."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qconvert import backends
from qconvert.backends import BACKENDS, cpu, cuda, cuda_runtime, tensorrt, tensorrt_rtx
from qconvert.backends.base import Availability, Backend, BuildSpec, Engine, Profile, choose_profile
from qconvert.backends.ort import open_cpu
from qconvert.backends.system_probe import detect
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.formats import FORMATS, Precision, QuantizedFormat
from tests import fake_backend
from tests.backends.graphs import ignore_progress, images, make_graph, write_graph

# The type checker proves that these modules are backends.
ALL: dict[str, Backend] = {
    "cpu": cpu,
    "cuda": cuda,
    "tensorrt": tensorrt,
    "tensorrt-rtx": tensorrt_rtx,
    "fake": fake_backend,
}
MARKS = {"cuda": pytest.mark.gpu, "tensorrt": pytest.mark.gpu, "tensorrt-rtx": pytest.mark.long}
NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in ALL]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", *FORMATS)
# The backends with what they build.
CASES = [
    pytest.param(name, precision, marks=MARKS.get(name, ()))
    for name, backend in ALL.items()
    for precision in PRECISIONS
    if not backend.requirements().why_not(precision)
]
# What these tests prove of GPU backends: TensorRT for RTX builds without a GPU.
RUN_ON = {"cuda": "real device", "tensorrt": "real device", "tensorrt-rtx": "real device"}
BUILT_BY = RUN_ON | {"tensorrt-rtx": "real builder"}
# FP16 differs by the order of additions, INT8 by a step where a value lies halfway between two.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1, "int8": 5e-2, "int8-dynamic": 5e-2}
TOLERANCE |= {"int8-weights": 1e-3, "int4-weights": 1e-3}
SPEC = BuildSpec("fp32", Profile(1, 2, 4))


@cache
def availability(name: str) -> Availability:
    return ALL[name].probe(detect())


def require_backend(name: str, *, runs: bool = False) -> Backend:
    status = availability(name)
    if not (status.runs if runs else status.builds):
        pytest.skip(status.reason)
    return ALL[name]


def build(name: str, precision: Precision, root: Path) -> Engine:
    backend = require_backend(name)
    folder = root / "engine"
    folder.mkdir()
    graph = write_graph(root, "cpu" if name == "fake" else name, precision)
    return backend.build(graph, BuildSpec(precision, Profile(1, 2, 4)), folder, ignore_progress)


def test_registered_backends_are_in_contract_tests() -> None:
    assert set(ALL) - {"fake"} == set(BACKENDS)
    assert all(backends.load(name) is ALL[name] for name in BACKENDS)


@pytest.mark.proves("{name}", "build in {precision}", by=BUILT_BY)
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_build_writes_the_graph_and_counts_the_bytes_of_the_engine(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    engine = build(name, precision, tmp_path)
    folder = tmp_path / "engine"
    assert (engine.backend, engine.precision, engine.folder) == (name, precision, folder)
    assert engine.bytes == sum((folder / file).stat().st_size for file in engine.files) > 0
    copy = onnx_io.load(folder / engine.graph)
    original = onnx_io.load(tmp_path / f"{precision}.onnx")
    assert onnx_io.fingerprint(copy) == onnx_io.fingerprint(original)
    json.dumps(dict(engine.made_with))


@pytest.mark.proves("{name}", "outputs in {precision}", by=RUN_ON)
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_engine_outputs_equal_those_of_its_graph(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    require_backend(name, runs=True)
    session = ALL[name].open(build(name, precision, tmp_path))
    reference = open_cpu(make_graph("cpu" if name == "fake" else name, precision))
    for count in (1, 3):
        outputs, expected = session.run(images(count)), reference(images(count))
        assert list(outputs) == ["scores"]
        np.testing.assert_allclose(
            outputs["scores"], expected["scores"], rtol=0, atol=TOLERANCE[precision]
        )


@pytest.mark.proves("{name}", "precision of each layer read back", by=RUN_ON)
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_coverage_counts_every_node_once(name: str, precision: Precision, tmp_path: Path) -> None:
    require_backend(name, runs=True)
    coverage = ALL[name].open(build(name, precision, tmp_path)).coverage()
    assert sum(coverage.by_provider.values()) > 0
    if coverage.by_precision is None:
        assert coverage.unknown
    else:
        assert sum(coverage.by_precision.values()) == sum(coverage.by_provider.values())


@pytest.mark.proves("{name}", "inputs and outputs on the GPU", by=RUN_ON)
@pytest.mark.parametrize("name", NAMES)
def test_bind_returns_a_run_if_there_is_a_device(name: str, tmp_path: Path) -> None:
    require_backend(name, runs=True)
    run = ALL[name].open(build(name, "fp32", tmp_path)).bind(images())
    assert (run is None) == (name in ("cpu", "fake"))
    if run is not None:
        run.enqueue()
        cuda_runtime.synchronize(run.stream)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_has_a_scheme_of_a_format_or_a_reason_of_its_own(
    name: str, format_name: QuantizedFormat
) -> None:
    required = ALL[name].requirements()
    assert (format_name in required.schemes) != bool(required.unsupported.get(format_name))


@pytest.mark.parametrize("name", list(ALL))
def test_cache_key_is_repeatable_text_and_depends_on_the_precision(name: str) -> None:
    key = ALL[name].cache_key(SPEC)
    assert key == ALL[name].cache_key(SPEC)
    assert all(isinstance(text, str) for pair in key.items() for text in pair)
    assert key != ALL[name].cache_key(BuildSpec("int8", SPEC.profile))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_unknown_setting_is_rejected(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}.nonsense`: Unexpected keyword"):
        ALL[name].cache_key(BuildSpec("fp32", Profile(), options={"nonsense": 1}))


@pytest.mark.proves("{name}", "interrupted build", by=BUILT_BY)
@pytest.mark.parametrize("name", NAMES)
def test_interrupted_build_leaves_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    backend, graph = require_backend(name), write_graph(tmp_path, "cpu", "fp32")
    folder = tmp_path / "engine"
    folder.mkdir()
    before = sorted(tmp_path.iterdir())

    def interrupt(text: str, fraction: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(graph, SPEC, folder, interrupt)
    assert sorted(tmp_path.iterdir()) == before
    again = tmp_path / "again"
    again.mkdir()
    assert backend.build(graph, SPEC, again, ignore_progress).bytes > 0


@pytest.mark.parametrize("name", NAMES[:-1])  # `fake` is the last
def test_folder_that_cannot_be_written_is_reported(name: str, tmp_path: Path) -> None:
    backend, graph = require_backend(name), write_graph(tmp_path, "cpu", "fp32")
    not_a_folder = tmp_path / "file"  # not even the superuser can write into it
    not_a_folder.write_text("")
    with pytest.raises(QConvertError, match="cannot be written"):
        backend.build(graph, SPEC, not_a_folder, ignore_progress)


@pytest.mark.long
def test_rtx_engine_that_does_not_run_here_says_why(tmp_path: Path) -> None:
    require_backend("tensorrt-rtx")
    if availability("tensorrt-rtx").runs:
        pytest.skip("it runs here")
    engine = build("tensorrt-rtx", "fp32", tmp_path)
    with pytest.raises(Unavailable, match=r"do not run here: .*RTX GPU"):
        tensorrt_rtx.open(engine)


@pytest.mark.slow
def test_backends_report_a_missing_runtime(tmp_path: Path) -> None:
    """Runs in a separate process, because this one has imported the runtimes already."""
    code = """
import sys
sys.modules.update(onnxruntime=None, tensorrt=None, tensorrt_rtx=None)
from qconvert import backends
from qconvert.backends.base import BuildSpec, Profile
from qconvert.backends.system_probe import Installed
from qconvert.core.errors import Unavailable
from pathlib import Path
spec = BuildSpec("int8", Profile())
for name in backends.BACKENDS:
    backends.requirements(name)
    assert not backends.probe(name, Installed()).builds
    backends.load(name).cache_key(spec)
    if name == "cuda":  # it copies the model, which takes no runtime
        continue
    try:
        backends.load(name).build(Path(sys.argv[1]), spec, Path(sys.argv[2]), print)
    except Unavailable as error:
        assert error.hint
    else:
        sys.exit(f"{name} built")
"""
    graph = write_graph(tmp_path, "cpu", "fp32")
    (tmp_path / "engine").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code, str(graph), str(tmp_path / "engine")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(backends.__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("batch", "number"), [(1, 1), (2, 0), (5, 0), (7, 2), (8, 2), (9, 3), (33, None)]
)
def test_profile_is_the_closest_and_then_the_narrowest(batch: int, number: int | None) -> None:
    sizes = ((1, 4, 8), (1, 1, 1), (4, 8, 8), (8, 8, 32))
    assert choose_profile([Profile(*size) for size in sizes], batch) == number
