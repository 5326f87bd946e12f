"""What every backend keeps to: the same tests for all of them, where they work."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qconvert import backends
from qconvert.backends import BACKENDS, cpu, cuda, tensorrt, tensorrt_rtx
from qconvert.backends.base import Availability, Backend, BuildSpec, Engine, Precision, Profile
from qconvert.backends.ort import open_cpu
from qconvert.backends.system_probe import detect
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from tests import fake_backend
from tests.backends.graphs import graph, images, written

# That these modules are backends is for the type checker to prove.
ALL: dict[str, Backend] = {
    "cpu": cpu,
    "cuda": cuda,
    "tensorrt": tensorrt,
    "tensorrt-rtx": tensorrt_rtx,
    "fake": fake_backend,
}
gpu = pytest.mark.gpu
NAMES = [
    "cpu",
    "fake",
    pytest.param("cuda", marks=gpu),
    pytest.param("tensorrt", marks=gpu),
    "tensorrt-rtx",
]
# Half precision by another order of additions, INT8 by a step to the other side of a tie.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1, "int8": 5e-2}
SPEC = BuildSpec("fp32", Profile(1, 2, 4))


@cache
def found(name: str) -> Availability:
    return ALL[name].probe(detect())


def working(name: str, *, runs: bool = False) -> Backend:
    here = found(name)
    if not (here.runs if runs else here.builds):
        pytest.skip(here.reason)
    return ALL[name]


def quiet(text: str, fraction: float | None) -> None:
    """Hear nothing."""


def built(name: str, precision: Precision, root: Path) -> Engine:
    backend = working(name)
    if why := backend.requirements().unsupported.get(precision):
        pytest.skip(why)
    folder = root / "engine"
    folder.mkdir()
    source = written(root, "cpu" if name == "fake" else name, precision)
    return backend.build(source, BuildSpec(precision, Profile(1, 2, 4)), folder, quiet)


def test_every_backend_of_the_table_is_tested_here() -> None:
    assert set(ALL) - {"fake"} == set(BACKENDS)
    assert all(backends.load(name) is ALL[name] for name in BACKENDS)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_is_there_and_its_bytes_are_counted(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    engine = built(name, precision, tmp_path)
    assert (engine.backend, engine.precision, engine.folder) == (
        name,
        precision,
        tmp_path / "engine",
    )
    assert engine.bytes == sum((engine.folder / each).stat().st_size for each in engine.files) > 0
    kept = onnx_io.load(engine.folder / engine.graph)
    wanted = onnx_io.load(tmp_path / f"{precision}.onnx")
    assert onnx_io.fingerprint(kept) == onnx_io.fingerprint(wanted)
    json.dumps(dict(engine.made_with))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_answers_as_its_graph_does(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    working(name, runs=True)
    session = ALL[name].open(built(name, precision, tmp_path))
    for count in (1, 3):
        got = session.run(images(count))
        source = "cpu" if name == "fake" else name
        wanted = open_cpu(graph(source, precision))(images(count))
        assert list(got) == ["scores"]
        np.testing.assert_allclose(
            got["scores"], wanted["scores"], rtol=0, atol=TOLERANCE[precision]
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_counted_once(name: str, precision: Precision, tmp_path: Path) -> None:
    working(name, runs=True)
    coverage = ALL[name].open(built(name, precision, tmp_path)).coverage()
    assert sum(coverage.by_provider.values()) > 0
    if coverage.by_precision is None:
        assert coverage.unknown
    else:
        assert sum(coverage.by_precision.values()) == sum(coverage.by_provider.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_bound_inputs_is_offered_where_there_is_a_device(
    name: str, tmp_path: Path
) -> None:
    working(name, runs=True)
    call = ALL[name].open(built(name, "fp32", tmp_path)).bind(images())
    if name in ("cpu", "fake"):
        assert call is None
    else:
        assert call is not None
        call()


@pytest.mark.parametrize("name", list(ALL))
def test_a_recipe_is_text_the_same_each_time_and_changes_with_the_precision(name: str) -> None:
    recipe = ALL[name].cache_key(SPEC)
    assert recipe == ALL[name].cache_key(SPEC)
    assert all(isinstance(text, str) for pair in recipe.items() for text in pair)
    assert recipe != ALL[name].cache_key(BuildSpec("int8", SPEC.profile))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_setting_that_a_backend_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} has no setting `nonsense`"):
        ALL[name].cache_key(BuildSpec("fp32", Profile(), options={"nonsense": 1}))


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_build_leaves_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    backend, source = working(name), written(tmp_path, "cpu", "fp32")
    folder = tmp_path / "engine"
    folder.mkdir()
    before = sorted(tmp_path.iterdir())

    def interrupted(text: str, fraction: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(source, SPEC, folder, interrupted)
    assert sorted(tmp_path.iterdir()) == before
    again = tmp_path / "again"
    again.mkdir()
    assert backend.build(source, SPEC, again, quiet).bytes > 0


@pytest.mark.parametrize("name", [each for each in NAMES if each != "fake"])
def test_a_folder_that_takes_no_files_is_told(
    name: str, tmp_path: Path, unwritable: Callable[[], Path]
) -> None:
    backend, source = working(name), written(tmp_path, "cpu", "fp32")
    with pytest.raises(QConvertError, match="cannot be written"):
        backend.build(source, SPEC, unwritable(), quiet)


@pytest.fixture
def unwritable(tmp_path: Path) -> Callable[[], Path]:
    """Return a place in which not even the superuser makes files."""

    def make() -> Path:
        place = tmp_path / "place"
        place.write_text("a file, no folder")
        return place

    return make


def test_what_builds_but_does_not_run_says_why_it_does_not_open(tmp_path: Path) -> None:
    working("tensorrt-rtx")
    if found("tensorrt-rtx").runs:
        pytest.skip("it runs here")
    engine = built("tensorrt-rtx", "fp32", tmp_path)
    with pytest.raises(Unavailable, match=r"do not run here: .*RTX GPU"):
        tensorrt_rtx.open(engine)


def test_every_backend_answers_where_its_runtime_is_missing(tmp_path: Path) -> None:
    """A process of its own: here the runtimes are imported already."""
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
    backends.wants(name)
    assert not backends.probe(name, Installed()).builds
    backends.load(name).recipe(spec)
    if name == "cuda":  # it copies the model, which takes no runtime
        continue
    try:
        backends.load(name).build(Path(sys.argv[1]), spec, Path(sys.argv[2]), print)
    except Unavailable as error:
        assert error.hint
    else:
        sys.exit(f"{name} built")
"""
    source = written(tmp_path, "cpu", "fp32")
    (tmp_path / "engine").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "engine")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(backends.__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
