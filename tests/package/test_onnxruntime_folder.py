"""The ONNX Runtime folder: its script gives qconvert's outputs without qconvert."""

import ast
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qconvert
from qconvert.backends import cpu, tensorrt, tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.backends.int8_class import is_arm
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import ImageInput, Preprocess, find_image_input, fit_to_input
from qconvert.package import onnxruntime_folder
from qconvert.package.bundle import Bundle, make_bundle, write_preprocess_file
from qconvert.package.pack import write_package
from qconvert.package.run_script import run_script
from qconvert.package.session_code import python_string, session_code
from qconvert.run.targets import load_run
from tests.conftest import Outcome
from tests.images.image_folders import all_rows, open_for_test, write_images
from tests.models import floats, from_text
from tests.runs import CLASSES, enlarge_weights


def run_in_isolation(script: Path, *files: Path | str) -> list[tuple[str, float]]:
    """Run a script outside of this project and return the classes and scores that it prints."""
    process = subprocess.run(
        [sys.executable, "-I", script, *files], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    lines = re.findall(r"^.*?: (.*) (\S+)$", process.stdout, re.MULTILINE)
    return [(name, float(score)) for name, score in lines]


def test_script_of_a_moved_run_prints_the_scores_of_the_engine(world: Path) -> None:
    shutil.move("run", "moved")
    package = write_package(load_run(Path("moved")), "onnxruntime", Path("pack"), "cpu-int8")
    assert set(package.files) == {
        "README.md", "classes.txt", "optimized.onnx", "preprocess.toml", "run.py",
    }  # fmt: skip
    shutil.move("pack", "elsewhere")
    files = [Path("val/0000.png"), Path("val/0011.png")]
    printed = run_in_isolation(Path("elsewhere/run.py"), *files)
    engine = qconvert.open_engine("moved/engines/cpu-int8")
    for number, file in enumerate(files):
        (batch,) = engine.read(file)
        scores = engine(batch.feeds)["scores"][0]
        expected = [(CLASSES[at], scores[at]) for at in scores.argsort()[::-1][:5]]
        mine = printed[5 * number : 5 * number + 5]
        assert [name for name, _ in mine] == [name for name, _ in expected]
        assert np.allclose([a for _, a in mine], [b for _, b in expected], rtol=1e-4)


def test_script_says_that_it_was_made_for_another_architecture(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = ("ARM", "AMD64") if is_arm(platform.machine()) else ("x86", "arm64")
    write_package(load_run(Path("run")), "onnxruntime", Path("pack"), "cpu-int8")
    monkeypatch.setattr(sys, "argv", ["run.py", "val/0000.png"])
    runpy.run_path("pack/run.py")
    here = capsys.readouterr()
    monkeypatch.setattr(platform, "machine", lambda: other)
    runpy.run_path("pack/run.py")
    there = capsys.readouterr()
    assert (here.err, there.out) == ("", here.out)
    assert there.err.startswith(f"quantized for {own}: right, but not at its best on ")


@pytest.mark.parametrize("portable", [True, False])
def test_script_loads_the_engine_with_its_session_settings(
    world: Path, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("run/engines/cpu-int8")
    if not portable:
        enlarge_weights(folder / "model.onnx")
    text = (folder / "engine.json").read_text().replace('"threads": 0', '"threads": 1')
    (folder / "engine.json").write_text(text.replace('"spinning": "False"', '"spinning": "True"'))
    write_package(load_run(Path("run")), "onnxruntime", Path("pack"), "cpu-int8")
    monkeypatch.setattr(sys, "argv", ["run.py", "val/0000.png"])
    loaded: Any = runpy.run_path("pack/run.py")["session"].get_session_options()
    ours: Any = qconvert.open_engine(folder).session
    expected = ours.session.get_session_options()
    assert loaded.intra_op_num_threads == expected.intra_op_num_threads == 1
    spinning, exact = "session.intra_op.allow_spinning", "session.x64quantprecision"
    for entry in (spinning,) if portable else (spinning, exact):
        assert loaded.get_session_config_entry(entry) == expected.get_session_config_entry(entry)
    for options in (loaded, expected) if portable else ():
        with pytest.raises(RuntimeError, match=exact):
            options.get_session_config_entry(exact)


PREPROCESSING = {
    "shorter side and crop": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "an exact size, bicubic": Preprocess(resize=(24, 24), crop="none", interpolation="bicubic"),
    "a larger size, cut": Preprocess(resize=(40, 32), crop=24, interpolation="box"),
    "a letterbox": Preprocess(resize="letterbox", interpolation="bicubic"),
    "only cut": Preprocess(resize="none", crop=24, mean=(0.5,), std=(0.5,)),
    "blue first, raw": Preprocess(divisor=1.0, colours="bgr", mean=(103.9, 116.8, 123.7)),
}


@pytest.mark.parametrize("case", list(PREPROCESSING))
@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24)),
        TensorSpec("x", np.dtype("float16"), ("N", 24, 24, 3)),
        TensorSpec("x", np.dtype("uint8"), ("N", 1, 24, 24)),
    ],
    ids=["nchw", "nhwc", "gray"],
)
def test_script_prepares_images_bit_for_bit_like_qconvert(case: str, spec: TensorSpec) -> None:
    preprocess = PREPROCESSING[case]
    if spec.shape[1] == 1:
        preprocess = replace(preprocess, mean=(0.0,), std=(1.0,), colours="rgb")
    sizes = {"wide": (61, 40), "high": (33, 52), "own": (24, 24), "odd": (25, 31)}
    read_image = load_reader(*fit_to_input(preprocess, find_image_input([spec])))
    for name, size in sizes.items():
        (image,) = write_images(Path(name), "a.png", size=size).iterdir()
        expected = all_rows(open_for_test(Path(name), preprocess=preprocess, spec=spec))
        assert np.array_equal(read_image(image), expected), name


def load_reader(preprocess: Preprocess, image_input: ImageInput) -> Callable[[Path], Any]:
    """Return the function of a script that reads images."""
    engine = Engine("cpu", "fp32", Path(), "m.onnx", ("m.onnx",), {})
    bundle = Bundle("m", engine, (), (), (1, 1, 1), 20, (preprocess, image_input))
    write_preprocess_file(preprocess, image_input, Path())
    script = run_script(bundle, cpu.load_spec(engine))
    Path("reader.py").write_text(script.partition("parser = ")[0])
    functions = runpy.run_path("reader.py")
    return lambda file: functions["prepare"](functions["read_image"](file))


def test_script_names_images_that_do_not_fit(world: Path) -> None:
    preparation = make_bundle(load_run(Path("run")), "cpu-fp32").preparation
    assert preparation is not None
    preprocess, image_input = preparation
    write_images(Path("small"), "a.png", size=(8, 8))
    with pytest.raises(SystemExit, match=r"a\.png: 8x8 does not fit"):
        load_reader(replace(preprocess, resize="none"), image_input)(Path("small/a.png"))
    Image.fromarray(np.zeros((20, 20), np.uint16)).save("deep.png")
    with pytest.raises(SystemExit, match="more than 8 bits"):
        load_reader(preprocess, image_input)(Path("deep.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: run.py [-h] IMAGE [IMAGE ...]"),
        (["none.png"], 1, "none.png: No such file or directory"),
        (["run/run.toml"], 1, "cannot identify image file"),
    ],
)
def test_script_explains_wrong_arguments_without_a_traceback(
    arguments: list[str], code: int, message: str, world: Path
) -> None:
    write_package(load_run(Path("run")), "onnxruntime", Path("pack"), "cpu-int8")
    command = [sys.executable, "-I", "pack/run.py", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == code
    assert message in process.stderr
    assert "Traceback" not in process.stderr


PAIR = """
<ir_version: 10, opset_import: ["": 20]>
pair (float[2, 4] a, float[2, 4] b) => (float[2, 4] sum, float[2] top) {
    sum = Add (a, b)
    top = ReduceMax <keepdims: int = 0> (sum, axis)
}
"""
FIXED = """
<ir_version: 10, opset_import: ["": 20]>
fixed (float[4, 3, 8, 8] image) => (float[4, 6] scores) {
    mean = GlobalAveragePool (image)
    flat = Flatten (mean)
    scores = Gemm (flat, w)
}
"""


def package_of(model: Any, **names: Any) -> Path:
    """Build a run of a model in fp32 and pack it."""
    onnx_io.save(model, Path("net.onnx"))
    settings = {"bench.seconds": 0.02, "bench.batch-sizes": [1]}
    run = qconvert.build("net.onnx", output="own", precisions="fp32", settings=settings)
    return write_package(run, "onnxruntime", Path("pack"), "cpu-fp32", **names).folder


@pytest.mark.slow
def test_script_reads_arrays_for_inputs_that_are_no_images() -> None:
    model = from_text(PAIR, axis=np.array([1]))
    folder = package_of(model)
    assert not (folder / "preprocess.toml").exists()
    np.savez("arrays.npz", a=np.ones((2, 4), np.float32), b=np.full((2, 4), 2, np.float32))
    process = subprocess.run(
        [sys.executable, "-I", folder / "run.py", "arrays.npz"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert process.stdout.splitlines() == [
        "arrays.npz: sum (2, 4), 3 to 3",
        "arrays.npz: top (2,), 3 to 3",
    ]


@pytest.mark.long
def test_script_fills_a_fixed_batch_and_prints_the_chosen_classes(tmp_path: Path) -> None:
    names = "abcdef"
    (tmp_path / "names.txt").write_text("\n".join(names))
    folder = package_of(
        from_text(FIXED, w=floats(3, 6)), classes=tmp_path / "names.txt", name="six"
    )
    image = write_images(tmp_path / "some", "a.png") / "a.png"
    printed = run_in_isolation(folder / "run.py", image)
    engine = qconvert.open_engine("own/engines/cpu-fp32")
    assert list(engine.inputs[0].shape) == [4, 3, 8, 8]
    (batch,) = engine.read(image)
    scores = engine({"image": np.repeat(batch.feeds["image"], 4, 0)})["scores"][0]
    assert [name for name, _ in printed] == [names[at] for at in scores.argsort()[::-1][:5]]
    (tmp_path / "names.txt").write_text("one\ntwo")
    with pytest.raises(UsageError, match="names 2 classes, but the model has 6"):
        write_package(
            load_run(Path("own")),
            "onnxruntime",
            Path("other"),
            "cpu-fp32",
            classes=tmp_path / "names.txt",
        )


def test_preprocess_file_has_every_size_resolved(world: Path) -> None:
    write_package(load_run(Path("run")), "onnxruntime", Path("pack"), "cpu-fp32")
    values = tomllib.loads(Path("pack/preprocess.toml").read_text())
    assert (values["resize"], values["crop"], values["width"], values["layout"]) == (
        18,
        16,
        16,
        "nchw",
    )
    assert values["mean"] == [0.485, 0.456, 0.406]


def make_engine(backend: Any, **options: Any) -> Engine:
    key = backend.cache_key(BuildSpec("fp32", Profile(), options=options))
    name = key["backend"]
    files = ("model_ctx.onnx", "model.engine")
    return Engine(name, "fp32", Path("/run/engines/e"), "model.onnx", files, key)


def test_gpu_script_starts_the_provider_or_stops() -> None:
    engine = make_engine(tensorrt)
    text = session_code(engine, tensorrt.load_spec(engine))
    compile(text, "run.py", "exec")
    for part in (
        "import tensorrt",
        '"device_id": ',
        "enable_fallback=0",
        "ORT_DISABLE_ALL",
        '"session.disable_cpu_ep_fallback", "1"',
        'sys.exit("TensorrtExecutionProvider did not start")',
    ):
        assert part in text
    assert "/run/engines" not in text
    rtx = make_engine(tensorrt_rtx)
    text = session_code(rtx, tensorrt_rtx.load_spec(rtx))
    compile(text, "run.py", "exec")
    for part in (
        "import onnxruntime_ep_nv_tensorrt_rtx as plugin",
        "RTLD_GLOBAL",
        "provider_options = {\"enable_cuda_graph\": '0'}",
        'provider_options["nv_runtime_cache_path"] = str(HERE / "kernels")',
        "enable_fallback=0",
    ):
        assert part in text
    assert "PROFILES" not in text
    options = {"runtime-cache": "/var/kernels", "device": 1, "more-profiles": "8,8,8"}
    rtx = make_engine(tensorrt_rtx, **options)
    text = session_code(rtx, tensorrt_rtx.load_spec(rtx))
    compile(text, "run.py", "exec")
    assert "\"nv_runtime_cache_path\": '/var/kernels'" in text
    assert 'HERE / "kernels"' not in text
    assert "devices[1]" in text
    assert "PROFILES = [(1, 1, 8), (8, 8, 8)]" in text


def test_engine_that_onnx_runtime_cannot_load_is_refused() -> None:
    engine = make_engine(tensorrt, **{"weight-stripped": True})
    with pytest.raises(UsageError, match="the engine has no weights"):
        tensorrt.load_spec(engine)
    newer = replace(engine, made_with={**make_engine(tensorrt).made_with, "tensorrt": "11.4.0.106"})
    with pytest.raises(UsageError, match=r"it has TensorRT 10, not 11\.4"):
        tensorrt.load_spec(newer)


def test_engine_that_replays_a_cuda_graph_is_refused() -> None:
    engine = make_engine(tensorrt, **{"cuda-graph": True})
    bundle = Bundle("m", engine, (), (), (1, 1, 1), 20)
    with pytest.raises(UsageError, match="an engine with a CUDA graph"):
        onnxruntime_folder.write(bundle, Path())


def test_command_packages_the_engine_of_the_verdict_and_replaces_nothing(
    world: Path, qconvert: Callable[..., Outcome]
) -> None:
    best = load_run(Path("run")).report.best
    assert best in ("cpu-fp32", "cpu-int8")
    outcome = qconvert("package", "run", "--format", "onnxruntime", "-o", "pack", "--json")
    assert outcome.code == 0, outcome.err
    assert f'"engine": "{best}"' in outcome.out
    again = qconvert("package", "run", "--format", "onnxruntime", "-o", "pack")
    assert again.code == 2
    assert "`pack` exists" in again.err
    other = qconvert("package", "val", "--format", "onnxruntime", "-o", "other")
    assert other.code == 2
    assert "not the folder of a run" in other.err
    refused = qconvert("package", "run", "--format", "triton", "-o", "other", "--name", "a/b")
    assert refused.code == 2
    assert not Path("other").exists()


NAMES = ("\U0001f600", "a\"b\\c'{$x}", "a\nb\x1b[31m\x7f\u2028\u202e")


@pytest.mark.parametrize("name", NAMES)
def test_untrusted_names_cannot_leave_the_script(name: str) -> None:
    assert ast.literal_eval(python_string(name)) == name
    assert python_string(name).isascii()
    assert python_string(name).isprintable()
    spec = TensorSpec(name, np.dtype("float32"), ("N", 3, 8, 8))
    load_reader(*fit_to_input(Preprocess(), find_image_input([spec])))
    assert tomllib.loads(Path("preprocess.toml").read_text("utf-8"))["input"] == name
