"""The model repository for Triton, read as strictly as Triton does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import qconvert
from qconvert.backends import cuda, tensorrt, tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.cli.package import FORMATS
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package import triton
from qconvert.package.bundle import Bundle
from qconvert.package.pack import WRITERS, Format, PackageOptions, write_package
from qconvert.run.finished_run import load_run
from tests.conftest import Outcome
from tests.package.triton_schema import parse
from tests.runs import CLASSES

IMAGE = TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24))
SCORES = TensorSpec("y", np.dtype("float32"), ("N", 10))


def test_the_formats_of_the_command_are_those_of_the_code() -> None:
    assert FORMATS == tuple(WRITERS) == get_args(Format)


def test_a_cpu_engine_is_served_by_onnx_runtime_with_its_classes(
    world: Path, qconvert: Callable[..., Outcome]
) -> None:
    done = qconvert("package", "run", "--format", "triton", "--engine", "cpu-int8", "-o", "models")
    assert done.code == 0, done.err
    assert "VNNI" in done.err
    place = Path("models/model")
    config = parse((place / "config.pbtxt").read_text())
    assert (config.name, config.platform) == ("model", "onnxruntime_onnx")
    assert config.max_batch_size == 32
    assert (config.input[0].name, list(config.input[0].dims)) == ("image", [3, 16, 16])
    assert (config.output[0].name, list(config.output[0].dims)) == ("scores", [24])
    assert config.output[0].label_filename == "labels.txt"
    assert config.instance_group[0].kind == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert (place / "labels.txt").read_text().splitlines() == list(CLASSES)
    engine = Path("run/engines/cpu-int8")
    assert (place / "1/model.onnx").read_bytes() == (engine / "model.onnx").read_bytes()
    assert "docker run --rm -p" in (place / "README.md").read_text()


def test_other_models_of_a_repository_are_left_alone(world: Path) -> None:
    run = load_run(Path("run"))
    for name in ("first", "second"):
        write_package(run, PackageOptions("triton", Path("models"), "cpu-fp32", name=name))
    assert sorted(each.name for each in Path("models").iterdir()) == ["first", "second"]
    with pytest.raises(UsageError, match="`models/first` is there already"):
        write_package(run, PackageOptions("triton", Path("models"), "cpu-fp32", name="first"))


def test_an_engine_for_rtx_is_refused_with_a_way_out(world: Path) -> None:
    run = load_run(Path("run"))
    with pytest.raises(UsageError, match="no backend for engines of TensorRT for RTX") as caught:
        write_package(run, PackageOptions("triton", Path("models"), "tensorrt-rtx-fp32"))
    assert "--engine NAME" in caught.value.hint
    assert not Path("models").exists()


def shipment(engine: Engine, *specs: TensorSpec) -> Bundle:
    inputs, outputs = specs[:1] or (IMAGE,), specs[1:] or (SCORES,)
    return Bundle("net", engine, inputs, outputs, (1, 8, 32), 20)


def made(backend: Any, files: tuple[str, ...], profile: Profile, **options: Any) -> Engine:
    """Return an engine as the backend would leave it, its files empty."""
    recipe = backend.recipe(BuildSpec("fp32", profile, options=options))
    folder = Path("engine")
    folder.mkdir()
    for name in ("model.onnx", *files):
        (folder / name).write_bytes(name.encode())
    return Engine(recipe["backend"], "fp32", folder, "model.onnx", files, recipe)


PLAN = ("model_ctx.onnx", "model.engine")


@pytest.mark.parametrize("builder", ["provider", "native"])
def test_an_engine_of_tensorrt_is_a_plan_with_its_profile(builder: str) -> None:
    engine = made(tensorrt, PLAN, Profile(1, 4, 16), builder=builder)
    notes = triton.write(shipment(engine), Path("net"))
    config = parse(Path("net/config.pbtxt").read_text())
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.instance_group[0].kind == 1
    assert Path("net/1/model.plan").read_bytes() == b"model.engine"
    assert [each.name for each in Path("net/1").iterdir()] == ["model.plan"]
    assert notes[0].startswith("the server needs TensorRT")
    assert "--gpus all" in Path("net/README.md").read_text()


@pytest.mark.parametrize(
    ("files", "options", "why"),
    [
        (("model.onnx", "a.engine", "b.engine"), {"allow-fallback": True}, "run elsewhere"),
        (("model_ctx.onnx", "model.stripped.engine"), {"weight-stripped": True}, "no weights"),
    ],
)
def test_an_engine_of_tensorrt_that_is_not_whole_is_refused(
    files: tuple[str, ...], options: dict[str, bool], why: str
) -> None:
    engine = made(tensorrt, files, Profile(), **options)
    with pytest.raises(UsageError, match=why):
        triton.write(shipment(engine), Path("net"))


def test_an_engine_that_needs_several_images_is_refused() -> None:
    engine = made(tensorrt, PLAN, Profile(2, 4, 8))
    with pytest.raises(UsageError, match="no fewer than 2 images") as caught:
        triton.write(shipment(engine), Path("net"))
    assert "--profile 1,4,8" in caught.value.hint


def test_shapes_become_dims_without_the_batch_or_whole_where_it_is_fixed(tiny: Path) -> None:
    engine = made(cuda, ("model.onnx",), Profile())
    onnx_io.save(onnx_io.load(tiny), engine.folder / "model.onnx")
    specs = (
        TensorSpec("tokens", np.dtype("int64"), ("N", "length")),
        TensorSpec("one", np.dtype("float16"), ("N",)),
    )
    triton.write(shipment(engine, *specs), Path("open"))
    config = parse(Path("open/config.pbtxt").read_text())
    assert (config.input[0].data_type, list(config.input[0].dims)) == (9, [-1])
    assert (config.output[0].data_type, list(config.output[0].dims)) == (10, [1])
    assert list(config.output[0].reshape.shape) == []
    assert config.output[0].HasField("reshape")
    fixed = (replace(IMAGE, shape=(4, 3, 24, 24)), replace(SCORES, shape=(4, 10)))
    triton.write(shipment(engine, *fixed), Path("fixed"))
    config = parse(Path("fixed/config.pbtxt").read_text())
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, 3, 24, 24])
    assert not config.HasField("dynamic_batching")


def test_threads_and_strange_names_are_written_down() -> None:
    engine = made(cuda, ("model.onnx",), Profile())
    odd = replace(IMAGE, name='say "x"\\')
    served = replace(cuda.triton_spec(engine), parameters={"intra_op_thread_count": "3"})
    lines = triton._config_lines(shipment(engine, odd, SCORES), served, triton.Batching(1, 1))
    config = parse("\n".join(lines))
    assert config.input[0].name == odd.name
    assert config.parameters[0].value.string_value == "3"
    assert not config.HasField("dynamic_batching")
    text = TensorSpec("words", np.dtype("O"), ("N", 1))
    with pytest.raises(UsageError, match="no type for"):
        list(triton._config_lines(shipment(engine, IMAGE, text), served, triton.Batching(1, 1)))


def test_rtx_engines_say_no_themselves() -> None:
    engine = made(tensorrt_rtx, PLAN, Profile())
    with pytest.raises(qconvert.UsageError):
        tensorrt_rtx.triton_spec(engine)
