"""TensorRT's own builder and runtime: the GPU, the types, timings, weights, and interruptions."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from qconvert.core.formats import Precision
from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.engines import do, prepare, result
from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.events import Build, Deserialize, Plugins, Refit, TimingCache, Unanswered


@pytest.mark.proves("tensorrt", "outputs in {precision}", by="real bindings")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_has_the_types_of_its_graph(
    gpu: Callable[..., Host], tmp_path: Path, precision: Precision
) -> None:
    folder = prepare(tmp_path / "e", precision=precision)
    done = do(gpu(), folder, "build", "run")
    values = result(done)
    assert values["files"] == ["model_ctx.onnx", "model.engine"]
    assert values["by_precision"][precision] > 3
    [build] = done.all(Build)
    assert (build.strongly_typed, build.flag_names) == (True, {"TF32"})
    assert build.profiles[0]["image"] == [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]
    assert not done.all(Unanswered)


@pytest.mark.proves("tensorrt", "spelling of every option", by="real bindings")
def test_settings_reach_the_builder(gpu: Callable[..., Host], tmp_path: Path) -> None:
    folder = prepare(
        tmp_path / "e", level=5, workspace=64, hardware_compatible=True, use_tf32=False
    )
    [build] = do(gpu(), folder, "build").all(Build)
    assert (build.level, build.workspace, build.flag_names) == (5, 64 * 2**20, set())
    assert build.hardware == 1


@pytest.mark.proves("tensorrt", "second GPU", by="real bindings")
def test_engine_is_built_on_the_gpu_it_runs_on(gpu: Callable[..., Host], tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", device=1)
    done = do(gpu(gpus=("8.6", "9.0")), folder, "build", "run")
    result(done)
    assert [build.gpu for build in done.all(Build)] == [1]
    assert {engine.gpu for engine in done.all(Deserialize)} == {1}
    assert all(engine.fits for engine in done.all(Deserialize))


@pytest.mark.proves("tensorrt", "TF32 in the notes", by="real bindings")
def test_tf32_is_said_where_the_gpu_has_it(gpu: Callable[..., Host], tmp_path: Path) -> None:
    for name, capability, precision, said in (
        ("ampere", "8.6", "fp32", True),
        ("turing", "7.5", "fp32", False),
        ("half", "8.6", "fp16", False),
    ):
        folder = prepare(tmp_path / name, precision=precision)  # type: ignore[arg-type]
        notes = result(do(gpu(gpus=(capability,)), folder, "build"))["notes"]
        assert ("TF32" in " ".join(notes)) is said, name


@pytest.mark.proves("tensorrt", "timing cache of one GPU and release", by="real bindings")
def test_timings_are_kept_for_one_gpu_and_release(gpu: Callable[..., Host], tmp_path: Path) -> None:
    times = tmp_path / "times"
    for name, capability in (("a", "8.6"), ("b", "8.6"), ("c", "9.0")):
        folder = prepare(tmp_path / name, timing_cache=str(times))
        done = do(gpu(gpus=(capability,)), folder, "build")
        result(done)
        assert [cache.fits for cache in done.all(TimingCache)] == [True]
    files = sorted(path.relative_to(times).as_posix() for path in times.rglob("*.timing"))
    assert files == [f"tensorrt-10.16.1.11/native_sm{number}.timing" for number in (86, 90)]


@pytest.mark.proves("tensorrt", "broken timing cache", by="real bindings")
def test_timings_that_do_not_fit_or_cannot_be_saved_never_fail_a_build(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    times = tmp_path / "times"
    place = times / "tensorrt-10.16.1.11"
    result(do(gpu(gpus=("9.0",)), prepare(tmp_path / "a", timing_cache=str(times)), "build"))
    (place / "native_sm90.timing").rename(place / "native_sm86.timing")
    done = do(gpu(), prepare(tmp_path / "b", timing_cache=str(times)), "build")
    result(done)
    assert [cache.fits for cache in done.all(TimingCache)] == [False, True]
    (tmp_path / "file").write_text("not a folder")
    result(do(gpu(), prepare(tmp_path / "c", timing_cache=str(tmp_path / "file")), "build"))


@pytest.mark.proves("tensorrt", "engine without weights", by="real bindings")
def test_stripped_engine_gets_its_weights_when_it_is_loaded(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "e", weight_stripped=True)
    done = do(gpu(), folder, "build", "run")
    assert result(done)["files"] == ["model_ctx.onnx", "model.stripped.engine", "model.onnx"]
    [build] = done.all(Build)
    assert {"STRIP_PLAN", "REFIT_IDENTICAL"} < build.flag_names
    assert len(done.all(Refit)) == 1
    assert not done.all(Unanswered)


# Detectors end in it; TensorRT brings it along as a plugin, which the parser must find.
BOXES = """
<ir_version: 10, opset_import: ["": 20, "trt.plugins": 1]>
net (float[1, 20, 4] image, float[1, 20, 3] scores) => (int32[1, 1] count, float[1, 10, 4] boxes) {
  positive = Relu (image)
  count, boxes = trt.plugins.EfficientNMS_TRT (positive, scores)
}
"""


PARSE = """
from pathlib import Path
from qconvert.backends.nvinfer import require_parsable
require_parsable("tensorrt", Path("boxes.onnx").absolute(), {})
"""


@pytest.mark.proves("tensorrt", "TensorRT's plugins, as `EfficientNMS_TRT`", by="real bindings")
def test_plugin_of_tensorrt_is_parsed(gpu: Callable[..., Host], tmp_path: Path) -> None:
    # Commands refuse such graphs, whose outputs nothing but TensorRT computes.
    onnx.save(onnx.parser.parse_model(BOXES), tmp_path / "boxes.onnx")
    done = gpu().run("-c", PARSE, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.all(Plugins)


@pytest.mark.proves("tensorrt", "operator that TensorRT refuses", by="real bindings")
def test_refusal_of_the_parser_is_an_error(gpu: Callable[..., Host], tmp_path: Path) -> None:
    done = do(gpu(parse_error="no importer for Foo"), prepare(tmp_path / "e"), "build")
    assert done.code == 3
    assert "TensorRT cannot read this model: " in done.err
    assert "no importer for Foo" in done.err


@pytest.mark.proves("tensorrt", "interrupted build", by="real bindings")
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_ctrl_c_stops_a_build_and_its_child(
    gpu: Callable[..., Host], tmp_path: Path, builder: str
) -> None:
    folder = prepare(tmp_path / "e", builder=builder)
    machine, log = gpu(hang="build"), tmp_path / "log"
    with machine.start(
        "-m", "tests.gpu_lab.engines", folder, "build", cwd=tmp_path, log=log
    ) as process:
        for _ in range(600):
            if log.is_file() and '"build"' in log.read_text():
                break
            time.sleep(0.1)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 15
    assert process.returncode == 130
    assert "interrupted" in err
    assert not list((folder / "engine").glob("*.engine"))
    name = f"{folder}".encode()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if name in line]


def test_engine_of_tensorrt_11_runs_on_the_chosen_gpu(lab: Lab) -> None:
    host = lab.host(lab.machines.gpu(tensorrt="11.4.0.106"), gpus=("8.6", "9.0"))
    folder = prepare(lab.cwd / "e", precision="int8", device=1)
    done = do(host, folder, "build", "run")
    assert set(result(done)["by_provider"]) == {"TensorRT"}
    assert {engine.gpu for engine in done.all(Deserialize)} == {1}
