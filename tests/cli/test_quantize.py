"""`qconvert quantize`, and what `inspect --quantized` tells of its results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qconvert import backends
from qconvert.backends.ort import open_cpu
from qconvert.cli import quantize
from qconvert.core import onnx_io
from tests.conftest import Outcome, write
from tests.models import MIXED_SHAPES, floats, mixed, tiny
from tests.pictures import draw_folder
from tests.strongly_typed import build

Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_folder(tmp_path / "images", 40)


def quantized(qconvert: Command, *more: str) -> Outcome:
    done = qconvert("quantize", "net.onnx", "-o", "out.onnx", *more)
    assert done.code == 0, done.err
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)
    return done


def test_one_command_makes_a_small_file_and_says_what_became_of_each_operator(
    qconvert: Command,
) -> None:
    done = quantized(qconvert, "--images", "images")
    rows = {row.split()[0]: row.split()[1:] for row in done.out.splitlines()[2:]}
    assert rows["Conv"] == ["5", "5", "0"]
    assert rows["Relu"][:3] == ["2", "2", "0"]
    assert "vanishes into the operator before it" in done.out
    stored = [onnx_io.weight_bytes(onnx_io.load(Path(name))) for name in ("net.onnx", "out.onnx")]
    assert stored[1] < 0.5 * stored[0]
    image = {"image": floats(2, 3, 16, 16, seed=5)}
    wanted, got = (
        open_cpu(onnx_io.load(Path(name)))(image)["scores"] for name in ("net.onnx", "out.onnx")
    )
    assert np.square(wanted).sum() / np.square(wanted - got).sum() > 30


def test_the_same_again_runs_no_image_and_writes_the_same_bytes(qconvert: Command) -> None:
    quantized(qconvert, "--images", "images")
    before = Path("out.onnx").read_bytes()
    again = quantized(qconvert, "--images", "images")
    assert "cached" in next(line for line in again.err.splitlines() if "✓ calibrate" in line)
    assert Path("out.onnx").read_bytes() == before


def test_a_calibration_file_gives_the_same_bytes_as_its_images(qconvert: Command) -> None:
    given = ("--images", "images", "--effort", "quick")
    quantized(qconvert, *given)
    before = Path("out.onnx").read_bytes()
    assert qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz").code == 0
    quantized(qconvert, "--calibration", "c.npz", *given)
    assert Path("out.onnx").read_bytes() == before


def test_without_the_images_nothing_is_learned_and_it_is_said(qconvert: Command) -> None:
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    done = quantized(qconvert, "--calibration", "c.npz")
    assert "learning them needs the calibration images" in " ".join(done.err.split())
    before = Path("out.onnx").read_bytes()
    quantized(qconvert, "--images", "images", "--effort", "none")
    assert Path("out.onnx").read_bytes() == before


def test_learned_weights_are_replayed_with_their_plan_and_missed_without_them(
    qconvert: Command,
) -> None:
    done = quantized(qconvert, "--images", "images", "--plan-out", "plan.json")
    assert "weights learned in" in done.err
    before = onnx_io.fingerprint(onnx_io.load(Path("out.onnx")))
    quantized(qconvert, "--plan", "plan.json")
    assert onnx_io.fingerprint(onnx_io.load(Path("out.onnx"))) == before
    Path("plan.learned.npz").unlink()
    lost = qconvert("quantize", "net.onnx", "--plan", "plan.json", "-o", "again.onnx")
    assert lost.code == 2
    assert "plan.learned.npz" in lost.err
    assert "hint:" in lost.err


def test_another_method_or_backend_runs_no_image_again(qconvert: Command) -> None:
    given = ("--images", "images", "--effort", "quick")
    quantized(qconvert, *given)
    for more in (("--method", "minmax"), ("--backend", "tensorrt"), ("--method", "auto")):
        assert "images, " in quantized(qconvert, *given, *more).err
        assert len(list(Path(".store/calibrate").glob("[0-9a-f]*"))) == 1


def test_auto_tries_every_method_and_tells_how_near_each_came(qconvert: Command) -> None:
    done = quantized(qconvert, "--images", "images", "--method", "auto", "--json")
    told = json.loads(done.out)
    far = [each["distance"] for each in told["tried"]]
    assert len(far) >= 5
    assert far == sorted(far)
    assert told["plan"]["method"] in {each["method"] for each in told["tried"]}
    assert "other images" in done.err


def test_a_calibration_file_can_choose_too_where_the_images_are_known(qconvert: Command) -> None:
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    blind = qconvert("quantize", "net.onnx", "--calibration", "c.npz", "--method", "auto")
    assert blind.code == 2
    assert "--images" in blind.err
    again = ("--calibration", "c.npz", "--method", "auto", "--images", "images")
    assert "images that were calibrated" in quantized(qconvert, *again).err


def test_int8_in_a_sea_of_half_precision_builds_as_a_strongly_typed_network(
    qconvert: Command,
) -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        more = ("--images", "images", "--backend", backend, "--rest", "fp16")
        quantized(qconvert, *more)
        model = onnx_io.load(Path("out.onnx"))
        kinds = {str(value.dtype) for node in model.graph for value in node.outputs}
        assert {"INT8", "FLOAT16"} <= kinds
        assert build(model) > 0


def test_int8_in_half_precision_answers_as_int8_alone_does(qconvert: Command) -> None:
    image = {"image": floats(8, 3, 16, 16, seed=5)}
    answers = []
    for rest in ("fp32", "fp16"):
        done = quantized(qconvert, "--images", "images", "--backend", "tensorrt", "--rest", rest)
        assert "session.disable_quant_qdq" in " ".join(done.err.split())
        answers.append(open_cpu(onnx_io.load(Path("out.onnx")))(image)["scores"])
    assert np.square(answers[0]).sum() / np.square(answers[0] - answers[1]).sum() > 300


def test_a_model_that_no_longer_answers_like_itself_is_told(
    qconvert: Command, tmp_path: Path
) -> None:
    plan = Path("plan.json")
    quantized(qconvert, "--images", "images", "--plan-out", plan.name)
    broken = json.loads(plan.read_text())
    broken["tensors"]["c"] = {"low": 0.0, "high": 1e-6}
    plan.write_text(json.dumps(broken))
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    more = ("--calibration", "c.npz", "--images", "images", "--plan", plan.name)
    told = " ".join(quantized(qconvert, *more).err.split())
    assert "the answers have little to do with those of the float model" in told


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_needs_no_images_and_says_what_it_does_not_know(
    qconvert: Command, precision: str
) -> None:
    more = ("--precision", precision, "--backend", "tensorrt")
    done = quantized(qconvert, *more)
    assert Path("out.onnx").stat().st_size < 0.6 * Path("net.onnx").stat().st_size
    note = "nothing is known of overflow" if precision == "fp16" else "not run here"
    assert note in done.err
    assert onnx_io.inputs(onnx_io.load(Path("out.onnx")))[0].dtype == np.float32
    quantized(qconvert, *more, "--half-io")
    assert onnx_io.inputs(onnx_io.load(Path("out.onnx")))[0].dtype.itemsize == 2


def test_what_overflows_stays_in_float32_and_is_named(qconvert: Command) -> None:
    write(
        mixed(w1=floats(*MIXED_SHAPES["w1"]) * 3e4, six=np.array(1e9, np.float32)), Path("net.onnx")
    )
    done = quantized(qconvert, "--images", "images", "--precision", "fp16")
    assert "stays in float32" in done.err
    image = {"image": floats(2, 3, 16, 16, seed=5)}
    assert np.isfinite(open_cpu(onnx_io.load(Path("out.onnx")))(image)["scores"]).all()


def test_a_plan_can_be_read_edited_and_replayed(qconvert: Command) -> None:
    known = ("--preprocess", "imagenet")
    quantized(qconvert, "--images", "images", *known, "--plan-out", "plan.json")
    whole = onnx_io.load(Path("out.onnx"))
    quantized(qconvert, "--plan", "plan.json")
    # Only what is done to pictures is not known here: a plan is about the graph.
    assert onnx_io.fingerprint(onnx_io.load(Path("out.onnx"))) == onnx_io.fingerprint(whole)
    plan = json.loads(Path("plan.json").read_text())
    plan["layers"]["scores"] = {"op": "Gemm", "left": "my reason"}
    Path("plan.json").write_text(json.dumps(plan))
    done = quantized(qconvert, "--plan", "plan.json")
    assert "scores: my reason" in done.out
    assert "my reason" in qconvert("inspect", "out.onnx", "--quantized").out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--backend", "cuda", "--images", "images"], "no int8 for `cuda`"),
        (["--precision", "bf16"], "no bf16 for `cpu`"),
        (["--rest", "fp16", "--images", "images"], "computes in fp32, not fp16"),
        (["--precision", "fp16", "--rest", "fp16"], "`--rest` is for INT8"),
        ([], "INT8 needs to know"),
        (["--images", "images", "--method", "best"], "there is no range method `best`"),
        (["--images", "images", "--exclude", "sidee"], "nearest names: `side`"),
        (["--images", "images", "--keep", "middle"], "quantize.keep"),
        (["--images", "images", "-o", "out.engine"], "does not end in .onnx"),
        (["--calibration", "none.npz"], "`none.npz` does not exist"),
        (["--plan", "none.json"], "`none.json`"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    qconvert: Command, more: list[str], said: str
) -> None:
    done = qconvert("quantize", "net.onnx", *more)
    assert done.code == 2
    assert said in done.err
    assert "✓ calibrate" not in done.err


def test_plans_and_calibrations_of_others_are_refused(qconvert: Command, tmp_path: Path) -> None:
    quantized(qconvert, "--images", "images", "--plan-out", "plan.json")
    other = qconvert("quantize", "net.onnx", "--plan", "plan.json", "--backend", "tensorrt")
    assert other.code == 2
    assert "is a plan for `cpu`, not for `tensorrt`" in other.err
    both = qconvert("quantize", "net.onnx", "--plan", "plan.json", "--exclude", "Add")
    assert both.code == 2
    assert "`--plan` decides what `--exclude` would" in both.err
    write(tiny(), tmp_path / "tiny.onnx")
    wrong = qconvert("quantize", "tiny.onnx", "--plan", "plan.json")
    assert wrong.code == 2
    assert "another model" in wrong.err
    qconvert("calibrate", "tiny.onnx", "--images", "images", "-o", "c.npz")
    wrong = qconvert("quantize", "net.onnx", "--calibration", "c.npz")
    assert wrong.code == 2
    assert "was measured on another model" in wrong.err


def test_a_model_of_which_nothing_can_be_quantized_is_refused_with_the_reasons(
    qconvert: Command, tiny: Path
) -> None:
    done = qconvert("quantize", "tiny.onnx", "--images", "images", "--backend", "tensorrt")
    assert done.code == 3
    assert "there is nothing to quantize in this model" in done.err
    assert "Gemm: a 4x5 weight is too small for integer kernels" in done.err


def test_a_preview_looks_at_no_image_and_writes_nothing(qconvert: Command) -> None:
    done = qconvert("quantize", "net.onnx", "--images", "images", "--dry-run", "--exclude", "Gemm")
    assert done.code == 0
    assert "excluded by `Gemm`" in done.out
    assert not list(Path().glob("net-*"))


def test_inspect_tells_of_float_models_and_of_files_made_elsewhere(qconvert: Command) -> None:
    would = qconvert("inspect", "net.onnx", "--quantized", "--backend", "tensorrt")
    assert "its inputs share one scale" in would.out
    quantized(qconvert, "--images", "images")
    model = onnx.load("out.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    told = qconvert("inspect", "foreign.onnx", "--quantized", "--json")
    layers = json.loads(told.out)["layers"]
    assert {name for name, layer in layers.items() if not layer["left"]} == {
        "stem", "wide", "narrow", "side", "last", "scores",
    }  # fmt: skip


def test_the_names_of_backends_are_the_same_everywhere() -> None:
    from qconvert.cli import inspect

    assert tuple(backends.BACKENDS) == quantize.BACKENDS == inspect.BACKENDS
