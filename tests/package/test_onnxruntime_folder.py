"""The folder for ONNX Runtime: its script says, without qconvert, what qconvert's session says."""

import ast
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
from qconvert.backends import tensorrt, tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input
from qconvert.package import bundle, onnxruntime_folder
from qconvert.package.bundle import Bundle, ImagePreparation, make_bundle
from qconvert.package.onnxruntime_folder import python_string, session_code
from qconvert.package.pack import PackageOptions, write_package
from qconvert.run.finished_run import load_run
from tests.conftest import Outcome
from tests.images.image_folders import all_rows, open_for_test, write_images
from tests.models import floats, from_text
from tests.runs import CLASSES


def ran(script: Path, *files: Path | str) -> list[tuple[str, float]]:
    """Run a script outside of this project and return the classes and scores that it prints."""
    done = subprocess.run(
        [sys.executable, "-I", script, *files], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^.*?: (.*) (\S+)$", done.stdout, re.MULTILINE)
    return [(name, float(score)) for name, score in found]


def test_the_script_prints_what_the_engine_says_also_of_a_moved_run(world: Path) -> None:
    shutil.move("run", "moved")
    done = write_package(
        load_run(Path("moved")), PackageOptions("onnxruntime", Path("pack"), "cpu-int8")
    )
    assert set(done.files) == {
        "README.md", "classes.txt", "optimized.onnx", "preprocess.toml", "run.py",
    }  # fmt: skip
    shutil.move("pack", "elsewhere")
    files = [Path("val/0000.png"), Path("val/0011.png")]
    said = ran(Path("elsewhere/run.py"), *files)
    engine = qconvert.open_engine("moved/engines/cpu-int8")
    for number, file in enumerate(files):
        (batch,) = engine.read(file)
        scores = engine(batch.feeds)["scores"][0]
        wanted = [(CLASSES[at], scores[at]) for at in scores.argsort()[::-1][:5]]
        mine = said[5 * number : 5 * number + 5]
        assert [name for name, _ in mine] == [name for name, _ in wanted]
        assert np.allclose([a for _, a in mine], [b for _, b in wanted], rtol=1e-4)


def test_the_settings_of_the_session_are_those_of_the_engine(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("run/engines/cpu-int8")
    text = (place / "engine.json").read_text().replace('"threads": 0', '"threads": 1')
    (place / "engine.json").write_text(text.replace('"spinning": "False"', '"spinning": "True"'))
    write_package(load_run(Path("run")), PackageOptions("onnxruntime", Path("pack"), "cpu-int8"))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    loaded: Any = runpy.run_path("pack/run.py")["session"].get_session_options()
    ours: Any = qconvert.open_engine(place).session
    wanted = ours.session.get_session_options()
    assert loaded.intra_op_num_threads == wanted.intra_op_num_threads == 1
    for entry in ("session.x64quantprecision", "session.intra_op.allow_spinning"):
        assert loaded.get_session_config_entry(entry) == wanted.get_session_config_entry(entry)


WAYS = {
    "shorter side and crop": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "an exact size, bicubic": Preprocess(resize=(24, 24), crop="none", interpolation="bicubic"),
    "a larger size, cut": Preprocess(resize=(40, 32), crop=24, interpolation="box"),
    "only cut": Preprocess(resize="none", crop=24, mean=(0.5,), std=(0.5,)),
    "blue first, raw": Preprocess(divisor=1.0, colours="bgr", mean=(103.9, 116.8, 123.7)),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24)),
        TensorSpec("x", np.dtype("float16"), ("N", 24, 24, 3)),
        TensorSpec("x", np.dtype("uint8"), ("N", 1, 24, 24)),
    ],
    ids=["nchw", "nhwc", "gray"],
)
def test_pictures_are_prepared_bit_for_bit_as_here(way: str, spec: TensorSpec) -> None:
    done = WAYS[way]
    if spec.shape[1] == 1:
        done = replace(done, mean=(0.0,), std=(1.0,), colours="rgb")
    sizes = {"wide": (61, 40), "high": (33, 52), "own": (24, 24), "odd": (25, 31)}
    read = reader(ImagePreparation(*fit_to_input(done, find_image_input([spec]))))
    for name, size in sizes.items():
        (picture,) = write_images(Path(name), "a.png", size=size).iterdir()
        wanted = all_rows(open_for_test(Path(name), preprocess=done, spec=spec))
        assert np.array_equal(read(picture), wanted), name


def reader(pictures: ImagePreparation) -> Callable[[Path], Any]:
    """Return the function of a script that reads pictures."""
    engine = Engine("cpu", "fp32", Path(), "m.onnx", ("m.onnx",), {})
    shipment = Bundle("m", engine, (), (), (1, 1, 1), 20, pictures)
    bundle.write_preprocess_file(shipment, Path())
    head = onnxruntime_folder.SCRIPT_HEAD.substitute(name="m", what="PICTURE")
    Path("reader.py").write_text(head + onnxruntime_folder._read_function(pictures))
    found: Callable[[Path], Any] = runpy.run_path("reader.py")["read"]
    return found


def test_pictures_that_do_not_fit_are_named(world: Path) -> None:
    pictures = make_bundle(load_run(Path("run")), "cpu-fp32").preparation
    assert pictures is not None
    only_cut = replace(pictures, preprocess=replace(pictures.preprocess, resize="none"))
    write_images(Path("small"), "a.png", size=(8, 8))
    with pytest.raises(SystemExit, match=r"a\.png: 8x8 does not fit"):
        reader(only_cut)(Path("small/a.png"))
    Image.fromarray(np.zeros((20, 20), np.uint16)).save("deep.png")
    with pytest.raises(SystemExit, match="more than 8 bits"):
        reader(pictures)(Path("deep.png"))


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


def packed(model: Any, **names: Any) -> Path:
    """Build a run of a model in fp32 and pack it."""
    onnx_io.save(model, Path("net.onnx"))
    settings = {"bench.seconds": 0.02, "bench.batch-sizes": [1]}
    run = qconvert.build("net.onnx", output="own", precisions="fp32", settings=settings)
    return write_package(
        run, PackageOptions("onnxruntime", Path("pack"), "cpu-fp32", **names)
    ).folder


def test_inputs_that_are_no_pictures_come_from_arrays() -> None:
    model = from_text(PAIR, axis=np.array([1]))
    place = packed(model)
    assert not (place / "preprocess.toml").exists()
    np.savez("arrays.npz", a=np.ones((2, 4), np.float32), b=np.full((2, 4), 2, np.float32))
    done = subprocess.run(
        [sys.executable, "-I", place / "run.py", "arrays.npz"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "arrays.npz: sum (2, 4), 3 to 3",
        "arrays.npz: top (2,), 3 to 3",
    ]


def test_a_fixed_batch_is_filled_with_the_picture_and_classes_may_be_given(tmp_path: Path) -> None:
    names = "abcdef"
    (tmp_path / "names.txt").write_text("\n".join(names))
    place = packed(from_text(FIXED, w=floats(3, 6)), classes=tmp_path / "names.txt", name="six")
    picture = write_images(tmp_path / "some", "a.png") / "a.png"
    said = ran(place / "run.py", picture)
    engine = qconvert.open_engine("own/engines/cpu-fp32")
    assert list(engine.inputs[0].shape) == [4, 3, 8, 8]
    (batch,) = engine.read(picture)
    scores = engine({"image": np.repeat(batch.feeds["image"], 4, 0)})["scores"][0]
    assert [name for name, _ in said] == [names[at] for at in scores.argsort()[::-1][:5]]
    (tmp_path / "names.txt").write_text("one\ntwo")
    with pytest.raises(UsageError, match="names 2 classes, the model has 6"):
        write_package(
            load_run(Path("own")),
            PackageOptions(
                "onnxruntime", Path("other"), "cpu-fp32", classes=tmp_path / "names.txt"
            ),
        )


def test_the_preprocessing_is_toml_with_every_size_settled(world: Path) -> None:
    write_package(load_run(Path("run")), PackageOptions("onnxruntime", Path("pack"), "cpu-fp32"))
    told = tomllib.loads(Path("pack/preprocess.toml").read_text())
    assert (told["resize"], told["crop"], told["width"], told["layout"]) == (18, 16, 16, "nchw")
    assert told["mean"] == [0.485, 0.456, 0.406]


def made(backend: Any, **options: Any) -> Engine:
    recipe = backend.recipe(BuildSpec("fp32", Profile(), options=options))
    name = recipe["backend"]
    files = ("model_ctx.onnx", "model.engine")
    return Engine(name, "fp32", Path("/run/engines/e"), "model.onnx", files, recipe)


def test_scripts_for_gpus_start_the_provider_as_the_backend_does_or_stop() -> None:
    engine = made(tensorrt, **{"weight-stripped": True})
    text = session_code(engine, tensorrt.load_spec(engine))
    compile(text, "run.py", "exec")
    for part in (
        "import tensorrt",
        '"trt_onnx_model_folder_path": str(HERE)',
        "ORT_DISABLE_ALL",
        '"session.disable_cpu_ep_fallback", "1"',
        'sys.exit("TensorrtExecutionProvider did not start")',
    ):
        assert part in text
    assert "/run/engines" not in text
    rtx = made(tensorrt_rtx)
    text = session_code(rtx, tensorrt_rtx.load_spec(rtx))
    compile(text, "run.py", "exec")
    assert "import onnxruntime_ep_nv_tensorrt_rtx as plugin" in text


def test_an_engine_that_replays_a_graph_is_refused() -> None:
    engine = made(tensorrt, **{"cuda-graph": True})
    shipment = Bundle("m", engine, (), (), (1, 1, 1), 20)
    with pytest.raises(UsageError, match="replays a CUDA graph"):
        onnxruntime_folder.write(shipment, Path())


def test_the_command_packs_the_engine_of_the_verdict(
    world: Path, qconvert: Callable[..., Outcome]
) -> None:
    best = load_run(Path("run")).report.best
    assert best in ("cpu-fp32", "cpu-int8")
    done = qconvert("package", "run", "--format", "onnxruntime", "-o", "pack", "--json")
    assert done.code == 0, done.err
    assert f'"engine": "{best}"' in done.out
    again = qconvert("package", "run", "--format", "onnxruntime", "-o", "pack")
    assert again.code == 2
    assert "`pack` is there already" in again.err
    other = qconvert("package", "val", "--format", "onnxruntime", "-o", "other")
    assert other.code == 2
    assert "not the folder of a run" in other.err
    odd = qconvert("package", "run", "--format", "triton", "-o", "other", "--name", "a/b")
    assert odd.code == 2
    assert not Path("other").exists()


NAMES = ("\U0001f600", "a\"b\\c'{$x}", "a\nb\x1b[31m\x7f\u2028\u202e")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_finds_inputs_and_outputs_whatever_they_are_called(name: str) -> None:
    assert ast.literal_eval(python_string(name)) == name
    assert python_string(name).isascii()
    assert python_string(name).isprintable()
    spec = TensorSpec(name, np.dtype("float32"), ("N", 3, 8, 8))
    reader(ImagePreparation(*fit_to_input(Preprocess(), find_image_input([spec]))))
    assert tomllib.loads(Path("preprocess.toml").read_text("utf-8"))["input"] == name
