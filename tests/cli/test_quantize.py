"""`qconvert quantize`, and `inspect --quantized` on its results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qconvert import backends
from qconvert.backends.ort import open_cpu
from qconvert.cli import options
from qconvert.core import onnx_io
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import MIXED_SHAPES, floats, mixed, products, tiny
from tests.strongly_typed import build

Command = Callable[..., Outcome]
DYNAMIC = ("--precision", "int8-dynamic")


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_images(tmp_path / "images", 40)


def quantized(qconvert: Command, *more: str) -> Outcome:
    outcome = qconvert("quantize", "net.onnx", "-o", "out.onnx", *more)
    assert outcome.code == 0, outcome.err
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)
    return outcome


@pytest.mark.slow
def test_quantize_writes_a_small_model_and_shows_coverage(qconvert: Command) -> None:
    outcome = quantized(qconvert, "--images", "images")
    rows = {row.split()[0]: row.split()[1:] for row in outcome.out.splitlines()[2:]}
    assert rows["Conv"] == ["5", "5", "0"]
    assert rows["Relu"][:3] == ["2", "2", "0"]
    assert "absorbed by the operator before it" in outcome.out
    stored = [onnx_io.weight_bytes(onnx_io.load(Path(name))) for name in ("net.onnx", "out.onnx")]
    assert stored[1] < 0.5 * stored[0]
    image = {"image": floats(2, 3, 16, 16, seed=5)}
    expected, got = (
        open_cpu(onnx_io.load(Path(name)))(image)["scores"] for name in ("net.onnx", "out.onnx")
    )
    assert np.square(expected).sum() / np.square(expected - got).sum() > 30


@pytest.mark.slow
def test_repeated_quantize_is_cached_and_writes_the_same_bytes(qconvert: Command) -> None:
    quantized(qconvert, "--images", "images")
    before = Path("out.onnx").read_bytes()
    again = quantized(qconvert, "--images", "images")
    assert "cached, " in next(line for line in again.err.splitlines() if "✓ calibrate" in line)
    assert Path("out.onnx").read_bytes() == before


@pytest.mark.slow
def test_calibration_file_gives_the_same_model_bytes_as_its_images(qconvert: Command) -> None:
    options = ("--images", "images", "--effort", "quick")
    quantized(qconvert, *options)
    before = Path("out.onnx").read_bytes()
    assert qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz").code == 0
    quantized(qconvert, "--calibration", "c.npz", *options)
    assert Path("out.onnx").read_bytes() == before


@pytest.mark.slow
def test_calibration_without_images_skips_learned_rounding_with_a_note(qconvert: Command) -> None:
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    outcome = quantized(qconvert, "--calibration", "c.npz")
    assert "learning them needs the calibration images" in " ".join(outcome.err.split())
    before = Path("out.onnx").read_bytes()
    quantized(qconvert, "--images", "images", "--effort", "none")
    assert Path("out.onnx").read_bytes() == before


@pytest.mark.long
def test_plan_replay_needs_its_rounded_weights(qconvert: Command) -> None:
    outcome = quantized(qconvert, "--images", "images", "--plan-out", "plan.json")
    assert "learned rounding: " in outcome.err
    before = onnx_io.fingerprint(onnx_io.load(Path("out.onnx")))
    quantized(qconvert, "--plan", "plan.json")
    assert onnx_io.fingerprint(onnx_io.load(Path("out.onnx"))) == before
    Path("plan.learned.npz").unlink()
    refused = qconvert("quantize", "net.onnx", "--plan", "plan.json", "-o", "again.onnx")
    assert refused.code == 2
    assert "plan.learned.npz" in refused.err
    assert "hint:" in refused.err


@pytest.mark.slow
def test_another_method_or_backend_reuses_the_calibration(qconvert: Command) -> None:
    options = ("--images", "images", "--effort", "quick")
    quantized(qconvert, *options)
    for more in (("--method", "minmax"), ("--backend", "tensorrt"), ("--method", "auto")):
        assert "images, " in quantized(qconvert, *options, *more).err
        assert len(list(Path(".store/calibrate").glob("[0-9a-f]*"))) == 1


@pytest.mark.long
def test_auto_method_reports_the_error_of_every_method(qconvert: Command) -> None:
    outcome = quantized(qconvert, "--images", "images", "--method", "auto", "--json")
    result = json.loads(outcome.out)
    errors = [method["distance"] for method in result["tried"]]
    assert len(errors) >= 5
    assert errors == sorted(errors)
    assert result["plan"]["method"] in {method["method"] for method in result["tried"]}
    assert "learned rounding: 6 layers" in outcome.err


@pytest.mark.long
def test_auto_method_uses_the_images_named_in_a_calibration_file(qconvert: Command) -> None:
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    blind = qconvert("quantize", "net.onnx", "--calibration", "c.npz", "--method", "auto")
    assert blind.code == 2
    assert "--images" in blind.err
    again = ("--calibration", "c.npz", "--method", "auto", "--images", "images")
    shown = quantized(qconvert, *again).err
    # The line may break between the two, as long as the name of the best method is.
    assert "output error on 8" in shown
    assert "calibration images:" in " ".join(shown.split())


@pytest.mark.long
def test_int8_with_fp16_rest_is_a_strongly_typed_network(qconvert: Command) -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        more = ("--images", "images", "--backend", backend, "--rest", "fp16")
        quantized(qconvert, *more)
        model = onnx_io.load(Path("out.onnx"))
        kinds = {str(value.dtype) for node in model.graph for value in node.outputs}
        assert {"INT8", "FLOAT16"} <= kinds
        assert build(model) > 0


@pytest.mark.long
def test_int8_with_fp16_rest_matches_the_outputs_of_int8(qconvert: Command) -> None:
    image = {"image": floats(8, 3, 16, 16, seed=5)}
    scores = []
    for rest in ("fp32", "fp16"):
        outcome = quantized(qconvert, "--images", "images", "--backend", "tensorrt", "--rest", rest)
        assert "session.disable_quant_qdq" in " ".join(outcome.err.split())
        scores.append(open_cpu(onnx_io.load(Path("out.onnx")))(image)["scores"])
    assert np.square(scores[0]).sum() / np.square(scores[0] - scores[1]).sum() > 300


@pytest.mark.slow
def test_large_output_error_after_quantization_is_noted(qconvert: Command, tmp_path: Path) -> None:
    plan = Path("plan.json")
    quantized(qconvert, "--images", "images", "--plan-out", plan.name)
    broken = json.loads(plan.read_text())
    broken["tensors"]["c"] = {"low": 0.0, "high": 1e-6}
    plan.write_text(json.dumps(broken))
    qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz")
    more = ("--calibration", "c.npz", "--images", "images", "--plan", plan.name)
    stderr = " ".join(quantized(qconvert, *more).err.split())
    assert "the outputs differ strongly from those of the float model" in stderr


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_without_images_notes_missing_ranges(
    qconvert: Command, precision: str
) -> None:
    more = ("--precision", precision, "--backend", "tensorrt")
    outcome = quantized(qconvert, *more)
    assert Path("out.onnx").stat().st_size < 0.6 * Path("net.onnx").stat().st_size
    note = "overflow cannot be predicted" if precision == "fp16" else "not run here"
    assert note in outcome.err
    assert onnx_io.inputs(onnx_io.load(Path("out.onnx")))[0].dtype == np.float32
    quantized(qconvert, *more, "--half-io")
    assert onnx_io.inputs(onnx_io.load(Path("out.onnx")))[0].dtype.itemsize == 2


def test_overflowing_nodes_stay_in_float32_and_are_named(qconvert: Command) -> None:
    write(
        mixed(w1=floats(*MIXED_SHAPES["w1"]) * 3e4, six=np.array(1e9, np.float32)), Path("net.onnx")
    )
    outcome = quantized(qconvert, "--images", "images", "--precision", "fp16")
    assert "stays in float32" in outcome.err
    image = {"image": floats(2, 3, 16, 16, seed=5)}
    assert np.isfinite(open_cpu(onnx_io.load(Path("out.onnx")))(image)["scores"]).all()


@pytest.mark.slow
def test_edited_plan_is_replayed(qconvert: Command) -> None:
    preset = ("--preprocess", "imagenet")
    quantized(qconvert, "--images", "images", *preset, "--plan-out", "plan.json")
    whole = onnx_io.load(Path("out.onnx"))
    quantized(qconvert, "--plan", "plan.json")
    # Image preprocessing is not preset here, because a plan is about the graph.
    assert onnx_io.fingerprint(onnx_io.load(Path("out.onnx"))) == onnx_io.fingerprint(whole)
    plan = json.loads(Path("plan.json").read_text())
    plan["layers"]["scores"] = {"op": "Gemm", "left": "my reason"}
    Path("plan.json").write_text(json.dumps(plan))
    outcome = quantized(qconvert, "--plan", "plan.json")
    assert "scores: my reason" in outcome.out
    assert "my reason" in qconvert("inspect", "out.onnx", "--quantized").out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "cuda", "--images", "images"], "no int8 for `cuda`"),
        (["--precision", "bf16"], "no bf16 for `cpu`"),
        (["--rest", "fp16", "--images", "images"], "computes in fp32, not fp16"),
        (["--precision", "fp16", "--rest", "fp16"], "`--rest` is for integers"),
        (["--backend", "tensorrt", "--portable"], "`--portable` is for `cpu`: `tensorrt` adds"),
        ([], "INT8 needs the value range"),
        (["--images", "images", "--method", "best"], "there is no range method `best`"),
        (["--images", "images", "--exclude", "sidee"], "similar names: `side`"),
        (["--images", "images", "--keep", "middle"], "quantize.keep"),
        (["--images", "images", "--weight-bits", "3"], "4 bits are the fewest"),
        (["--images", "images", "--activation-bits", "9"], "less than or equal to 8"),
        (["--images", "images", "-o", "out.engine"], "does not end in .onnx"),
        (["--calibration", "none.npz"], "`none.npz` does not exist"),
        (["--plan", "none.json"], "`none.json`"),
        ([*DYNAMIC, "--backend", "tensorrt"], "TensorRT fixes the scales of INT8 when it builds"),
        ([*DYNAMIC, "--method", "mse"], "`--method` has no effect: int8-dynamic has no ranges"),
        ([*DYNAMIC, "--activation-bits", "6"], "`--activation-bits` has no effect"),
        ([*DYNAMIC, "--effort", "train"], "`--effort train` has no effect"),
    ],
)
def test_contradictory_quantize_options_are_refused(
    qconvert: Command, more: list[str], message: str
) -> None:
    outcome = qconvert("quantize", "net.onnx", *more)
    assert outcome.code == 2
    assert message in outcome.err
    assert "✓ calibrate" not in outcome.err


@pytest.mark.slow
def test_plan_or_calibration_of_another_model_is_refused(qconvert: Command, tmp_path: Path) -> None:
    # Whatever the machine: on ARM weights are not limited by default.
    quantized(qconvert, "--images", "images", "--portable", "--plan-out", "plan.json")
    quantized(qconvert, "--images", "images", "--no-portable", "--plan-out", "exact.json")
    write(tiny(), tmp_path / "tiny.onnx")
    qconvert("calibrate", "tiny.onnx", "--images", "images", "-o", "c.npz")
    for args, message in (
        ("net.onnx --plan plan.json --backend tensorrt", "is a plan for `cpu`, not for `tensorrt`"),
        ("net.onnx --plan plan.json --exclude Add", "`--exclude` is decided by the plan of"),
        ("net.onnx --plan plan.json --no-portable", "`--no-portable` is decided by the plan of"),
        ("net.onnx --plan exact.json --portable", "`--portable` is decided by the plan of"),
        ("tiny.onnx --plan plan.json", "another model"),
        ("net.onnx --calibration c.npz", "was measured on another model"),
    ):
        outcome = qconvert("quantize", *args.split())
        assert outcome.code == 2
        assert message in outcome.err


def test_unquantizable_model_is_refused_with_reasons(qconvert: Command, tiny: Path) -> None:
    outcome = qconvert("quantize", "tiny.onnx", "--images", "images", "--backend", "tensorrt")
    assert outcome.code == 3
    assert "there is nothing to quantize in this model" in outcome.err
    assert "Gemm: a 4x5 weight is too small for integer kernels" in outcome.err


def test_quantize_dry_run_reads_no_image_and_writes_nothing(qconvert: Command) -> None:
    outcome = qconvert(
        "quantize", "net.onnx", "--images", "images", "--dry-run", "--exclude", "Gemm"
    )
    assert outcome.code == 0
    assert "excluded by `Gemm`" in outcome.out
    assert not list(Path().glob("net-*"))


@pytest.mark.slow
def test_inspect_quantized_covers_float_and_third_party_models(qconvert: Command) -> None:
    would = qconvert("inspect", "net.onnx", "--quantized", "--backend", "tensorrt")
    assert "its inputs share one scale" in would.out
    quantized(qconvert, "--images", "images")
    model = onnx.load("out.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    result = qconvert("inspect", "foreign.onnx", "--quantized", "--json")
    layers = json.loads(result.out)["layers"]
    assert {name for name, layer in layers.items() if not layer["left"]} == {
        "stem", "wide", "narrow", "side", "last", "scores",
    }  # fmt: skip


def test_backend_option_offers_every_backend() -> None:
    assert tuple(backends.BACKENDS) == options.BACKENDS


@pytest.mark.slow
@pytest.mark.parametrize("portable", [True, False])
def test_quantize_and_inspect_say_whether_a_file_is_exact_on_every_x86(
    qconvert: Command, portable: bool
) -> None:
    flag = "--portable" if portable else "--no-portable"
    outcome = quantized(qconvert, "--images", "images", flag, "--effort", "none")
    shown = qconvert("inspect", "out.onnx", "--quantized").out
    proof = json.loads(qconvert("inspect", "out.onnx", "--quantized", "--json").out)
    saturating = [row["node"] for row in proof["pair_sums"] if row["saturating_channels"]]
    assert proof["portable"] is portable is not bool(saturating)
    assert proof["pair_sums"]
    sentence = "portable: every x86" if portable else "not portable: on x86 without VNNI"
    assert sentence in outcome.err
    assert sentence in shown
    assert all(name in shown for name in saturating)


@pytest.mark.slow
def test_quantize_and_inspect_say_that_low_bits_gain_nothing(qconvert: Command) -> None:
    bits = ("--weight-bits", "4", "--activation-bits", "4", "--effort", "none")
    outcome = quantized(qconvert, "--images", "images", *bits)
    shown = qconvert("inspect", "out.onnx", "--quantized").out
    notes = json.loads(qconvert("inspect", "out.onnx", "--quantized", "--json").out)["notes"]
    for text in (outcome.err, shown, *notes):
        assert "no runtime here is faster" in " ".join(text.split())
    assert ["4-bit weights" in notes[0], "4-bit activations" in notes[1]] == [True, True]


def test_dynamic_int8_needs_no_images(qconvert: Command) -> None:
    write(products(), Path("net.onnx"))
    outcome = quantized(qconvert, *DYNAMIC, "--plan-out", "plan.json")
    rows = {row.split()[0]: row.split()[1:4] for row in outcome.out.splitlines()[2:]}
    assert rows == {"Gemm": ["2", "2", "0"]}
    assert "note: portable: every x86" in outcome.err
    plan = json.loads(Path("plan.json").read_text())
    assert (plan["precision"], plan["tensors"]) == ("int8-dynamic", {})
    lines = qconvert("inspect", "out.onnx", "--quantized").out.splitlines()
    assert "Gemm 2 2 0" in [" ".join(line.split()) for line in lines]
    before = Path("out.onnx").read_bytes()
    quantized(qconvert, *DYNAMIC, "--plan", "plan.json")
    assert Path("out.onnx").read_bytes() == before
    outcome = qconvert("quantize", "net.onnx", "--plan", "plan.json", "-o", "again.onnx")
    assert outcome.code == 2
    assert "is a plan for int8-dynamic, not for int8" in outcome.err


def test_model_without_products_is_refused_by_dynamic_int8(qconvert: Command) -> None:
    outcome = qconvert("quantize", "net.onnx", *DYNAMIC, "-o", "out.onnx")
    assert outcome.code == 3
    assert "there is nothing to quantize in this model" in outcome.err
    assert "a 24x32 weight is too small" in outcome.err
    assert not Path("out.onnx").exists()


def test_dry_run_shows_what_dynamic_int8_takes(qconvert: Command) -> None:
    write(products(), Path("net.onnx"))
    outcome = qconvert("quantize", "net.onnx", *DYNAMIC, "--dry-run", "--json")
    layers = json.loads(outcome.out)["layers"]
    assert [name for name, layer in layers.items() if not layer["left"]] == ["hidden", "scores"]


def test_dynamic_int8_refuses_a_model_that_is_quantized_already(qconvert: Command) -> None:
    quantized(qconvert, "--images", "images", "--effort", "none")
    outcome = qconvert("quantize", "out.onnx", *DYNAMIC, "-o", "again.onnx")
    assert outcome.code == 2
    assert "is quantized already, and int8-dynamic cannot keep its scales" in outcome.err
