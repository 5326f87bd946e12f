"""`qconvert export` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qconvert.calibrate.calibration import load_calibration
from qconvert.core import onnx_io
from tests.conftest import Outcome, write
from tests.graph.test_clean import QUANTIZED
from tests.image_files import draw_images
from tests.models import floats, from_text, write_factory

Command = Callable[..., Outcome]

LAYOUT = "  ✓ load      tiny.onnx: 5 nodes, 0.0 MB of weights"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_onnx_export_writes_a_clean_model(qconvert: Command, tiny: Path) -> None:
    outcome = qconvert("export", "tiny.onnx", "-o", "out/clean.onnx")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith(LAYOUT)
    assert max(map(len, outcome.err.splitlines())) <= 80
    onnx.checker.check_model("out/clean.onnx", full_check=True)
    session = onnxruntime.InferenceSession("out/clean.onnx")
    assert session.run(None, {"image": floats(2, 3, 8, 8)})[0].shape == (2, 5)


@pytest.mark.slow
def test_factory_export_agrees_with_pytorch(shell: Command, tmp_path: Path) -> None:
    write_factory(tmp_path)
    outcome = shell("export", "nets:generator", "--input", "1x5", "--input", "1x3", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["inputs"] == ["noise: float32[batch, 5]", "label: float32[batch, 3]"]
    assert result["parity"]["inputs"] == 8
    assert result["config"]["export"]["inputs"] == ["1x5", "1x3"]
    assert result["config"]["export"]["opset"] == 20
    assert result["parity"]["max_rel"] < 1e-5
    assert Path(tmp_path / result["model"]).stat().st_size == result["bytes"]
    assert "✓ parity    ONNX against PyTorch on 8 inputs: relative" in outcome.err
    assert "ran the code of `nets:generator`" in " ".join(outcome.err.split())


@pytest.mark.long
def test_export_with_failed_parity_is_refused(shell: Command, tmp_path: Path) -> None:
    write_factory(tmp_path)
    outcome = shell("export", "nets:noisy")
    assert outcome.code == 3
    assert "the outputs of the exported ONNX differ from PyTorch's: top-1 agrees" in outcome.err
    assert "--parity-tolerance" in outcome.err
    assert not (tmp_path / "noisy.onnx").exists()


@pytest.mark.long
def test_model_prints_stay_off_stdout(shell: Command, tmp_path: Path) -> None:
    write_factory(tmp_path)
    outcome = shell("export", "nets:chatty", "--json")
    assert json.loads(outcome.out)["model"] == "chatty.onnx"


def test_repeated_export_uses_the_cache_and_writes_the_same_bytes(
    qconvert: Command, tiny: Path
) -> None:
    first = qconvert("export", tiny, "-o", "a.onnx")
    second = qconvert("export", tiny, "-o", "b.onnx")
    assert "cached, " not in first.err
    assert "cached, " in second.err
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert qconvert("cache", "--clear").code == 0
    third = qconvert("export", tiny, "-o", "c.onnx")
    assert "cached, " not in third.err
    assert Path("a.onnx").read_bytes() == Path("c.onnx").read_bytes()


def test_other_export_settings_are_cached_separately(qconvert: Command, tiny: Path) -> None:
    qconvert("export", tiny, "-o", "a.onnx")
    assert "cached, " not in qconvert("export", tiny, "-o", "b.onnx", "--opset", "21").err
    assert onnx_io.load(Path("b.onnx")).opset_imports[""] == 21
    assert "cached, " not in qconvert("export", tiny, "-o", "c.onnx", "--skip", "names").err
    assert "cached, " not in qconvert("export", tiny, "-o", "d.onnx", "--batch", "2").err


def test_export_never_overwrites_the_source(qconvert: Command, tiny: Path) -> None:
    before = tiny.read_bytes()
    assert qconvert("export", "tiny.onnx").code == 0
    assert tiny.read_bytes() == before
    assert Path("tiny-clean.onnx").exists()
    outcome = qconvert("export", "tiny.onnx", "-o", "./tiny.onnx")
    assert outcome.code == 2
    assert "is the source itself" in outcome.err
    assert tiny.read_bytes() == before


def test_export_dry_run_prints_steps_and_changes_nothing(
    qconvert: Command, tiny: Path, tmp_path: Path
) -> None:
    write_factory(tmp_path)
    before = tree(tmp_path)
    outcome = qconvert("export", "nets:build", "--dry-run", "--skip", "names")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "load     nets:build (factory)",
        "prepare  inline, opset, constants, simplify, activations, batchnorm, shapes",
        "parity   on 8 inputs against PyTorch",
        "write    build.onnx",
    ]
    assert tree(tmp_path) == before


def test_settings_file_in_the_working_folder_is_used_and_named(
    qconvert: Command, tiny: Path
) -> None:
    Path("qconvert.toml").write_text('model = "tiny.onnx"\n[export]\nopset = 21\n')
    outcome = qconvert("export", "-o", "a.onnx")
    assert outcome.err.startswith("settings from ./qconvert.toml\n")
    assert onnx_io.load(Path("a.onnx")).opset_imports[""] == 21
    assert qconvert("export", "-o", "b.onnx", "--set", "export.opset=22").code == 0
    assert onnx_io.load(Path("b.onnx")).opset_imports[""] == 22
    outcome = qconvert("export", "--set", "export.opsett=22", "--set", "prepare.skip=3")
    assert outcome.code == 2
    assert "error: command line: 2 settings are wrong" in outcome.err
    assert "  export.opsett: unknown setting; did you mean `opset`?" in outcome.err


def test_invalid_settings_file_breaks_neither_help_nor_doctor(qconvert: Command) -> None:
    Path("qconvert.toml").write_text("model = \n")
    assert qconvert("export", "--help").code == 0
    assert qconvert("doctor").code == 0
    assert qconvert("export", "x.onnx").code == 2


def test_quantized_model_is_exported_unchanged_with_a_note(
    qconvert: Command, tmp_path: Path
) -> None:
    weight = (floats(4, 4) * 40).astype(np.int8)
    write(from_text(QUANTIZED, w=weight), tmp_path / "qat.onnx")
    outcome = qconvert("export", "qat.onnx", "-o", "out.onnx", "--json")
    assert "note: this model contains Q/DQ nodes; they are kept unchanged" in outcome.err
    assert "note: simplify skipped: the model is already" in outcome.err
    assert json.loads(outcome.out)["quantized"] is True
    shown = qconvert("inspect", "out.onnx")
    assert "already quantized" in shown.out
    assert "QuantizeLinear" in shown.out


def test_dynamic_input_sizes_are_required(qconvert: Command, tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 3, h, w] x) => (float[N, 4, h, w] y) "
        "{ y = Conv <pads: ints = [1, 1, 1, 1]> (x, k) }"
    )
    write(from_text(text, k=floats(4, 3, 3, 3)), tmp_path / "open.onnx")
    outcome = qconvert("export", "open.onnx", "-o", "a.onnx")
    assert outcome.code == 2
    assert "hint: set it with `--input x:1x3x224x224`" in outcome.err
    assert qconvert("export", "open.onnx", "-o", "a.onnx", "--input", "x:1x3x16x16").code == 0
    (spec,) = onnx_io.inputs(onnx_io.load(Path("a.onnx")))
    assert spec.shape == ("N", 3, 16, 16)


def test_verbose_export_lists_every_pass(qconvert: Command, tiny: Path) -> None:
    stderr = qconvert("export", tiny, "-o", "a.onnx", "-v").err
    for name in (
        "inline",
        "opset",
        "constants",
        "simplify",
        "activations",
        "batchnorm",
        "shapes",
        "names",
    ):
        assert f"    {name}: " in stderr


@pytest.mark.parametrize("place", ["folder", "no-suffix", "tiny.onnx/below.onnx"])
def test_unusable_output_path_is_refused_before_any_work(
    qconvert: Command, tiny: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    outcome = qconvert("export", tiny, "-o", place)
    assert outcome.code in (2, 3)
    assert outcome.err.startswith("error: ")
    assert "✓" not in outcome.err
    assert tree(tmp_path) == before


@pytest.mark.long
def test_parity_uses_images_and_embeds_the_preprocessing(
    shell: Command, qconvert: Command, tmp_path: Path
) -> None:
    write_factory(tmp_path)
    draw_images(tmp_path / "images", 9)
    outcome = shell("export", "nets:ready", "--images", "images", "--mean", "0.5", "--std", "0.25")
    assert outcome.code == 0, outcome.err
    assert "ONNX against PyTorch on 8 images: top-1 8/8" in outcome.err
    more = ("--images", "images", "--count", "9", "--set", "export.parity-inputs=20")
    few = shell("export", "nets:ready", *more)
    assert few.code == 2
    assert "only 9 inputs were compared; 20 are required" in few.err
    stored = onnx.load("ready.onnx").metadata_props
    result = json.loads(next(item.value for item in stored if item.key == "qconvert.preprocess"))
    assert (result["mean"], result["std"]) == ([0.5], [0.25])
    assert qconvert("calibrate", "ready.onnx", "--images", "images", "-o", "c.npz").code == 0
    assert load_calibration(Path("c.npz")).origin.preprocessing["mean"] == [0.5]
