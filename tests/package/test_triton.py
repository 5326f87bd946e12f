"""The model repository for Triton, parsed as strictly as Triton does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import qconvert
from qconvert.backends import cuda, tensorrt, tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package import Format, triton
from qconvert.package.bundle import Bundle
from qconvert.package.pack import WRITERS, write_package
from qconvert.run.targets import load_run
from tests.conftest import Outcome
from tests.package.triton_schema import parse
from tests.runs import CLASSES, enlarge_weights

IMAGE = TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24))
SCORES = TensorSpec("y", np.dtype("float32"), ("N", 10))


def test_every_package_format_has_a_writer() -> None:
    assert tuple(WRITERS) == get_args(Format)


@pytest.mark.parametrize("portable", [True, False])
def test_cpu_engine_is_configured_for_onnx_runtime_with_its_classes(
    world: Path, portable: bool, qconvert: Callable[..., Outcome]
) -> None:
    if not portable:
        enlarge_weights(Path("run/engines/cpu-int8/model.onnx"))
    outcome = qconvert(
        "package", "run", "--format", "triton", "--engine", "cpu-int8", "-o", "models"
    )
    assert outcome.code == 0, outcome.err
    assert ("the server's x86 CPU needs VNNI" in outcome.err) is not portable
    folder = Path("models/model")
    config = parse((folder / "config.pbtxt").read_text())
    assert (config.name, config.platform) == ("model", "onnxruntime_onnx")
    assert config.max_batch_size == 32
    assert (config.input[0].name, list(config.input[0].dims)) == ("image", [3, 16, 16])
    assert (config.output[0].name, list(config.output[0].dims)) == ("scores", [24])
    assert config.output[0].label_filename == "labels.txt"
    assert config.instance_group[0].kind == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)
    engine = Path("run/engines/cpu-int8")
    assert (folder / "1/model.onnx").read_bytes() == (engine / "model.onnx").read_bytes()
    assert "docker run --rm -p" in (folder / "README.md").read_text()


def test_second_model_joins_a_repository_and_none_is_replaced(world: Path) -> None:
    run = load_run(Path("run"))
    for name in ("first", "second"):
        write_package(run, "triton", Path("models"), "cpu-fp32", name=name)
    assert sorted(path.name for path in Path("models").iterdir()) == ["first", "second"]
    with pytest.raises(UsageError, match="`models/first` exists"):
        write_package(run, "triton", Path("models"), "cpu-fp32", name="first")


def test_rtx_engine_is_refused_with_a_hint(world: Path) -> None:
    run = load_run(Path("run"))
    with pytest.raises(UsageError, match="no backend for engines of TensorRT for RTX") as caught:
        write_package(run, "triton", Path("deep/models"), "tensorrt-rtx-fp32")
    assert "--engine NAME" in caught.value.hint
    assert not Path("deep").exists()


def make_bundle(engine: Engine, *specs: TensorSpec) -> Bundle:
    inputs, outputs = specs[:1] or (IMAGE,), specs[1:] or (SCORES,)
    return Bundle("net", engine, inputs, outputs, (1, 8, 32), 20)


def make_engine(backend: Any, files: tuple[str, ...], profile: Profile, **options: Any) -> Engine:
    """Return an engine in the form that the backend writes, with empty files."""
    key = backend.cache_key(BuildSpec("fp32", profile, options=options))
    folder = Path("engine")
    folder.mkdir()
    for name in ("model.onnx", *files):
        (folder / name).write_bytes(name.encode())
    return Engine(key["backend"], "fp32", folder, "model.onnx", files, key)


PLAN = ("model_ctx.onnx", "model.engine")


@pytest.mark.parametrize("builder", ["provider", "native"])
def test_tensorrt_engine_becomes_a_plan_with_its_profile(builder: str) -> None:
    engine = make_engine(tensorrt, PLAN, Profile(1, 4, 16), builder=builder)
    notes = triton.write(make_bundle(engine), Path("net"))
    config = parse(Path("net/config.pbtxt").read_text())
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.instance_group[0].kind == 1
    assert Path("net/1/model.plan").read_bytes() == b"model.engine"
    assert [path.name for path in Path("net/1").iterdir()] == ["model.plan"]
    assert notes[0].startswith("the server needs TensorRT")
    assert "--gpus all" in Path("net/README.md").read_text()


@pytest.mark.parametrize(
    ("files", "options", "why"),
    [
        (
            ("model.onnx", "a.engine", "b.engine"),
            {"allow-fallback": True, "builder": "provider"},
            "partly on other providers",
        ),
        (
            ("model_ctx.onnx", "model.stripped.engine"),
            {"weight-stripped": True},
            "does not contain its weights",
        ),
    ],
)
def test_incomplete_tensorrt_engine_is_refused(
    files: tuple[str, ...], options: dict[str, bool | str], why: str
) -> None:
    engine = make_engine(tensorrt, files, Profile(), **options)
    with pytest.raises(UsageError, match=why):
        triton.write(make_bundle(engine), Path("net"))


def test_engine_with_a_minimum_batch_is_refused() -> None:
    engine = make_engine(tensorrt, PLAN, Profile(2, 4, 8))
    with pytest.raises(UsageError, match="at least 2 images") as caught:
        triton.write(make_bundle(engine), Path("net"))
    assert "--profile 1,4,8" in caught.value.hint


def test_dims_leave_out_a_dynamic_batch_and_keep_a_fixed_one(tiny: Path) -> None:
    engine = make_engine(cuda, ("model.onnx",), Profile())
    onnx_io.save(onnx_io.load(tiny), engine.folder / "model.onnx")
    specs = (
        TensorSpec("tokens", np.dtype("int64"), ("N", "length")),
        TensorSpec("one", np.dtype("float16"), ("N",)),
    )
    triton.write(make_bundle(engine, *specs), Path("open"))
    config = parse(Path("open/config.pbtxt").read_text())
    assert (config.input[0].data_type, list(config.input[0].dims)) == (9, [-1])
    assert (config.output[0].data_type, list(config.output[0].dims)) == (10, [1])
    assert list(config.output[0].reshape.shape) == []
    assert config.output[0].HasField("reshape")
    fixed = (replace(IMAGE, shape=(4, 3, 24, 24)), replace(SCORES, shape=(4, 10)))
    triton.write(make_bundle(engine, *fixed), Path("fixed"))
    config = parse(Path("fixed/config.pbtxt").read_text())
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, 3, 24, 24])
    assert not config.HasField("dynamic_batching")


def test_config_holds_threads_and_escapes_names() -> None:
    engine = make_engine(cuda, ("model.onnx",), Profile())
    quoted = replace(IMAGE, name='say "x"\\')
    spec = replace(cuda.triton_spec(engine), parameters={"intra_op_thread_count": "3"})
    lines = triton.config_lines(make_bundle(engine, quoted, SCORES), spec, 1, 1)
    config = parse("\n".join(lines))
    assert config.input[0].name == quoted.name
    assert config.parameters[0].value.string_value == "3"
    assert not config.HasField("dynamic_batching")
    text = TensorSpec("words", np.dtype("O"), ("N", 1))
    with pytest.raises(UsageError, match="no type for"):
        list(triton.config_lines(make_bundle(engine, IMAGE, text), spec, 1, 1))


def test_rtx_backend_has_no_triton_spec() -> None:
    engine = make_engine(tensorrt_rtx, PLAN, Profile())
    with pytest.raises(qconvert.UsageError):
        tensorrt_rtx.triton_spec(engine)
