"""Scripts of detectors and segmenters: they give qconvert's boxes and masks without qconvert."""

import ast
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from qconvert import demo
from qconvert.backends import tensorrt_rtx
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core import onnx_io
from qconvert.core.tensors import TensorSpec, fixed_batch, run_padded
from qconvert.demo.scenes import draw_scene
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input
from qconvert.package import onnxruntime_folder
from qconvert.package.bundle import Bundle
from qconvert.package.run_script import run_script
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.predictions import ClassMap, Detections
from qconvert.tasks.reading import padded_frames
from tests.images.image_folders import open_for_test
from tests.models import floats, from_text

# One cell per 8 pixels: its colours are the scores, and its box grows with them.
DETECTOR = """
<ir_version: 10, opset_import: ["": 20]>
detector (float[BATCH, 3, 64, WIDTH] image) => (OUTPUTS) {
    colours = AveragePool <kernel_shape: ints = [8, 8], strides: ints = [8, 8]> (image)
    rows = Reshape (colours, shape)
    scores = Transpose <perm: ints = [0, 2, 1]> (rows)
    growth = MatMul (scores, weights)
    boxes = Add (growth, cells)
    JOINED
}
"""
SEGMENTER = """
<ir_version: 10, opset_import: ["": 20]>
segmenter (float[N, 3, 64, WIDTH] image) => (OUTPUT logits) {
    small = AveragePool <kernel_shape: ints = [4, 4], strides: ints = [4, 4]> (image)
    logits = LAST
}
"""
INPUT = TensorSpec("image", np.dtype("float32"), ("N", 3, 64, 96))
PREPARATIONS = {
    "letterbox": Preprocess(resize="letterbox"),
    "exact size": Preprocess(resize=(96, 64), crop="none", interpolation="bicubic"),
    "shorter side and crop": Preprocess(resize=80, crop=64),
}
# An EXIF orientation of 6 makes the last of them high.
PICTURES = {
    "wide": (250, 90),
    "high": (70, 131),
    "own": (96, 64),
    "small": (20, 17),
    "turned": (180, 81),
}


def draw_pictures(folder: Path) -> list[Path]:
    """Write pictures of several shapes whose patches have different colours."""
    folder.mkdir()
    for seed, (name, (width, height)) in enumerate(PICTURES.items()):
        patches = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        image = Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned" else 1
        image.save(folder / f"{name}.jpg", exif=exif, quality=95)
    return sorted(folder.iterdir())


def detector(*, width: int = 96, batch: str = "N", form: str = "pairs") -> Any:
    """Return a detector with pairs of boxes and scores, YOLO's one output, or lists of objects."""
    count = width
    top, left = np.divmod(np.arange(count), width // 8)
    cells = 8 * np.stack((left, top, left, top), axis=1).astype(np.float32)
    cells[:, 2:] += 6
    outputs = f"float[{batch}, {count}, 4] boxes, float[{batch}, {count}, 3] scores"
    lines, constants = "", {}
    if form == "lists":
        outputs = f"float[{count}, 4] places, int64[{count}] labels, float[{count}] highest"
        lines = "places = Squeeze (boxes, first)\nrow = Squeeze (scores, first)\n"
        lines += "labels = ArgMax <axis: int = 1, keepdims: int = 0> (row)\n"
        lines += "highest = ReduceMax <keepdims: int = 0> (row, last)\n"
        constants = {"first": np.array([0]), "last": np.array([1])}
    if form == "yolo":
        cells[:, :2], cells[:, 2:] = cells[:, :2] + 5, 9
        outputs = f"float[{batch}, 7, {count}] output0"
        lines = "all = Concat <axis: int = 2> (boxes, scores)\n"
        lines += "output0 = Transpose <perm: ints = [0, 2, 1]> (all)"
    text = DETECTOR.replace("BATCH", batch).replace("WIDTH", str(width))
    return from_text(
        text.replace("OUTPUTS", outputs).replace("JOINED", lines),
        shape=np.array([0, 3, -1]),
        weights=np.abs(floats(3, 4)) * np.array([1, 1, 9, 9], np.float32),
        cells=cells[None],
        **constants,
    )


def segmenter(*, width: int = 96, last: str = "Conv (small, w)", output: str = "") -> Any:
    """Return a segmenter; its last node sees a quarter of the resolution."""
    output = output or f"float[N, 4, 16, {width // 4}]"
    text = SEGMENTER.replace("WIDTH", str(width)).replace("OUTPUT", output).replace("LAST", last)
    weights = {"w": floats(4, 3, 1, 1), "axes": np.array([1])}
    return from_text(text, **{name: weights[name] for name in weights if f"{name})" in last})


@dataclass(frozen=True, eq=False)
class Packed:
    """A package, and what qconvert itself says of each picture."""

    folder: Path
    expected: Mapping[Path, Detections | ClassMap]


def pack(model: Any, preprocess: Preprocess, pictures: list[Path], **changes: Any) -> Packed:
    """Write the package of a model whose head is found from these pictures."""
    source = Path("source")
    source.mkdir()
    onnx_io.save(model, source / "model.onnx")
    inputs, outputs = onnx_io.inputs(model), onnx_io.outputs(model)
    preparation = fit_to_input(preprocess, find_image_input(inputs))
    images = open_for_test(pictures[0].parent, preprocess=preprocess, spec=inputs[0])
    size = fixed_batch(inputs)
    predictions: dict[Path, Detections | ClassMap] = {}
    head: Head | None = None
    session = onnxruntime.InferenceSession(str(source / "model.onnx"))
    names = [spec.name for spec in outputs]
    for batch in images.batches(size or 8):

        def run(feeds: Any) -> Any:
            return dict(zip(names, session.run(names, feeds), strict=True))

        results = run_padded(run, batch.feeds, size)
        frames = padded_frames(batch.frames, size)
        if head is None:
            name = "yolo" if "output0" in results else "auto"
            head = find_decoder(Sample(results, frames[0].input_size), name)[1]
        for item, prediction in zip(batch.items, decode(results, head, frames), strict=False):
            predictions[pictures[0].parent / item.name] = prediction
    engine = Engine("cpu", "fp32", source, "model.onnx", ("model.onnx",), {})
    bundle = Bundle("net", engine, inputs, outputs, (1, 1, 1), 20, preparation, head=head)
    folder = Path("pack")
    folder.mkdir()
    onnxruntime_folder.write(replace(bundle, **changes), folder)
    return Packed(folder, predictions)


# Nothing of qconvert's own needs may be imported.
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("qconvert", "onnx", "onnx_ir", "pydantic", "scipy", "torch"):
            raise ImportError(f"{name} is imported")
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Run a script that may import NumPy, Pillow and ONNX Runtime only."""
    command = [sys.executable, "-I", "-c", GUARD, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load_functions(folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the functions of a script, which has run on a picture."""
    monkeypatch.setattr(sys, "argv", ["run.py", str(picture)])
    return runpy.run_path(str(folder / "run.py"))


def boxes_of(functions: Mapping[str, Any], picture: Path) -> Iterator[NDArray[Any]]:
    """Yield the boxes, scores and classes that a script finds in a picture."""
    image = functions["read_image"](picture)
    objects = list(functions["find_objects"](functions["run"](image), image.size))
    return (np.array(column) for column in zip(*objects, strict=True))


DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "letterbox": ("letterbox", {}),
    "exact size, of YOLO's form": ("exact size", {"form": "yolo"}),
    "shorter side and crop": ("shorter side and crop", {"width": 64}),
    "crop, of YOLO's form": ("shorter side and crop", {"width": 64, "form": "yolo"}),
    "a batch of 1": ("letterbox", {"batch": "1"}),
    "a batch of 4": ("exact size", {"batch": "4", "form": "yolo"}),
    "lists of a batch of 1": ("letterbox", {"batch": "1", "form": "lists"}),
}


@pytest.mark.parametrize("case", DETECTORS)
def test_script_places_boxes_in_the_picture_like_qconvert(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation, options = DETECTORS[case]
    pictures = draw_pictures(tmp_path / "pictures")
    packed = pack(detector(**options), PREPARATIONS[preparation], pictures)
    functions = load_functions(packed.folder, pictures[0], monkeypatch)
    for picture in pictures:
        expected = packed.expected[picture]
        assert isinstance(expected, Detections)
        assert len(expected) > 5
        boxes, scores, classes = boxes_of(functions, picture)
        assert np.abs(boxes - expected.boxes).max() < 1e-3
        assert np.allclose(scores, expected.scores, atol=1e-6)
        assert (classes == expected.classes).all()


SEGMENTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "letterbox": ("letterbox", {}),
    "exact size": ("exact size", {}),
    "crop": ("shorter side and crop", {"width": 64}),
    "argmax": (
        "letterbox",
        {"last": "ArgMax <axis: int = 1, keepdims: int = 0> (small)", "output": "int64[N, 16, 24]"},
    ),
    "a foreground": (
        "exact size",
        {"last": "ReduceMax <keepdims: int = 1> (small, axes)", "output": "float[N, 1, 16, 24]"},
    ),
}


@pytest.mark.parametrize("case", SEGMENTERS)
def test_script_places_masks_in_the_picture_like_qconvert(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation, options = SEGMENTERS[case]
    pictures = draw_pictures(tmp_path / "pictures")
    model = segmenter(**options)
    packed = pack(model, PREPARATIONS[preparation], pictures)
    functions = load_functions(packed.folder, pictures[0], monkeypatch)
    for picture in pictures:
        expected = packed.expected[picture]
        assert isinstance(expected, ClassMap)
        image = functions["read_image"](picture)
        classes = functions["class_map"](functions["run"](image), image.size)
        assert len(np.unique(classes)) > 1
        assert (classes == expected.to_picture()).all()


def test_script_of_a_detector_prints_objects_and_writes_nothing(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    names = ("red one", "green", "blue")
    packed = pack(detector(), PREPARATIONS["letterbox"], pictures, classes=names)
    before = sorted(tmp_path.rglob("*"))
    process = run_alone(packed.folder / "run.py", *pictures, "--threshold", "0.6")
    assert (process.returncode, process.stderr) == (0, "")
    expected = []
    for picture in pictures:
        objects = packed.expected[picture]
        assert isinstance(objects, Detections)
        rows = zip(objects.boxes, objects.scores, objects.classes, strict=True)
        expected += [
            f"{picture}: {names[number]} {score:.4f} {' '.join(f'{edge:.2f}' for edge in box)}"
            for box, score, number in rows
            if score > 0.6
        ]
    assert len(expected) > 20
    assert process.stdout.splitlines() == expected
    assert sorted(tmp_path.rglob("*")) == before
    quiet = run_alone(packed.folder / "run.py", pictures[0], "--threshold", "1")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert quiet.stderr == f"{pictures[0]}: no object of a score above 1.0\n"


def test_script_of_a_segmenter_prints_shares_and_saves_masks_if_asked(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    packed = pack(segmenter(width=64), PREPARATIONS["shorter side and crop"], pictures)
    before = sorted(tmp_path.rglob("*"))
    process = run_alone(packed.folder / "run.py", *pictures)
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    shares: dict[str, list[float]] = {}
    for line in process.stdout.splitlines():
        name, _, share = line.rpartition(" ")
        shares.setdefault(name.partition(":")[0], []).append(float(share))
    assert list(shares) == [str(picture) for picture in pictures]
    for values in shares.values():
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-3)
    masks = tmp_path / "deep/masks"
    command: list[Path | str] = [packed.folder / "run.py", *pictures, "--masks", masks]
    saved = run_alone(*command)
    assert (saved.returncode, saved.stdout) == (0, process.stdout)
    for picture in pictures:
        expected = packed.expected[picture]
        assert isinstance(expected, ClassMap)
        classes = np.asarray(Image.open(masks / f"{picture.stem}.png"))
        assert (classes == np.where(expected.to_picture() < 0, 255, expected.to_picture())).all()
    again = run_alone(*command)
    assert again.returncode == 1
    assert again.stderr == f"{masks / 'high.png'} exists\n"


@pytest.mark.parametrize("case", ["boxes", "masks"])
def test_script_is_python_3_9_and_defines_nothing_twice(case: str, tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    model = detector() if case == "boxes" else segmenter()
    packed = pack(model, PREPARATIONS["letterbox"], pictures, classes=("a", "b", "c"))
    text = (packed.folder / "run.py").read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    assert "strict=" not in text
    assert "qconvert" not in text
    assert max(map(len, text.splitlines())) <= 160
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    names += [node.id for node in targets if isinstance(node, ast.Name)]
    repeated = {name for name in names if names.count(name) > 1}
    assert not repeated
    head = json.loads((packed.folder / "head.json").read_text())
    assert head["decoder"] == ("ssd" if case == "boxes" else "mask")
    assert f"`{head['decoder']}`" in (packed.folder / "README.md").read_text()


def test_class_without_a_name_is_printed_by_its_number(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    packed = pack(detector(), PREPARATIONS["letterbox"], pictures, classes=("only",))
    process = run_alone(packed.folder / "run.py", pictures[0])
    assert ": class 2 " in process.stdout
    assert ": only " in process.stdout


def test_script_of_a_gpu_engine_chooses_a_profile_for_the_picture() -> None:
    preparation = fit_to_input(PREPARATIONS["letterbox"], find_image_input([INPUT]))
    head = find_decoder(Sample({"labels": np.zeros((1, 64, 96), np.int64)}, (96, 64)))[1]
    options = {"more-profiles": "8,8,8"}
    made_with = tensorrt_rtx.cache_key(BuildSpec("fp32", Profile(), options=options))
    engine = Engine("tensorrt-rtx", "fp32", Path(), "m.onnx", ("m_ctx.onnx", "m.engine"), made_with)
    bundle = Bundle("net", engine, (INPUT,), (), (1, 1, 8), 20, preparation, head=head)
    text = run_script(bundle, tensorrt_rtx.load_spec(engine))
    compile(text, "run.py", "exec")
    assert "session.run(names, feeds, run_options(feeds))" in text


@pytest.mark.slow
@pytest.mark.parametrize("net", ["detector", "segmenter"])
def test_script_reads_the_networks_of_the_demo_like_qconvert(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        scene = Image.open(io.BytesIO(draw_scene(5, number).jpeg))
        scene.resize((320 - 50 * number, 200 + 30 * number)).save(folder / f"{number}.png")
    pictures = sorted(folder.iterdir())
    model = onnx_io.load(Path(demo.__file__).with_name(f"{net}.onnx"))
    preprocess = Preprocess(resize="letterbox", mean=(0.5,), std=(0.5,))
    packed = pack(model, preprocess, pictures)
    functions = load_functions(packed.folder, pictures[0], monkeypatch)
    for picture in pictures:
        image = functions["read_image"](picture)
        expected = packed.expected[picture]
        if isinstance(expected, ClassMap):
            classes = functions["class_map"](functions["run"](image), image.size)
            assert (classes != expected.to_picture()).mean() < 1e-4
        else:
            boxes, scores, classes = boxes_of(functions, picture)
            assert np.abs(boxes - expected.boxes).max() < 1e-3
            assert np.allclose(scores, expected.scores, atol=1e-5)
            assert (classes == expected.classes).all()
