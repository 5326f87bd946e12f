"""A package knows how outputs are read: from the evaluation of its run, or from its images."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert import api
from qconvert.backends import cuda
from qconvert.backends.base import Profile
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input
from qconvert.package import triton
from qconvert.package.bundle import HOW_TO_DECODE, make_bundle
from qconvert.package.pack import Packed, write_package
from qconvert.run.run_folder import RunFolder
from qconvert.run.targets import Run, load_run
from qconvert.tasks.decoders import find_decoder
from qconvert.tasks.heads import Head, Sample
from tests.package.test_decoding_scripts import detector, draw_pictures, run_alone, segmenter
from tests.package.test_triton import IMAGE, make_engine
from tests.package.test_triton import make_bundle as make_bundle_of
from tests.package.triton_schema import parse

HEAD = Head("ssd", "box_scores", ("boxes", "scores"), "two outputs", {"strides": (8, 16)}, iou=0.5)


def test_head_of_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_head() is None
    run.write_head(HEAD)
    assert run.read_head() == HEAD
    run.write_head(None)
    assert not run.head.exists()
    run.write_head(None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "Input should be a dictionary"),
        ('{"decoder": 1}', "decoder: Input should be a valid string"),
        (json.dumps({**HEAD.to_dict(), "limit": "x or 1"}), "limit: Input should be a valid"),
        (json.dumps({**HEAD.to_dict(), "iou": 7}), "an IoU is above 0"),
        (json.dumps({**HEAD.to_dict(), "options": {"a": {"b": 1}}}), "options: Input should be"),
    ],
)
def test_changed_head_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.head.write_text(text)
    with pytest.raises(QConvertError, match=f"does not say how outputs are read: {reason}"):
        run.read_head()


def build(model: Any, **options: Any) -> Run:
    """Build a run of a model in fp32, beside pictures."""
    for picture in draw_pictures(Path("pictures")):
        shutil.copyfile(picture, picture.with_name(f"again-{picture.name}"))
    onnx_io.save(model, Path("net.onnx"))
    settings = {
        "bench.seconds": 0.02,
        "bench.batch-sizes": [1],
        "preprocess.preset": "unit",
        "preprocess.resize": "letterbox",
    }
    return api.build("net.onnx", output="run", precisions="fp32", settings=settings, **options)


def package(run: Path | Run, output: str) -> Packed:
    """Package the only engine."""
    return write_package(load_run(Path(run)), "onnxruntime", Path(output), "cpu-fp32")


@pytest.mark.long
def test_package_of_a_scored_detector_needs_neither_its_images_nor_its_place() -> None:
    run = build(detector(), eval="pictures")
    head = RunFolder(run.folder).read_head()
    assert head is not None
    assert head.outputs == ("boxes", "scores")
    for name in ("run", "pictures"):
        shutil.move(name, f"moved-{name}")
    assert package(Path("moved-run"), "pack").notes == ()
    process = run_alone("pack/run.py", "moved-pictures/wide.jpg")
    assert process.stdout.startswith("moved-pictures/wide.jpg: class ")
    folder = RunFolder(Path("moved-run"))
    folder.write_head(replace(head, outputs=("boxes", "sums")))
    with pytest.raises(QConvertError, match="reads the output `sums`, which the engine does not"):
        package(folder.root, "other")
    folder.write_head(replace(head, options={"__import__": 1}))
    with pytest.raises(QConvertError, match="cannot be read by `box_scores` with the options"):
        package(folder.root, "other")
    assert not Path("other").exists()
    folder.write_head(replace(head, decoder="mine:read", layout="user"))
    (note,) = package(folder.root, "other").notes
    assert note.endswith("copy your `mine:read` into the script")
    folder.head.write_text("{")
    (note,) = package(folder.root, "third").notes
    assert "does not say how outputs are read" in note
    printed = run_alone("third/run.py", "moved-pictures/wide.jpg").stdout.splitlines()
    assert printed[0].startswith("moved-pictures/wide.jpg: boxes (1, 96, 4), ")


@pytest.mark.long
def test_head_of_a_run_that_was_not_scored_is_found_by_its_images() -> None:
    run = build(detector(), images="pictures")
    assert RunFolder(run.folder).read_head() is None
    assert package(run, "pack").notes == ()
    expected = make_bundle(load_run(run.folder), "cpu-fp32").head
    assert expected is not None
    assert expected.decoder == "ssd"
    shutil.rmtree("pictures")
    (note,) = package(run, "other").notes
    assert note == HOW_TO_DECODE
    Path("pictures").mkdir()
    Path("pictures/a.jpg").write_bytes(b"no image")
    (note,) = package(run, "third").notes
    assert note.startswith("boxes and masks are not decoded: no image of ")
    assert "not decoded" in Path("third/README.md").read_text()


@pytest.mark.long
def test_task_of_an_evaluation_decides_what_the_script_prints() -> None:
    run = build(segmenter(), eval="pictures")
    assert package(run, "pack").notes == (HOW_TO_DECODE,)
    api.evaluate(run, eval="pictures", settings={"evaluate.task": "segment"})
    assert package(run, "masks").notes == ()
    printed = run_alone("masks/run.py", "pictures/wide.jpg").stdout
    assert printed.startswith("pictures/wide.jpg: class ")
    api.evaluate(run, eval="pictures", settings={"evaluate.task": "embed"})
    assert not RunFolder(run.folder).head.exists()
    assert package(run, "vectors").notes == ()
    assert "logits (1, 4, 16, 24)" in run_alone("vectors/run.py", "pictures/wide.jpg").stdout


def test_triton_folder_decodes_for_clients_and_serves_object_lists_singly() -> None:
    engine = make_engine(cuda, ("model.onnx",), Profile())
    onnx_io.save(detector(), engine.folder / "model.onnx")
    rows = TensorSpec("boxes", np.dtype("float32"), ("N", 96, 4))
    scores = TensorSpec("scores", np.dtype("float32"), ("N", 96, 3))
    preparation = fit_to_input(Preprocess(resize="letterbox"), find_image_input([IMAGE]))
    outputs = {
        "boxes": np.tile(np.array([2, 3, 9, 8], np.float32), (2, 96, 1)),
        "scores": np.tile(np.array([0.1, 0.9, 0.2], np.float32), (2, 96, 1)),
    }
    head = find_decoder(Sample(outputs, (24, 24)))[1]
    bundle = replace(make_bundle_of(engine, IMAGE, rows, scores), preparation=preparation)
    triton.write(replace(bundle, head=head, classes=("a", "b", "c")), Path("net"))
    assert parse(Path("net/config.pbtxt").read_text()).max_batch_size == 32
    assert "label_filename" not in Path("net/config.pbtxt").read_text()
    assert "`decode(outputs, (24, 24))`" in Path("net/README.md").read_text()
    results = runpy.run_path("net/decode.py")["decode"](outputs, (24, 24))
    assert [objects.boxes.tolist() for objects in results] == [[[2, 3, 9, 8]] * 3] * 2
    assert [objects.classes.tolist() for objects in results] == [[1, 2, 0]] * 2
    table = replace(rows, shape=("objects", 7))
    head = Head("boxes", "indexed_rows", ("boxes",), "rows")
    triton.write(replace(bundle, head=head, outputs=(table,)), Path("rows"))
    config = parse(Path("rows/config.pbtxt").read_text())
    assert (config.max_batch_size, list(config.output[0].dims)) == (0, [-1, 7])
    assert list(config.input[0].dims) == [-1, 3, 24, 24]
