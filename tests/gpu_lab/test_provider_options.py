"""ONNX Runtime's TensorRT provider: the spelling of options, stored engines, and true reasons."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.core.formats import Precision
from tests.backends.graphs import make_graph
from tests.backends.test_tensorrt import IMAGE, build_options, provider_engine
from tests.gpu_lab.engines import do, prepare, result
from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.events import Build, Deserialize, TimingCache
from tests.gpu_lab.table import BUILDERS

# Each set of options in turn, for a model of one operator: prints why the binding refuses it.
BINDING = """
import json, sys
import onnx.parser, onnxruntime
onnxruntime.set_default_logger_severity(4)
onnxruntime.preload_dlls()
import tensorrt
model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> '
    'net (float[N, 3, 224, 224] image) => (float[N, 3, 224, 224] y) { y = Relu (image) }'
)
for options in json.loads(sys.argv[1]):
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            providers=[("TensorrtExecutionProvider", options)],
            enable_fallback=0,
        )
    except Exception as error:
        print(error)
"""


def all_options(folder: Path) -> list[dict[str, str]]:
    """Return the options of every kind of build and load, in that folder."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    sets = []
    for precision, flags, enabled in itertools.product(precisions, (False, True), (False, True)):
        switches: dict[str, Any] = dict.fromkeys(
            ("hardware_compatible", "cuda_graph", "allow_fallback"), enabled
        )
        options = build_options(provider_engine(precision, flags=flags, workspace=1, **switches))
        sets.append({**options, "trt_timing_cache_path": str(folder)})
    for number, options in enumerate(sets):
        for name in ("trt_engine_cache_path", "trt_ep_context_file_path"):
            if name in options:
                options[name] = str(folder / f"{number}_{Path(options[name]).name}")
    return sets


def refused(machine: Host, sets: list[dict[str, str]], cwd: Path) -> list[str]:
    done = machine.run("-c", BINDING, json.dumps(sets), cwd=cwd)
    assert done.code == 0, done.err
    return done.out.splitlines()


@pytest.mark.proves("tensorrt", "spelling of every option", by="real wheel")
def test_binding_takes_every_option(gpu: Callable[..., Host], tmp_path: Path) -> None:
    assert IMAGE.name == "image"
    sets = all_options(tmp_path)
    assert len({name for options in sets for name in options}) > 18
    assert refused(gpu(), sets, tmp_path) == []


def test_binding_refuses_a_number_for_a_switch(gpu: Callable[..., Host], tmp_path: Path) -> None:
    """What qconvert passed before; if it fails, the binding has changed."""
    [line, *_] = refused(gpu(), [{"trt_engine_cache_enable": "1"}], tmp_path)
    assert "'trt_engine_cache_enable' should be 'True' or 'False'" in line


@pytest.mark.proves("tensorrt", "stored engine loaded without a build", by="real wheel")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_provider_engine_is_loaded_without_a_second_build(
    gpu: Callable[..., Host], tmp_path: Path, precision: Precision
) -> None:
    folder = prepare(tmp_path / "e", precision=precision, builder="provider")
    done = do(gpu(), folder, "build", "run")
    values = result(done)
    assert values["files"][0] == "model_ctx.onnx"
    assert values["by_provider"]["TensorrtExecutionProvider"] > 10
    [build] = done.all(Build)
    assert not build.strongly_typed
    flags = {"fp32": set(), "fp16": {"FP16"}, "int8": {"FP16", "INT8"}}[precision]
    assert build.flag_names - {"TF32"} == flags
    assert build.profiles[0]["image"] == [[1, 3, 16, 16], [2, 3, 16, 16], [4, 3, 16, 16]]
    assert all(engine.valid and engine.fits for engine in done.all(Deserialize))


@pytest.mark.proves("tensorrt", "`allow-fallback`", by="real wheel")
def test_engines_with_fallback_are_loaded_with_the_options_of_their_build(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    machine = gpu(refuses=("GlobalAveragePool",))
    folder = prepare(
        tmp_path / "e", precision="int8", builder="provider", allow_fallback=True, level=5
    )
    built = do(machine, folder, "build")
    assert "CUDAExecutionProvider: GlobalAveragePool" in " ".join(result(built)["notes"])
    assert {build.level for build in built.all(Build)} == {5}
    run = do(machine, folder, "run")
    assert result(run)["by_provider"]["CUDAExecutionProvider"] == 1
    assert not run.all(Build)
    assert run.all(Deserialize)


@pytest.mark.proves("tensorrt", "operator that TensorRT refuses", by="real wheel")
def test_operator_that_tensorrt_refuses_is_named(gpu: Callable[..., Host], tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", builder="provider")
    done = do(gpu(refuses=("GlobalAveragePool",)), folder, "build")
    assert done.code == 3
    assert "the TensorRT provider does not run GlobalAveragePool mean" in done.err
    assert "--allow-fallback" in done.err


@pytest.mark.proves("tensorrt", "second GPU", by="real wheel")
def test_engine_of_another_device_of_the_machine(gpu: Callable[..., Host], tmp_path: Path) -> None:
    folder = prepare(tmp_path / "e", builder="provider", device=1)
    done = do(gpu(gpus=("8.6", "9.0")), folder, "build", "run")
    result(done)
    assert {build.gpu for build in done.all(Build)} == {1}
    assert {engine.gpu for engine in done.all(Deserialize)} == {1}


@pytest.mark.proves("tensorrt", "timing cache of one GPU and release", by="real wheel")
def test_provider_keeps_timings_of_one_release(gpu: Callable[..., Host], tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder = prepare(tmp_path / name, builder="provider", timing_cache=str(tmp_path / "times"))
        done = do(gpu(), folder, "build")
        result(done)
    assert [cache.fits for cache in done.all(TimingCache)] == [True]
    [place] = (tmp_path / "times").iterdir()
    assert place.name == "tensorrt-10.16.1.11"


@pytest.mark.proves("tensorrt", "build that fails: TensorRT's reason", by=BUILDERS)
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_build_that_fails_gives_the_reason_of_tensorrt(
    gpu: Callable[..., Host], tmp_path: Path, builder: str
) -> None:
    reason = "Could not find any implementation for node conv_1"
    folder = prepare(tmp_path / "e", builder=builder)
    done = do(gpu(build_error=reason), folder, "build")
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert reason in done.err.splitlines()[0]
    assert "hint: " in done.err


@pytest.mark.proves("tensorrt", "build that crashes", by=BUILDERS)
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_crash_of_a_build_is_an_error(
    gpu: Callable[..., Host], tmp_path: Path, builder: str
) -> None:
    folder = prepare(tmp_path / "e", builder=builder)
    done = do(gpu(crash="build"), folder, "build")
    assert done.code == 3
    assert "crashed on this graph: signal 11 (SIGSEGV)" in done.err


@pytest.mark.proves("tensorrt", "GPU out of memory", by=BUILDERS)
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_device_out_of_memory_is_named(
    gpu: Callable[..., Host], tmp_path: Path, builder: str
) -> None:
    folder = prepare(tmp_path / "e", builder=builder)
    done = do(gpu(engine_mb=100_000), folder, "build", "run")
    assert done.code == 3
    assert "OutOfMemory" in done.err.splitlines()[0]
    assert "hint: `nvidia-smi` shows what uses the memory" in done.err


@pytest.mark.proves("tensorrt", "input name with a colon", by=BUILDERS)
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_input_with_a_colon_is_built_or_refused(
    gpu: Callable[..., Host], tmp_path: Path, builder: str
) -> None:
    model = make_graph("tensorrt", "fp32").clone()
    model.graph.inputs[0].name = "image:0"
    folder = prepare(tmp_path / "e", model=model, builder=builder)
    done = do(gpu(), folder, "build", "run")
    if builder == "native":
        result(done)
    else:
        assert done.code == 2
        assert "rename the input" in done.err
        assert not done.all(Build)
