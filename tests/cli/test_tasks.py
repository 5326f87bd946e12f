"""The commands on detectors, segmenters and embeddings."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import qconvert as api
from qconvert.core import onnx_io
from qconvert.graph.patterns import constant_array, set_constant
from qconvert.optimize.faster_blocks import BlockSet, SetTimes, names_of
from qconvert.run import search
from tests.conftest import Outcome, write
from tests.docs.commands import ROOT
from tests.tasks import task_models
from tests.tasks.task_models import COLOURS, SIDE, Scene, write_coco, write_masks, write_scenes

pytestmark = pytest.mark.slow

Command = Callable[..., Outcome]
SETTINGS = {
    "preprocess.preset": "unit",
    "preprocess.resize": "letterbox",
    "quantize.effort": "none",
    "quantize.method": "minmax",
    "bench.seconds": 0.02,
    "bench.batch-sizes": [1],
}
OPTIONS = [option for key, value in SETTINGS.items() for option in ("--set", f"{key}={value}")]
LIMITS = {"gate.max-drop": 1.0, "gate.min-agreement": 95.0}


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a run of a detector that INT8 damages, with its pictures and their truth."""
    root = tmp_path_factory.mktemp("detector")
    write(task_models.detector(outlier=3000), root / "detector.onnx")
    write_scenes(root / "calib", 16, seed=1)
    write_coco(root / "instances_val.json", write_scenes(root / "val", 16, seed=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("QCONVERT_CACHE_DIR", str(root / ".store"))
        api.build(
            "detector.onnx",
            output="run",
            images="calib",
            eval="val",
            task="detect",
            decode="yolo",
            precisions=["fp32", "int8"],
            settings={**SETTINGS, **LIMITS},
        )
    return root


@pytest.fixture
def detector(detector_run: Path, tmp_path: Path) -> Path:
    """Copy the run of the detector into the folder of a test."""
    shutil.copytree(detector_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def report_of(text: str) -> dict[str, Any]:
    """Return a report that the schema of the reference describes."""
    report: dict[str, Any] = json.loads(text)
    jsonschema.validate(
        report, json.loads((ROOT / "docs/reference/report.schema.json").read_text())
    )
    return report


def accuracy_of(report: dict[str, Any], name: str = "cpu-int8") -> dict[str, Any]:
    (variant,) = (variant for variant in report["variants"] if variant["name"] == name)
    accuracy: dict[str, Any] = variant["accuracy"]
    return accuracy


@pytest.mark.usefixtures("detector")
def test_report_of_a_detector_has_metrics_gates_and_pictures() -> None:
    report = report_of(Path("run/report.json").read_text())
    baseline, fp32, int8 = (
        report["baseline"],
        *(accuracy_of(report, name) for name in ("cpu-fp32", "cpu-int8")),
    )
    assert baseline["metrics"] == fp32["metrics"]
    assert baseline["metrics"]["map"] > 0.9
    assert int8["metrics"]["map"] < 0.3
    for accuracy in (baseline, fp32, int8):
        assert (accuracy["task"], accuracy["primary"]) == ("detect", "map")
        assert all(0 <= value <= 1 for value in accuracy["metrics"].values())
        assert accuracy["top1"] is None
        assert len(accuracy["curve"]) == 101
    change = 100 * (int8["metrics"]["map"] - baseline["metrics"]["map"])
    assert int8["delta_pp"] == pytest.approx(change)
    assert (fp32["delta_pp"], fp32["half_width_pp"], fp32["agreement"]) == (0, 0, 100)
    assert int8["pictures"]
    assert {shift["label"] for shift in int8["shifts"]} == {0, 1, 2}
    assert report["evidence"]["classes"] == dict(zip("012", COLOURS, strict=True))
    gates = {gate["name"]: gate for gate in report["gates"]}
    assert gates["max-drop"]["value"] == pytest.approx(-change)
    assert gates["max-drop"]["metric"] == "mAP"
    assert not any(gate["passed"] for gate in report["gates"])
    assert "task `detect`: decoder `yolo`: `output0` [N, 7, 84]: 3 classes" in report["notes"]


@pytest.mark.usefixtures("detector")
def test_every_form_of_the_report_shows_the_metric(qconvert: Command) -> None:
    for form, words in (
        ("text", ("mAP.50", "AR@100", "of mAP, limit 1.00 pp", "agrees with FP32 on")),
        ("md", ("mAP.50", "AR@100", "Gates")),
        ("html", ("mAP.50", "AR@100", "red", "data:image/jpeg")),
        ("json", ('"primary": "map"', '"map50"')),
    ):
        shown = qconvert("report", "run", "--format", form)
        assert shown.code == 0, shown.err
        for word in words:
            assert word in shown.out, (form, word)
        assert "top-1" not in shown.out
    card = qconvert("report", "run", "--format", "card", "--engine", "cpu-int8").out
    front = card.split("---")[1]
    assert "type: object-detection" in front
    assert "map50" in front


@pytest.mark.usefixtures("detector")
def test_detector_is_evaluated_on_pictures_without_truth(qconvert: Command) -> None:
    write_scenes(Path("others/val"), 5, seed=3)
    outcome = qconvert("evaluate", "run", "--eval", "others/val")
    assert outcome.code == 1
    assert "Accuracy, % of 5 images" in outcome.out
    assert "mAP needs boxes: COCO JSON, YOLO or VOC files" in " ".join(outcome.out.split())
    assert "max-drop: `cpu-int8` was not measured (mAP needs boxes" in outcome.out
    assert "min-agreement: `cpu-int8` agrees with FP32 on 0.00 %" in outcome.out


def _write_yolo(scenes: Sequence[Scene]) -> None:
    Path("truth").mkdir()
    Path("truth/classes.txt").write_text("\n".join(COLOURS))
    for number, scene in enumerate(scenes):
        centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / (2 * SIDE)
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]) / SIDE
        rows = zip(scene.labels, *centres.T, *sides.T, strict=True)
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        Path(f"truth/{number:04}.txt").write_text(text)


def _write_voc(scenes: Sequence[Scene]) -> None:
    Path("truth").mkdir()
    Path("truth/classes.txt").write_text("\n".join(COLOURS))
    for number, scene in enumerate(scenes):
        objects = "".join(
            f"<object><name>{COLOURS[label]}</name><bndbox><xmin>{box[0] + 1}</xmin>"
            f"<ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for box, label in zip(scene.boxes, scene.labels, strict=True)
        )
        Path(f"truth/{number:04}.xml").write_text(f"<annotation>{objects}</annotation>")


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("write_truth", [_write_yolo, _write_voc])
def test_formats_of_truth_give_the_same_map(
    write_truth: Callable[[Sequence[Scene]], None], qconvert: Command
) -> None:
    write_truth([task_models.draw_scene(2000 + number) for number in range(16)])
    before = accuracy_of(report_of(Path("run/report.json").read_text()))
    outcome = qconvert("evaluate", "run", "--labels", "truth", "--json")
    after = accuracy_of(report_of(outcome.out))
    assert after["metrics"]["map"] == pytest.approx(before["metrics"]["map"], abs=0.01)
    assert after["labelled"] == 16


@pytest.mark.usefixtures("detector")
def test_resumed_run_keeps_the_scores_of_other_engines(qconvert: Command) -> None:
    before = accuracy_of(report_of(Path("run/report.json").read_text()))
    outcome = qconvert("build", "--from", "run", "--precision", "fp16", "--json")
    report = report_of(outcome.out)
    assert accuracy_of(report) == before
    assert accuracy_of(report, "cpu-fp16")["metrics"]["map"] > 0.9
    compared = qconvert(
        "compare", "run/engines/cpu-fp32", "run/engines/cpu-int8", "--images", "val"
    )
    assert compared.code == 0, compared.err
    assert "output0" in compared.out


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "segment", "--decode", ""), "look like those of `--task detect`"),
        (("--decode", "detr"), "the decoder `detr` does not fit the outputs"),
        (("--decode", "yol"), "there is no decoder `yol`; did you mean `yolo`?"),
        (("--decode", "no_such:f"), "there is no module `no_such` here"),
        (("--metric", "no_such:f"), "there is no module `no_such` here"),
        (("--labels", "nowhere"), "`nowhere` does not exist"),
        (("--labels", "short"), "has no file for any picture"),
        (("--labels", "four.json"), "is not a class of the model, which has 3"),
    ],
)
def test_wrong_words_of_the_user_are_refused(
    options: Sequence[str], words: str, qconvert: Command
) -> None:
    Path("short").mkdir()
    Path("short/other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    scenes = [task_models.draw_scene(2000 + number) for number in range(16)]
    scenes[3].labels[0] = 3
    write_coco(Path("four.json"), scenes, [*COLOURS, "grey"])
    outcome = qconvert("evaluate", "run", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in " ".join(outcome.err.split())
    assert "hint: " in outcome.err


@pytest.mark.usefixtures("detector")
def test_user_decodes_and_scores_by_functions_of_their_own(qconvert: Command) -> None:
    Path("mine.py").write_text(
        "import numpy as np\n\n"
        "def boxes(outputs, frames):\n"
        "    results = []\n"
        "    for rows in outputs['output0']:\n"
        "        x, y, w, h = rows[:4]\n"
        "        corners = np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), axis=1)\n"
        "        results.append((corners, rows[4:].max(axis=0), rows[4:].argmax(axis=0)))\n"
        "    return results\n\n"
        "def counted(predictions, truths):\n"
        "    pairs = zip(predictions, truths, strict=True)\n"
        "    right = [np.sum(p.scores > 0.25) == len(t.boxes) for p, t in pairs]\n"
        "    return {'right': np.mean(right)}\n"
    )
    options = ("--decode", "mine:boxes", "--metric", "mine:counted")
    outcome = qconvert("evaluate", "run", *options, "--json")
    report = report_of(outcome.out)
    assert report["baseline"]["metrics"] == {"right": 1}
    assert accuracy_of(report)["primary"] == "right"
    (gate,) = (gate for gate in report["gates"] if gate["name"] == "max-drop")
    assert gate["metric"] == "right"
    assert gate["value"] == pytest.approx(-accuracy_of(report)["delta_pp"])


@pytest.mark.usefixtures("detector")
def test_boxes_that_are_not_finite_are_left_out_with_a_note(qconvert: Command) -> None:
    model = task_models.detector()
    grid = model.graph.initializers["grid"]
    places = np.array(constant_array(grid))
    places[..., 64:70] = np.nan
    set_constant(grid, places)
    write(model, Path("nan.onnx"))
    outcome = qconvert("evaluate", "detector.onnx", "nan.onnx", "--eval", "val", *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert "boxes with NaN or infinity left out" in outcome.out


@pytest.mark.usefixtures("detector")
def test_network_that_detects_nothing_has_map_0(qconvert: Command) -> None:
    model = task_models.detector()
    bias = model.graph.initializers["middle_bias"]
    set_constant(bias, np.array([0, 0, 0, 0, -40, -40, -40], np.float32))
    write(model, Path("silent.onnx"))
    outcome = qconvert("evaluate", "silent.onnx", "--eval", "val", *OPTIONS)
    assert outcome.code == 0, outcome.err
    text = " ".join(outcome.out.split())
    assert "FP32 ONNX 0.00 0.00 0.00" in text
    assert "detects nothing on any image" in text
    assert "the FP32 model has only 0.00 % of mAP: check that `--preprocess`" in text
    assert "neither FP32 nor the engine detects anything with a score of 0.25 or more" in text


@pytest.mark.usefixtures("detector")
def test_truth_without_objects_is_named(qconvert: Command) -> None:
    content = json.loads(Path("instances_val.json").read_text())
    Path("empty.json").write_text(json.dumps({**content, "annotations": []}))
    outcome = qconvert("evaluate", "run", "--labels", "empty.json")
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "0 objects in 16 pictures" in text
    assert "the truth holds no object that counts: mAP is undefined" in text
    assert "max-drop: `cpu-int8` was not measured (the truth holds nothing to score by" in text


def _stub_timer(*_: object) -> Callable[[Sequence[BlockSet]], SetTimes]:
    """Take INT8 and mixes for faster than float, whatever this machine is."""
    return lambda sets: {None: [3.0], **{names_of(blocks): [2.0] for blocks in sets}}


@pytest.mark.long
@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("with_truth", [True, False])
def test_search_keeps_what_a_detector_needs_in_float(
    with_truth: bool, qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "make_timer", _stub_timer)
    if not with_truth:
        Path("instances_val.json").unlink()
    images = ("--images", "calib", "--eval", "val", "--budget", "0.5", "--backend", "cpu")
    options = (*images, *OPTIONS, "--set", "search.by-latency=false")
    outcome = qconvert("search", "detector.onnx", *options, "-o", "out", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["outcome"], result["by"]) == ("mixed", "metric" if with_truth else "agreement")
    assert "body" in result["chosen"]["lifted"]
    assert result["chosen"]["confirmed"]["pp"] <= 0.5 < result["int8"]["confirmed"]["pp"]
    built = qconvert(
        "build", "detector.onnx", *options, "--precision", "fp32,mixed", "-o", "mix", "--json"
    )
    report = report_of(built.out)
    assert report["mixes"]["cpu"]["by"] == result["by"]
    accuracy = accuracy_of(report, "cpu-mixed")
    assert accuracy["agreement"] > 95
    assert ("map" in accuracy["metrics"]) == with_truth


@pytest.mark.usefixtures("detector")
def test_measure_that_does_not_fit_a_detector_is_refused(qconvert: Command) -> None:
    options = ("--images", "calib", "--backend", "cpu", *OPTIONS, "-o", "out")
    outcome = qconvert("search", "detector.onnx", *options, "--by", "top-1")
    assert outcome.code == 2
    assert "`--by top-1` does not count predictions of the task `detect`" in outcome.err
    outcome = qconvert("search", "detector.onnx", *options, "--by", "metric")
    assert outcome.code == 2
    assert "`--by metric` needs truth, and no image has any" in outcome.err


def test_segmenter_is_scored_by_masks(qconvert: Command) -> None:
    write(task_models.segmenter(), Path("segmenter.onnx"))
    write_scenes(Path("calib"), 16, seed=1)
    scenes = write_scenes(Path("val"), 10, seed=2)
    write_masks(Path("masks"), scenes)
    options = ("--images", "calib", "--eval", "val", *OPTIONS)
    options = (*options, "--precision", "fp32,int8", "--max-drop", "5", "--json")
    outcome = qconvert("build", "segmenter.onnx", *options, "-o", "run")
    assert outcome.code == 0, outcome.err
    accuracy = accuracy_of(report_of(outcome.out))
    assert (accuracy["task"], accuracy["primary"], accuracy["labelled"]) == ("segment", "miou", 10)
    assert accuracy["metrics"].keys() == {"miou", "dice", "pixel_accuracy"}
    assert accuracy["metrics"]["miou"] > 0.9
    assert accuracy["agreement"] > 99
    # A mask that does not fit its picture is read in another thread, late in the evaluation.
    Image.fromarray(scenes[9].mask[:32]).save("masks/0009.png")
    refused = qconvert("evaluate", "run")
    assert refused.code in (2, 3)
    assert "0009.png" in refused.err
    shutil.rmtree("masks")
    blind = qconvert("evaluate", "run", "--task", "segment", "--json")
    accuracy = accuracy_of(report_of(blind.out))
    assert (accuracy["task"], accuracy["primary"]) == ("segment", "")
    assert accuracy["agreement"] > 99


def test_embeddings_are_scored_by_labels(qconvert: Command) -> None:
    write(task_models.embedder(), Path("embedder.onnx"))
    write_scenes(Path("calib"), 16, seed=1)
    scenes = write_scenes(Path("val"), 12, seed=4, squares=1)
    rows = [f"{number:04}.png,{scene.labels[0]}" for number, scene in enumerate(scenes)]
    Path("val/labels.csv").write_text("\n".join(["file,label", *rows]))
    options = ("--images", "calib", "--eval", "val", "--task", "embed", *OPTIONS)
    options = (*options, "--precision", "fp32,int8", "--max-drop", "10", "--json")
    outcome = qconvert("build", "embedder.onnx", *options, "-o", "run")
    assert outcome.code == 0, outcome.err
    accuracy = accuracy_of(report_of(outcome.out))
    assert (accuracy["task"], accuracy["primary"]) == ("embed", "recall1")
    assert accuracy["metrics"]["recall1"] > 0.9
    assert accuracy["metrics"]["cosine"] > 0.99
    Path("val/labels.csv").unlink()
    blind = qconvert("evaluate", "run")
    assert blind.code == 1
    assert "recall needs labels that several images share" in " ".join(blind.out.split())


def test_image_that_no_decoder_reads_is_compared_by_its_error(qconvert: Command) -> None:
    write(task_models.segmenter(), Path("segmenter.onnx"))
    write_scenes(Path("val"), 4)
    outcome = qconvert("evaluate", "segmenter.onnx", "--eval", "val", *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert "no top-1 and no agreement" in outcome.out
    write_coco(Path("instances_val.json"), write_scenes(Path("val"), 4))
    refused = qconvert("evaluate", "segmenter.onnx", "--eval", "val", *OPTIONS)
    assert refused.code == 2
    text = " ".join(refused.err.split())
    assert "the labels are boxes, but the outputs look like those of `--task segment`" in text
    assert "compare without these: `--task segment`" in text


def test_pictures_that_a_crop_cuts_have_a_note(qconvert: Command) -> None:
    onnx_io.save(task_models.detector(), Path("detector.onnx"))
    write_coco(Path("instances_val.json"), write_scenes(Path("val"), 4))
    cropped = qconvert("evaluate", "detector.onnx", "--eval", "val", "--preprocess", "unit")
    text = " ".join(cropped.out.split())
    assert "preprocessing cuts off a part of 4 pictures" in text
    whole = qconvert("evaluate", "detector.onnx", "--eval", "val", *OPTIONS)
    assert "cuts off" not in whole.out


def test_size_of_pictures_is_an_input(qconvert: Command) -> None:
    write(task_models.sized_detector(), Path("detector.onnx"))
    write_scenes(Path("calib"), 16, seed=1)
    write_coco(Path("instances_val.json"), write_scenes(Path("val"), 9, seed=2))
    options = ("--images", "calib", "--eval", "val", *OPTIONS, "--precision", "fp32,int8")
    outcome = qconvert("build", "detector.onnx", *options, "-o", "run", "--json")
    assert outcome.code == 0, outcome.err
    report = report_of(outcome.out)
    assert report["baseline"]["metrics"]["map"] > 0.9
    fed = "`orig_target_sizes`: fed the size of the network's input, 64×64"
    assert any(note.startswith(fed) for note in report["notes"])
    options = ("--format", "onnxruntime", "--engine", "cpu-fp32", "-o", "packed")
    packed = qconvert("package", "run", *options)
    assert packed.code == 0, packed.err


@pytest.mark.parametrize("classes", [("red", "green"), ("red", "green", "blue", "grey")])
def test_labels_that_name_other_classes_have_a_note(
    classes: Sequence[str], qconvert: Command
) -> None:
    write(task_models.detector(), Path("detector.onnx"))
    scenes = write_scenes(Path("val"), 6)
    drawn = [replace(scene, labels=np.minimum(scene.labels, 1)) for scene in scenes]
    write_coco(Path("instances_val.json"), drawn, classes)
    outcome = qconvert("evaluate", "detector.onnx", "--eval", "val", *OPTIONS)
    assert outcome.code == 0, outcome.err
    text = " ".join(outcome.out.split())
    assert "`output0` [N, 7, 84]: 3 classes" in text
    assert f"the labels name {len(classes)} classes, the model has 3: check that" in text
