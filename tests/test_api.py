"""The Python API: the commands as functions."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert
from qconvert import api
from qconvert.core import config
from qconvert.demo import scenes
from qconvert.demo.demo_files import NETWORKS
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import PRESETS
from tests.image_files import draw_images
from tests.models import write_factory
from tests.runs import QUICK

PAGE = Path(__file__).resolve().parent.parent / "docs/python.md"


@pytest.fixture(autouse=True)
def _world(world: Path) -> None:
    """Work in a folder with a finished run, its model and its images."""


def build_run(**options: Any) -> qconvert.Run:
    options = {
        "images": "calib_data",
        "eval": Path("val"),
        "precisions": ["fp32", "int8"],
        "settings": QUICK,
        **options,
    }
    return qconvert.build("model.onnx", output="own", **options)


def run_python(script: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return process.stdout.strip()


def test_import_of_the_package_imports_nothing_heavy() -> None:
    heavy = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "pydantic", "click", "PIL")
    assert run_python(f"import sys, qconvert; print(set({heavy}) & set(sys.modules))") == "set()"


def test_public_names_exist() -> None:
    for name in qconvert.__all__:
        assert getattr(qconvert, name) is not None
    assert set(api.__all__) < set(qconvert.__all__) <= set(dir(qconvert))
    with pytest.raises(AttributeError, match="has no attribute `nothing`"):
        qconvert.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_functions_are_not_replaced_by_subpackages_of_their_name() -> None:
    script = (
        "from qconvert.quantize import plan\nimport qconvert.calibrate.methods, qconvert\n"
        "print(qconvert.quantize.__name__, qconvert.calibrate.__module__, plan.__name__)"
    )
    assert run_python(script) == "quantize qconvert.api qconvert.quantize.plan"


@pytest.mark.parametrize("arguments", [api.BuildArguments, api.SearchArguments])
def test_keyword_arguments_set_settings_or_are_job_options(arguments: type) -> None:
    others = {"settings", "config", "progress", "trust", "fresh"}
    assert set(arguments.__annotations__) - others <= set(config.keyword_settings())


@pytest.mark.long
def test_examples_of_the_python_page_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    (tmp_path / "detector.onnx").write_bytes(NETWORKS["detect"].read_bytes())
    scenes.write_images(tmp_path / "detect/val", 1, 4, "detect")
    draw_images(tmp_path / "calib_data", 40)  # enough to train on
    process = subprocess.run(
        [sys.executable, "page.py"], capture_output=True, text=True, check=False, timeout=200
    )
    assert (process.returncode, process.stderr) == (0, "")
    for text in (
        "cpu-int8",
        "0000.png",
        "nodes in int8",
        "did you mean `method`?",
        "top-1",
        "map 0.",
    ):
        assert text in process.stdout, text


@pytest.mark.slow
def test_build_prints_nothing_and_returns_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[qconvert.Progress] = []
    run = build_run(progress=steps.append)
    assert capfd.readouterr() == ("", "")
    expected = {"load", "calibrate", "quantize", "build", "bench", "evaluate"}
    assert expected <= {progress.step for progress in steps}
    assert [variant.name for variant in run.report.variants] == ["cpu-fp32", "cpu-int8"]
    assert run.report.command.startswith("qconvert.build('model.onnx', output='own', images=")
    assert "progress" not in run.report.command
    assert qconvert.open_run("own").report.variants == run.report.variants
    assert run.path("cpu-int8") == Path("own/engines/cpu-int8").absolute()


def test_engine_runs_on_arrays_and_on_prepared_images() -> None:
    run = qconvert.open_run("run")
    engine = run.engine("cpu-int8")
    specs = engine.inputs
    images = open_images(ImageChoice(Path("val")), specs, PRESETS["imagenet"])
    inputs = next(iter(images.batches(16))).feeds
    (batch,) = engine.read("val", batch=16)
    assert np.array_equal(batch.feeds["image"], inputs["image"])
    scores = engine(batch.feeds)["scores"]
    assert scores.shape == (16, 24)
    single = qconvert.open_engine(run.path("cpu-int8"))({"image": inputs["image"][:1]})
    assert np.allclose(single["scores"], scores[:1], atol=1e-5)
    assert str(qconvert.open_engine("model.onnx").outputs[0]) == "scores: float32[N, 24]"
    with pytest.raises(qconvert.UsageError, match="takes `image: float32"):
        engine({"x": inputs["image"]})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 16, 16)), "not `image: float64[2, 3, 16, 16]`"),
        (np.zeros((2, 16, 16, 3), np.float32), "not `image: float32[2, 16, 16, 3]`"),
        (np.zeros((3, 16, 16), np.float32), "not `image: float32[3, 16, 16]`"),
    ],
)
def test_array_of_another_type_or_shape_is_rejected(array: Any, message: str) -> None:
    engine = qconvert.open_engine("model.onnx")
    with pytest.raises(qconvert.UsageError, match=re.escape(message)) as caught:
        engine({"image": array})
    assert "--input" not in caught.value.hint
    with pytest.raises(qconvert.UsageError, match="not `ndarray`"):
        engine(array)
    with pytest.raises(qconvert.UsageError, match="a batch of 0 is invalid"):
        next(engine.read("val", batch=0))


def test_byte_order_of_arrays_does_not_matter() -> None:
    engine = qconvert.open_engine("model.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    native, swapped = (engine({"image": x})["scores"] for x in (image, image.astype(">f4")))
    assert np.array_equal(native, swapped)


def test_run_is_independent_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = qconvert.open_run("run")
    monkeypatch.chdir("val")
    assert run.engine("cpu-fp32").inputs
    assert run.path("cpu-fp32") == tmp_path / "run/engines/cpu-fp32"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("build", {"settings": [1]}, "must be a mapping"),
        ("build", {"config": 3}, "`config` must be a path"),
        ("build", {"model": 3}, "cannot be imported"),
        ("build", {"image": "calib_data"}, "no argument `image`; did you mean `images`"),
        ("build", {"model": None}, "no model is named"),
        ("quantize", {"backend": "gpu"}, "no backend `gpu`; did you mean `cpu`"),
        ("quantize", {"precision": "fp32"}, "no precision `fp32`"),
        ("package", {"run": "run", "format": "tflite"}, "no format `tflite`"),
        (
            "package",
            {"run": "run", "format": "triton", "engines": "a"},
            "no argument `engines`; did you mean `engine`",
        ),
    ],
)
def test_invalid_arguments_are_rejected(
    function: str, arguments: dict[str, object], message: str
) -> None:
    defaults = {} if function == "package" else {"model": "model.onnx"}
    with pytest.raises(qconvert.UsageError, match=message):
        getattr(qconvert, function)(**{**defaults, "output": "x", **arguments})
    assert not Path("x").exists()


def test_run_must_be_the_only_target() -> None:
    with pytest.raises(qconvert.UsageError, match="`run` is a run, and a run must be the only"):
        qconvert.bench(["run", "model.onnx"])


@pytest.mark.slow
def test_engine_must_be_named_if_the_verdict_has_none() -> None:
    run = qconvert.build("model.onnx", output="own", precisions="fp16", settings=QUICK)
    with pytest.raises(qconvert.UsageError, match="is named by the verdict, so name one") as caught:
        run.engine()
    assert "`cpu-fp16`" in caught.value.hint
    with pytest.raises(qconvert.UsageError, match="no engine `cpu-int8`"):
        run.engine("cpu-int8")
    with pytest.raises(qconvert.UsageError, match="is a run, not an engine"):
        qconvert.open_engine(run)


@pytest.mark.slow
def test_failed_gate_is_in_the_report_and_raises_on_request() -> None:
    limits = {**QUICK, "gate.max-size": 0.001}
    run = qconvert.build("model.onnx", output="own", precisions="fp32", settings=limits)
    assert [gate.passed for gate in run.report.gates] == [False]
    with pytest.raises(qconvert.GateFailed):
        run.require_gates()
    with pytest.raises(qconvert.UsageError, match="is named by the verdict") as caught:
        run.path()
    assert caught.value.details[0].startswith("max-size: `cpu-fp32` has ")
    assert caught.value.hint == "`--engine NAME`; it has `cpu-fp32`"


def test_invalid_settings_are_all_reported(tmp_path: Path) -> None:
    with pytest.raises(qconvert.UsageError, match="arguments: 2 settings are wrong") as caught:
        qconvert.build("m.onnx", output="own", settings={"quantize.metod": 1, "bench.rounds": 1})
    assert "quantize.metod: unknown setting; did you mean `method`?" in caught.value.details
    assert f"hint: {caught.value.hint}" in caught.value.__notes__
    (tmp_path / "my.toml").write_text('model = "model.onnx"\n[build]\nprecisions = ["bf16"]\n')
    with pytest.raises(qconvert.UsageError, match="no bf16 for `cpu`"):
        qconvert.build(config="my.toml", output="run")


@pytest.mark.slow
def test_model_may_be_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_factory(tmp_path, "apinets")
    monkeypatch.syspath_prepend(tmp_path)
    import apinets  # type: ignore[import-not-found]

    exported = qconvert.export(apinets.build, inputs="image:1x3x8x8", output="net.onnx")
    assert exported.parity is not None
    for unnamed in (lambda: None, apinets.build()):
        with pytest.raises(qconvert.UsageError, match="cannot be imported by its name"):
            qconvert.export(unnamed, output="net.onnx")


def test_engine_is_packaged() -> None:
    packed = qconvert.package(
        "run", format="triton", output="models", engine="cpu-fp32", name="net"
    )
    assert (packed.folder, packed.engine) == (Path("models/net"), "cpu-fp32")


@pytest.mark.slow
def test_moved_run_is_resumed_without_its_images_and_model(tmp_path: Path) -> None:
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("calib_data", "model.onnx"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    run = qconvert.resume("moved", precisions=["fp16"], settings=QUICK)
    names = ["cpu-fp32", "cpu-int8", "tensorrt-rtx-fp32", "cpu-fp16"]
    assert [variant.name for variant in run.report.variants] == names
    with pytest.raises(qconvert.UsageError, match="not the folder of a run"):
        qconvert.resume("val")


@pytest.mark.slow
def test_labels_of_a_run_apply_to_its_own_images_only(tmp_path: Path) -> None:
    settings = {**QUICK, "evaluate.count": 8}
    (tmp_path / "val/labels.csv").rename(tmp_path / "val/mine.csv")
    build_run(precisions="fp32", labels="val/mine.csv", settings=settings)
    scores = qconvert.evaluate("own", eval="calib_data").variants[0].accuracy
    assert scores is not None
    assert (scores.images, scores.top1) == (16, None)
    same_images = qconvert.evaluate("own", eval=tmp_path / "val").variants[0].accuracy
    assert same_images is not None
    assert (same_images.images, same_images.top1 is None) == (8, False)
    run = qconvert.resume("own", eval="calib_data", settings=QUICK)
    assert run.report.variants[0].accuracy == scores


@pytest.mark.slow
def test_settings_file_overrides_the_settings_of_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "tight.toml").write_text("[gate]\nmax-size = 0.001\nallow-unmeasured = true\n")
    run = qconvert.resume("run", config="tight.toml", precisions="fp16", settings=QUICK)
    assert {gate.name for gate in run.report.gates if not gate.passed} == {"max-size"}
    report = qconvert.evaluate("run", config="tight.toml")
    assert report.evaluation is not None
