"""The commands on a network whose detections have masks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_tasks import OPTIONS
from tests.conftest import Outcome, write
from tests.tasks.task_models import instance_segmenter, write_coco, write_scenes

pytestmark = pytest.mark.slow

Command = Callable[..., Outcome]


def write_outlines(file: Path) -> None:
    """Add to COCO's boxes outlines of the same area."""
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        left, top, width, height = row["bbox"]
        right, bottom = left + width, top + height
        row["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(instance_segmenter(), tmp_path / "masks.onnx")
    write_scenes(tmp_path / "calib", 16, seed=1)
    write_coco(tmp_path / "instances_val.json", write_scenes(tmp_path / "val", 12, seed=2))
    return tmp_path


def test_map_of_masks_decides_where_the_truth_has_outlines(folder: Path, qconvert: Command) -> None:
    boxes_alone = qconvert("evaluate", "masks.onnx", "--eval", "val", *OPTIONS, "--json")
    assert boxes_alone.code == 0, boxes_alone.err
    accuracy = json.loads(boxes_alone.out)["baseline"]
    assert (accuracy["primary"], "map_mask" in accuracy["metrics"]) == ("map", False)
    write_outlines(folder / "instances_val.json")
    outcome = qconvert("evaluate", "masks.onnx", "--eval", "val", *OPTIONS, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    accuracy = report["baseline"]
    assert accuracy["primary"] == "map_mask"
    assert accuracy["metrics"]["map_mask"] > 0.9
    assert accuracy["metrics"]["map"] > 0.9
    assert any(note.endswith("masks from 1 prototype `output1`") for note in report["notes"])
    assert any("objects with masks in 12 pictures" in note for note in report["notes"])


def test_run_reports_masks_and_its_package_says_that_it_reads_boxes(
    folder: Path, qconvert: Command
) -> None:
    write_outlines(folder / "instances_val.json")
    paths = ("--images", "calib", "--eval", "val", "-o", "run")
    limit = ("--set", "gate.max-drop=100")
    outcome = qconvert("build", "masks.onnx", *paths, *OPTIONS, *limit)
    assert outcome.code == 0, outcome.err
    assert "mask mAP.50     mAP   mAP.50   mAP.75     change pp" in outcome.out
    report = json.loads(Path("run/report.json").read_text())
    assert {gate["metric"] for gate in report["gates"]} == {"mask mAP"}
    assert qconvert("package", "run", "--format", "onnxruntime", "-o", "pack").code == 0
    readme = " ".join((folder / "pack/README.md").read_text().split())
    assert "The script reads boxes alone, without the masks of the objects." in readme
