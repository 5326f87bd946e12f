"""The page that a build leaves in its run, and `qconvert report --format html`."""

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
from tests.models import mixed
from tests.pictures import draw_folder

Command = Callable[..., Outcome]
BUILD = (
    "build", "net.onnx", "--backend", "cpu,tensorrt-rtx", "--images", "images", "--eval", "eval",
    "--labels", "labels.csv", "--precision", "fp16,int8", "--seconds", "0.02", "-o", "run",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a build was made; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("world")
    write(mixed(), folder / "net.onnx")
    draw_folder(folder / "images", 40)
    draw_folder(folder / "eval", 40)
    files = sorted(file for file in (folder / "eval").rglob("*") if file.is_file())
    lines = [f"{file.relative_to(folder)},{at % 24}" for at, file in enumerate(files)]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "qconvert", *BUILD],
        cwd=folder,
        env={**os.environ, "QCONVERT_CACHE_DIR": str(folder / ".store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "report: run/report.html" in done.stderr
    return folder


@pytest.fixture(autouse=True)
def _run(world: Path, tmp_path: Path) -> None:
    """Give each test a copy of the run, which knows of no images."""
    shutil.copytree(world / "run", tmp_path / "run")
    settings = tmp_path / "run/run.toml"
    settings.write_text(settings.read_text().replace(str(world), str(tmp_path / "gone")))


def told() -> dict[str, object]:
    found: dict[str, object] = json.loads(Path("run/report.json").read_text())
    return found


def test_a_build_explains_its_errors_once_for_each_graph(
    qconvert: Command, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {each["name"]: each for each in told()["variants"]}  # type: ignore[attr-defined]
    layers = {name: each["layers"] for name, each in variants.items() if each["layers"]}
    assert [*layers] == ["cpu-fp16", "cpu-int8", "tensorrt-rtx-fp16", "tensorrt-rtx-int8"]
    assert layers["cpu-fp16"] == layers["tensorrt-rtx-fp16"]
    assert all(each["made_db"] > 0 for each in layers["cpu-int8"])
    with Path("run/analysis/layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, layers.values()))
    evidence = told()["evidence"]
    assert isinstance(evidence, dict)
    assert evidence["ranges"]
    assert evidence["weights"]
    rows_of = [row["variant"] for row in evidence["feature_maps"][0]["rows"]]
    assert rows_of[:4] == ["fp32", "cpu-fp16", "cpu-int8", "tensorrt-rtx-int8"]
    changed = [
        each["image"] for variant in variants.values() for each in variant["accuracy"]["changed"]
    ]
    small = {each["image"]: each["picture"] for each in evidence["thumbnails"]}
    assert {*changed} == {*small}
    pictures = [*small.values(), *(each["picture"] for each in evidence["feature_maps"])]
    assert all((Path("run") / each).is_file() for each in pictures)
    monkeypatch.chdir(world)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(world / ".store"))
    again = qconvert(*BUILD)
    assert again.code == 0, again.err
    assert all("cached" in line for line in again.err.splitlines() if "✓ compare" in line)


def test_the_page_is_written_again_from_the_folder_alone(qconvert: Command, tmp_path: Path) -> None:
    page = Path("run/report.html").read_bytes()
    shutil.move("run", "moved")
    assert qconvert("report", "moved", "--format", "html", "-o", "again.html").code == 0
    assert Path("again.html").read_bytes() == page
    shown = qconvert("report", "moved", "--format", "html")
    assert shown.out.encode() == page
    assert b"Feature maps" in page
    # The JSON alone still gives a page, without pictures.
    shutil.copy("moved/report.json", "alone.json")
    assert "Feature maps" not in qconvert("report", "alone.json", "--format", "html").out
    refused = qconvert("report", "moved", "-o", "text.txt")
    assert refused.code == 2


def test_a_report_reads_no_file_outside_of_its_folder(qconvert: Command) -> None:
    Path("secret.png").write_bytes(b"secret")
    report = told()
    report["evidence"]["thumbnails"] = [{"image": "x", "picture": "../secret.png"}]  # type: ignore[index]
    Path("run/report.json").write_text(json.dumps(report))
    page = qconvert("report", "run", "--format", "html").out
    assert "c2VjcmV0" not in page


def test_answers_on_other_images_bring_their_own_pictures(qconvert: Command) -> None:
    settings = Path("run/run.toml")
    lines = settings.read_text().splitlines()
    settings.write_text("\n".join(line for line in lines if not line.startswith("labels")))
    draw_folder(Path("others"), 30)
    before = told()["evidence"]
    assert qconvert("evaluate", "run", "--eval", "others").code == 0
    after = told()["evidence"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["feature_maps"] == before["feature_maps"]
    variants = told()["variants"]
    assert isinstance(variants, list)
    changed = {each["image"] for v in variants for each in v["accuracy"]["changed"]}
    assert {each["image"] for each in after["thumbnails"]} == changed
    there = {file.name for file in Path("run/analysis/changed").glob("*")}
    assert there == {Path(each["picture"]).name for each in after["thumbnails"]}


def test_a_run_that_goes_on_without_images_keeps_what_it_knew(qconvert: Command) -> None:
    before = told()
    done = qconvert("build", "--from", "run", "--backend", "cpu", "--seconds", "0.02")
    assert done.code == 0, done.err
    after = told()
    assert after["evidence"] == before["evidence"]
    layers = [
        [each["layers"] for each in report["variants"] if each["name"] == "cpu-int8"]  # type: ignore[attr-defined]
        for report in (before, after)
    ]
    assert layers[0] == layers[1] != []


def test_a_card_is_about_the_engine_that_is_named(qconvert: Command) -> None:
    def card(*more: str) -> Outcome:
        return qconvert("report", "run", "--format", "card", *more)

    named = card("--engine", "cpu-fp16")
    assert named.code == 0, named.err
    assert "\n# net, FP16 for `cpu`\n" in named.out
    missing = card("--engine", "cpu-fp61")
    assert (missing.code, "no variant `cpu-fp61`" in missing.err) == (2, True)
    elsewhere = qconvert("report", "run", "--engine", "cpu-fp16")
    assert (elsewhere.code, "`--format card`" in elsewhere.err) == (2, True)
    Path("run/report.json").write_text(json.dumps({**told(), "best": ""}))
    none = card()
    assert none.code == 2
    hinted = none.err.partition("name the one you ship: ")[2].split("`")[1]
    assert card(*hinted.split()).code == 0
