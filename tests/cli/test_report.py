"""The page that a build writes into its run, and `qconvert report --format html`."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import mixed

Command = Callable[..., Outcome]
BUILD = (
    "build", "net.onnx", "--backend", "cpu,tensorrt-rtx", "--images", "images", "--eval", "eval",
    "--labels", "labels.csv", "--precision", "fp16,int8", "--seconds", "0.02", "-o", "run",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished build, which tests must not change."""
    folder = tmp_path_factory.mktemp("world")
    write(mixed(), folder / "net.onnx")
    draw_images(folder / "images", 40)
    draw_images(folder / "eval", 40)
    files = sorted(file for file in (folder / "eval").rglob("*") if file.is_file())
    lines = [f"{file.relative_to(folder)},{at % 24}" for at, file in enumerate(files)]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(lines))
    process = subprocess.run(
        [sys.executable, "-m", "qconvert", *BUILD],
        cwd=folder,
        env={**os.environ, "QCONVERT_CACHE_DIR": str(folder / ".store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "report: run/report.html" in process.stderr
    return folder


@pytest.fixture(autouse=True)
def _run(world: Path, tmp_path: Path) -> None:
    """Give each test a copy of a run without images."""
    shutil.copytree(world / "run", tmp_path / "run")
    settings = tmp_path / "run/run.toml"
    settings.write_text(settings.read_text().replace(str(world), str(tmp_path / "gone")))


def load_report() -> dict[str, object]:
    report: dict[str, object] = json.loads(Path("run/report.json").read_text())
    return report


@pytest.mark.slow
def test_build_analyzes_errors_once_per_graph(
    qconvert: Command, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {entry["name"]: entry for entry in load_report()["variants"]}  # type: ignore[attr-defined]
    layers = {name: entry["layers"] for name, entry in variants.items() if entry["layers"]}
    assert [*layers] == ["cpu-fp16", "cpu-int8", "tensorrt-rtx-fp16", "tensorrt-rtx-int8"]
    assert layers["cpu-fp16"] == layers["tensorrt-rtx-fp16"]
    assert all(entry["made_db"] > 0 for entry in layers["cpu-int8"])
    with Path("run/analysis/layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, layers.values()))
    evidence = load_report()["evidence"]
    assert isinstance(evidence, dict)
    assert evidence["ranges"]
    assert evidence["weights"]
    rows_of = [row["variant"] for row in evidence["feature_maps"][0]["rows"]]
    assert rows_of[:4] == ["fp32", "cpu-fp16", "cpu-int8", "tensorrt-rtx-int8"]
    changed = [
        entry["image"] for variant in variants.values() for entry in variant["accuracy"]["changed"]
    ]
    small = {entry["image"]: entry["picture"] for entry in evidence["thumbnails"]}
    assert {*changed} == {*small}
    images = [*small.values(), *(entry["picture"] for entry in evidence["feature_maps"])]
    assert all((Path("run") / entry).is_file() for entry in images)
    monkeypatch.chdir(world)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(world / ".store"))
    again = qconvert(*BUILD)
    assert again.code == 0, again.err
    assert all("cached, " in line for line in again.err.splitlines() if "✓ compare" in line)


@pytest.mark.slow
def test_html_report_is_rendered_from_the_run_folder(qconvert: Command, tmp_path: Path) -> None:
    page = Path("run/report.html").read_bytes()
    shutil.move("run", "moved")
    assert qconvert("report", "moved", "--format", "html", "-o", "again.html").code == 0
    assert Path("again.html").read_bytes() == page
    shown = qconvert("report", "moved", "--format", "html")
    assert shown.out.encode() == page
    assert b"Feature maps" in page
    # The JSON alone still gives a page, without images.
    shutil.copy("moved/report.json", "alone.json")
    assert "Feature maps" not in qconvert("report", "alone.json", "--format", "html").out
    refused = qconvert("report", "moved", "-o", "text.txt")
    assert refused.code == 2


@pytest.mark.slow
def test_report_reads_no_file_outside_its_folder(qconvert: Command) -> None:
    Path("secret.png").write_bytes(b"secret")
    report = load_report()
    report["evidence"]["thumbnails"] = [{"image": "x", "picture": "../secret.png"}]  # type: ignore[index]
    Path("run/report.json").write_text(json.dumps(report))
    page = qconvert("report", "run", "--format", "html").out
    assert "c2VjcmV0" not in page


@pytest.mark.long
def test_evaluation_on_other_images_updates_the_evidence(qconvert: Command) -> None:
    settings = Path("run/run.toml")
    lines = settings.read_text().splitlines()
    settings.write_text("\n".join(line for line in lines if not line.startswith("labels")))
    draw_images(Path("others"), 30)
    before = load_report()["evidence"]
    assert qconvert("evaluate", "run", "--eval", "others").code == 0
    after = load_report()["evidence"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["feature_maps"] == before["feature_maps"]
    variants = load_report()["variants"]
    assert isinstance(variants, list)
    changed = {entry["image"] for v in variants for entry in v["accuracy"]["changed"]}
    assert {entry["image"] for entry in after["thumbnails"]} == changed
    there = {file.name for file in Path("run/analysis/changed").glob("*")}
    assert there == {Path(entry["picture"]).name for entry in after["thumbnails"]}


@pytest.mark.long
def test_run_resumed_without_images_keeps_its_evidence(qconvert: Command) -> None:
    before = load_report()
    outcome = qconvert("build", "--from", "run", "--backend", "cpu", "--seconds", "0.02")
    assert outcome.code == 0, outcome.err
    after = load_report()
    assert after["evidence"] == before["evidence"]
    layers = [
        [entry["layers"] for entry in report["variants"] if entry["name"] == "cpu-int8"]  # type: ignore[attr-defined]
        for report in (before, after)
    ]
    assert layers[0] == layers[1] != []


@pytest.mark.slow
def test_model_card_describes_the_named_engine(qconvert: Command) -> None:
    def card(*more: str) -> Outcome:
        return qconvert("report", "run", "--format", "card", *more)

    named = card("--engine", "cpu-fp16")
    assert named.code == 0, named.err
    assert "\n# net, FP16 for `cpu`\n" in named.out
    missing = card("--engine", "cpu-fp61")
    assert (missing.code, "no variant `cpu-fp61`" in missing.err) == (2, True)
    elsewhere = qconvert("report", "run", "--engine", "cpu-fp16")
    assert (elsewhere.code, "`--format card`" in elsewhere.err) == (2, True)
    Path("run/report.json").write_text(json.dumps({**load_report(), "best": ""}))
    none = card()
    assert none.code == 2
    hinted = none.err.partition("name the engine that you ship: ")[2].split("`")[1]
    assert card(*hinted.split()).code == 0
