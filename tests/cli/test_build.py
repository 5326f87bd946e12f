"""`qconvert build` from a model to a report, and the commands that read runs afterwards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert import backends
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import mixed, tiny

Command = Callable[..., Outcome]

QUICK = ("--seconds", "0.02", "--batch-sizes", "1,4")
IMAGES = ("--images", "images", "--eval", "eval")


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_images(tmp_path / "images", 40)
    draw_images(tmp_path / "eval", 24)
    lines = [f"{file.name},{number % 24}" for number, file in enumerate(_files(tmp_path / "eval"))]
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "\n".join(f"eval/{line}" for line in lines)
    )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def built(qconvert: Command, *more: str, code: int = 0) -> Outcome:
    outcome = qconvert("build", "net.onnx", "-o", "run", *QUICK, *more)
    assert outcome.code == code, outcome.err
    return outcome


def variants_of(outcome: Outcome) -> dict[str, dict[str, object]]:
    return {variant["name"]: variant for variant in json.loads(outcome.out)["variants"]}


@pytest.mark.slow
def test_build_measures_every_variant_that_runs_here(qconvert: Command) -> None:
    more = ("--backend", "cpu,tensorrt-rtx", "--labels", "labels.csv", "--json")
    variants = variants_of(built(qconvert, *IMAGES, *more))
    assert list(variants) == [
        "cpu-fp32", "cpu-fp16", "cpu-int8",
        "tensorrt-rtx-fp32", "tensorrt-rtx-fp16", "tensorrt-rtx-int8",
    ]  # fmt: skip
    for name, variant in variants.items():
        assert variant["engine"]["bytes"] == sum(  # type: ignore[index]
            (Path("run/engines") / name / file).stat().st_size
            for file in variant["engine"]["files"]  # type: ignore[index]
        )
        assert variant["accuracy"]["n"] == 24  # type: ignore[index]
        assert variant["accuracy"]["top1"] is not None  # type: ignore[index]
        here = name.startswith("cpu")
        assert [latency["batch"] for latency in variant["latency"]] == ([1, 4] if here else [])  # type: ignore[attr-defined]
        assert variant["accuracy"]["measured_on"] == ("engine" if here else "cpu-simulation")  # type: ignore[index]
        assert ("latency" in variant["unmeasured"]) == (not here)  # type: ignore[operator]
    assert variants["cpu-int8"]["by_precision"]["int8"] > 5  # type: ignore[index]
    assert variants["cpu-fp32"]["accuracy"]["agreement"] == 100  # type: ignore[index]


@pytest.mark.long
def test_run_folder_is_complete_and_has_no_links(qconvert: Command) -> None:
    built(qconvert, *IMAGES)
    here = {file.relative_to("run").as_posix() for file in _files(Path("run"))}
    assert {
        "run.toml", "model.onnx", "report.json", "report.md",
        "calibration/calibration.npz", "calibration/images.txt",
        "engines/cpu-int8/engine.json", "engines/cpu-int8/plan.json",
        "engines/cpu-int8/model.onnx", "engines/cpu-fp32/model.onnx",
    } <= here  # fmt: skip
    assert not any(file.is_symlink() or file.stat().st_nlink > 1 for file in _files(Path("run")))


@pytest.mark.slow
def test_repeated_build_is_cached_and_reports_the_same(qconvert: Command) -> None:
    first = json.loads(built(qconvert, *IMAGES, "--json").out)
    again = built(qconvert, *IMAGES, "--json")
    second = json.loads(again.out)
    for report in (first, second):
        for key in ("created", "seconds", "command"):
            report.pop(key)
        for variant in report["variants"]:
            variant["engine"].pop("stored")
    assert first == second
    steps = [line for line in again.err.splitlines() if "✓" in line and "✓ load" not in line]
    assert steps
    assert all("cached, " in line for line in steps)


@pytest.mark.long
def test_moved_run_resumes_without_its_images(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--plan-only")
    assert not list(Path("run/engines").glob("*/engine.json"))
    shutil.move("run", "moved")
    for gone in ("images", "eval", ".store"):
        shutil.rmtree(gone)
    Path("net.onnx").unlink()
    draw_images(Path("others"), 24)
    outcome = qconvert("build", "--from", "moved", "--eval", "others", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert "✓ calibrate" not in outcome.err
    assert all(
        variant["engine"] and variant["latency"] for variant in variants_of(outcome).values()
    )


@pytest.mark.long
def test_engines_added_to_a_run_join_its_report(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--precision", "fp32")
    both = variants_of(built(qconvert, *IMAGES, "--precision", "int8", "--json"))
    assert [*both] == ["cpu-fp32", "cpu-int8"]
    assert both["cpu-fp32"]["accuracy"]["agreement"] == 100  # type: ignore[index]
    assert "qconvert bench" in both["cpu-fp32"]["unmeasured"]["latency"]  # type: ignore[index]
    resumed = qconvert("build", "--from", "run", "--precision", "fp16", *QUICK, "--json")
    assert resumed.code == 0, resumed.err
    assert variants_of(resumed)["cpu-fp32"]["accuracy"]["agreement"] == 100  # type: ignore[index]
    others = variants_of(
        built(qconvert, *IMAGES, "--precision", "int8", "--eval-count", "16", "--json")
    )
    assert others["cpu-fp32"]["accuracy"] is None
    assert "other images" in others["cpu-fp32"]["unmeasured"]["accuracy"]  # type: ignore[index]


FAST = ("--effort", "none", "--backend", "cpu")


@pytest.mark.long
def test_run_resumes_after_its_images_changed(qconvert: Command) -> None:
    built(qconvert, *IMAGES, *FAST, "--precision", "int8")
    shutil.rmtree("images")
    draw_images(Path("images"), 20, size=16)
    outcome = qconvert("build", "--from", "run", "--precision", "fp16", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["calibration"]["count"] == 40


@pytest.mark.long
def test_config_file_overrides_the_settings_of_a_run(qconvert: Command) -> None:
    built(qconvert, *IMAGES, *FAST, "--precision", "fp16", "--max-size", "1000")
    Path("tight.toml").write_text("[gate]\nmax-size = 0.001\n")
    tight = ("--config", "tight.toml")
    for command in (("build", "--from", "run", *QUICK), ("bench", "run", *QUICK)):
        outcome = qconvert(*command, *tight, "--allow-unmeasured")
        assert outcome.code == 1, outcome.err
        assert "max-size: `cpu-fp16`" in outcome.out
        assert qconvert(*command, *tight, "--max-size", "1000").code == 0
    outcome = qconvert("evaluate", "run", *tight, "--json")
    assert [variant["accuracy"]["n"] for variant in variants_of(outcome).values()] == [24]  # type: ignore[index]
    Path("other.toml").write_text('[quantize]\nmethod = "minmax"\n')
    refused = qconvert("build", "--from", "run", "--config", "other.toml")
    assert refused.code == 2
    assert "  `quantize.method` was not set, now `minmax`\n" in refused.err


@pytest.mark.long
def test_labels_and_count_of_a_run_apply_to_its_own_images_only(qconvert: Command) -> None:
    own = ("--labels", "labels.csv", "--eval-count", "20")
    built(qconvert, *IMAGES, *FAST, "--precision", "fp32", *own)
    draw_images(Path("others"), 24)
    rows = [f"{file.name},{at}" for at, file in enumerate(_files(Path("others")))]
    Path("others/labels.csv").write_text("file,label\n" + "\n".join(rows))
    Path("file.toml").write_text('[evaluate]\nimages = "others"\n')
    for images in (
        ("--eval", "others"),
        ("--set", "evaluate.images=others"),
        ("--config", "file.toml"),
    ):
        assert _labelled(qconvert("evaluate", "run", *images, "--json")) == 24
    for again in ((), ("--eval", "eval")):
        assert _labelled(qconvert("evaluate", "run", *again, "--json")) == 20
    on = ("build", "--from", "run", *QUICK, "--eval", "others", "--json")
    assert _labelled(qconvert(*on)) == 24
    assert _labelled(qconvert("evaluate", "run", "--json")) == 24


def _labelled(outcome: Outcome) -> object:
    """Return the number of labelled images that were evaluated."""
    assert outcome.code == 0, outcome.err
    accuracy: dict[str, object] = variants_of(outcome)["cpu-fp32"]["accuracy"]  # type: ignore[assignment]
    assert accuracy["top1"] is not None
    return accuracy["n"]


@pytest.mark.long
def test_renamed_image_appears_under_its_new_name_in_evidence(qconvert: Command) -> None:
    Path("labels.csv").unlink()
    built(qconvert, *IMAGES, *FAST, "--precision", "int8")
    Path("eval/0000.png").rename("eval/000.png")
    outcome = built(qconvert, *IMAGES, *FAST, "--precision", "int8", "--json")
    shown = {row["image"] for row in json.loads(outcome.out)["evidence"]["feature_maps"]}
    assert shown == {"000.png"}


@pytest.mark.long
def test_int8_engines_of_other_calibration_images_are_refused(qconvert: Command) -> None:
    built(qconvert, *IMAGES, *FAST, "--precision", "int8")
    Path("images/0000.png").unlink()
    refused = built(qconvert, *IMAGES, *FAST, "--precision", "fp16", code=2)
    assert "`run` has engines that were calibrated on other images: `cpu-int8`" in refused.err
    built(qconvert, *IMAGES, *FAST, "--precision", "fp16,int8")


@pytest.mark.long
def test_note_about_shared_images_survives_resuming(qconvert: Command) -> None:
    both = ("--images", "images", "--eval", "images")
    built(qconvert, *both, *FAST, "--precision", "int8")
    shutil.rmtree("images")
    outcome = qconvert("build", "--from", "run", "--precision", "fp16", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert variants_of(outcome)["cpu-int8"]["accuracy"]
    assert "calibration and evaluation share 40 images" in outcome.out


@pytest.mark.long
def test_edited_plan_in_a_run_is_followed(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--plan-only", "--precision", "int8")
    place = Path("run/engines/cpu-int8/plan.json")
    plan = json.loads(place.read_text())
    plan["layers"]["scores"] = {"op": "Gemm", "left": "my reason"}
    place.write_text(json.dumps(plan))
    outcome = qconvert("build", "--from", "run", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    left = variants_of(outcome)["cpu-int8"]["unquantized"]
    assert left == [{"node": "scores", "op": "Gemm", "reason": "my reason"}]


@pytest.mark.long
def test_edited_plan_is_never_overwritten(qconvert: Command) -> None:
    one = (*IMAGES, "--precision", "int8")
    built(qconvert, *one, "--plan-only")
    place = Path("run/engines/cpu-int8/plan.json")
    own = place.read_bytes()
    built(qconvert, *one, "--plan-only")
    plan = json.loads(own)
    plan["layers"]["scores"] = {"op": "Gemm", "left": "my reason"}
    place.write_text(json.dumps(plan))
    for more in ((), ("--plan-only",)):
        refused = built(qconvert, *one, *more, code=2)
        assert f"`{place}` differs from the plan of its graph" in refused.err
        assert "`qconvert build --from run` uses it" in " ".join(refused.err.split())
        assert json.loads(place.read_text()) == plan
    built(qconvert, *IMAGES, "--precision", "fp32")
    outcome = qconvert("build", "--from", "run", "--precision", "int8", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert variants_of(outcome)["cpu-int8"]["unquantized"][0]["reason"] == "my reason"  # type: ignore[index]
    place.unlink()
    built(qconvert, *one)
    assert place.read_bytes() == own
    place.write_text("{")
    built(qconvert, *one)
    assert place.read_bytes() == own


@pytest.mark.slow
def test_failed_gate_exits_with_1_and_is_named(qconvert: Command) -> None:
    more = ("--labels", "labels.csv", "--max-size", "0.001", "--allow-unmeasured")
    outcome = built(qconvert, *IMAGES, *more, code=1)
    assert "max-size: `cpu-int8`" in outcome.out
    assert "gate" in outcome.err
    assert "max-size" not in outcome.err  # it is on stdout already
    assert "max-size: `cpu-int8`" in built(qconvert, *IMAGES, *more, "--json", code=1).err
    assert built(qconvert, *IMAGES, "--max-size", "1000").code == 0


@pytest.mark.long
def test_build_without_images_has_no_int8_and_no_accuracy(qconvert: Command) -> None:
    refused = built(qconvert, code=2)
    assert "--precision fp32,fp16" in refused.err
    outcome = built(qconvert, "--precision", "fp32", "--json")
    assert variants_of(outcome)["cpu-fp32"]["accuracy"] is None
    assert "--eval" in variants_of(outcome)["cpu-fp32"]["unmeasured"]["accuracy"]  # type: ignore[index]


def test_unavailable_backend_exits_with_4_unless_plan_only(qconvert: Command) -> None:
    refused = built(qconvert, *IMAGES, "--backend", "cuda", code=4)
    assert "the backend `cuda` does not work here" in refused.err
    assert "--plan-only" in refused.err
    planned = built(qconvert, *IMAGES, "--backend", "cuda", "--plan-only", "--json")
    assert [*variants_of(planned)] == ["cuda-fp32", "cuda-fp16"]
    assert "no int8 for `cuda`" in planned.out


@pytest.mark.long
def test_refused_build_keeps_the_run_settings(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--precision", "fp32")
    before = Path("run/run.toml").read_bytes()
    write(tiny(), Path("net.onnx"))
    refused = built(qconvert, *IMAGES, "--precision", "fp32", "--max-drop", "3", code=2)
    assert "holds a run of another model" in refused.err
    assert Path("run/run.toml").read_bytes() == before


def test_build_dry_run_changes_nothing(qconvert: Command, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in _files(tmp_path)}
    outcome = qconvert("build", "net.onnx", *IMAGES, "--dry-run", "--backend", "cpu,tensorrt-rtx")
    assert outcome.code == 0
    assert "engine    cpu-int8: runs here" in outcome.out
    assert {file: file.read_bytes() for file in _files(tmp_path)} == before


@pytest.mark.slow
def test_dry_run_refuses_the_folder_that_a_build_refuses(qconvert: Command, tmp_path: Path) -> None:
    built(qconvert, *IMAGES, *FAST, "--plan-only", "--precision", "fp32")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in _files(tmp_path)}
    other = ("net.onnx", *IMAGES, "--backend", "cpu")
    for args, message in (
        (("--from", "run", "--exclude", "Conv"), "`quantize.exclude` was `[]`, now `['Conv']`"),
        ((*other, "-o", "run"), "`quantize.effort` was `none`, now `default`"),
        ((*other, "-o", "full"), "`full` holds other files"),
        ((*other, "-o", "new", "--eval", "none"), "`none` does not exist"),
    ):
        for dry in (("--dry-run",), ()):
            outcome = qconvert("build", *args, *dry)
            assert (outcome.code, outcome.out) == (2, ""), outcome.err
            assert message in outcome.err
    assert qconvert("build", "--from", "run", "--max-drop", "1", "--dry-run").code == 0
    assert qconvert("build", *other, *FAST, "-o", "run", "--dry-run").code == 0
    assert {file: file.read_bytes() for file in _files(tmp_path)} == before


@pytest.mark.long
def test_bench_and_evaluate_update_runs_and_engines(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--precision", "fp32,int8")
    report = Path("run/report.json")
    before = json.loads(report.read_text())
    assert qconvert("bench", "run", "--seconds", "0.02", "--batch-sizes", "2").code == 0
    after = json.loads(report.read_text())
    assert [latency["batch"] for latency in after["variants"][0]["latency"]] == [2]
    assert after["variants"][0]["accuracy"] == before["variants"][0]["accuracy"]
    draw_images(Path("others"), 16)
    assert qconvert("evaluate", "run", "--eval", "others").code == 0
    assert json.loads(report.read_text())["variants"][0]["accuracy"]["n"] == 16
    other = qconvert("evaluate", "run", "--eval", "others", "--preprocess", "inception", "--json")
    assert "prepared differently (mean, std)" in other.out
    assert json.loads(report.read_text())["preprocess"] == before["preprocess"]
    again = qconvert("evaluate", "run", "--eval", "others", "--json")
    assert "prepared differently" not in again.out
    loose = qconvert("evaluate", "net.onnx", "run/engines/cpu-int8", "--eval", "others", "--json")
    assert loose.code == 0, loose.err
    assert [*variants_of(loose)] == ["net.onnx", "cpu-int8"]
    timed = qconvert("bench", "net.onnx", "run/engines/cpu-int8", *QUICK, "--json")
    assert [len(variant["latency"]) for variant in variants_of(timed).values()] == [2, 2]  # type: ignore[arg-type]


def test_compare_refuses_models_with_different_inputs(qconvert: Command, tmp_path: Path) -> None:
    write(tiny(), tmp_path / "tiny.onnx")
    for command in (("evaluate", "--eval", "eval"), ("compare", "--images", "eval")):
        outcome = qconvert(command[0], "net.onnx", "tiny.onnx", *command[1:], "--json")
        assert (outcome.code, outcome.out) == (2, "")
        assert "`tiny.onnx` takes `image: float32[batch, 3, 8, 8]`" in outcome.err


@pytest.mark.long
def test_report_renders_in_every_format(qconvert: Command) -> None:
    built(qconvert, *IMAGES, "--labels", "labels.csv")
    for form, begins in (("text", "Size"), ("md", "# "), ("json", "{"), ("card", "---")):
        shown = qconvert("report", "run", "--format", form)
        assert shown.code == 0, shown.err
        assert shown.out.startswith(begins)
    assert qconvert("report", "images").code == 2


@pytest.mark.long
def test_third_party_backend_module_builds_engines(
    qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu", "fake"):
        monkeypatch.setitem(backends.BACKENDS, name, "tests.fake_backend")
    outcome = built(qconvert, *IMAGES, "--precision", "fp32,fp16", "--json")
    assert all(variant["by_provider"] for variant in variants_of(outcome).values())


@pytest.mark.slow
def test_pairs_of_weights_are_limited_for_the_cpu_only(qconvert: Command) -> None:
    one = (*IMAGES, "--precision", "int8", "--effort", "none", "--plan-only", "--portable")
    refused = built(qconvert, *one, "--backend", "tensorrt", code=2)
    assert "`--portable` is for `cpu`: `tensorrt` adds products in 32 bits" in refused.err
    built(qconvert, *one, "--backend", "cpu,tensorrt")
    plans = {
        name: json.loads((Path("run/engines") / f"{name}-int8" / "plan.json").read_text())
        for name in ("cpu", "tensorrt")
    }
    assert plans["cpu"]["portable"] is True
    assert "portable" not in plans["tensorrt"]
