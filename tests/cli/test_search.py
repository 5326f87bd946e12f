"""`qconvert search` and `build --precision mixed` on the demo network, its ranges made narrow."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert import demo
from qconvert.backends.ort_profile import OperatorTime
from qconvert.core import onnx_io
from qconvert.demo import generator
from qconvert.optimize.faster_blocks import BlockSet, SetTimer, SetTimes, names_of
from qconvert.optimize.mixed_precision import Profiler
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.run import search
from tests.conftest import Outcome
from tests.models import floats, from_text

Command = Callable[..., Outcome]
# Ranges that clip 1 % of the values lose predictions that a mix recovers. TensorRT's
# scheme is evaluated on the CPU, and not timed without a GPU.
COARSE = ("--method", "percentile:99", "--budget", "3", "--effort", "none")
ON_CPU = ("network.onnx", "--images", "calib", "--backend", "cpu", "--effort", "none")
GIVEN = ("network.onnx", "--images", "calib", "--eval", "val", *COARSE, "--backend", "tensorrt-rtx")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    generator.write_images(place / "calib", seed=11, count=40)
    generator.write_images(place / "val", seed=12, count=40)
    return place


@pytest.fixture(autouse=True)
def _demo(images: Path) -> None:
    shutil.copy(Path(demo.__file__).parent / "network.onnx", "network.onnx")
    for name in ("calib", "val"):
        Path(name).symlink_to(images / name)


@pytest.mark.long
def test_search_writes_the_mix_its_plan_and_its_trials(qconvert: Command) -> None:
    outcome = qconvert("search", *GIVEN, "-o", "out")
    assert outcome.code == 0, outcome.err
    for title in ("Blocks by the error that each removes", "Sets tried on", "Result\n"):
        assert title in outcome.out
    assert max(map(len, [*outcome.out.splitlines(), *outcome.err.splitlines()])) <= 80
    result = json.loads(Path("out/search.json").read_text())
    lifted = set(result["chosen"]["lifted"])
    assert result["outcome"] == "mixed"
    assert result["chosen"]["confirmed"]["pp"] <= 3 < result["int8"]["confirmed"]["pp"]
    plan = plan_files.read_plan(Path("out/plan.json"))
    reasons = [layer.left for layer in plan.layers.values() if layer.left.startswith("kept in")]
    assert len(reasons) >= len(lifted) > 0
    apply_plan(onnx_io.load(Path("out/model.onnx")), plan)
    onnx_io.load(Path("out/mixed.onnx"))
    trials = Path("out/trials.jsonl").read_text()
    again = qconvert("search", *GIVEN, "-o", "out", "--json")
    assert "✓ search" in again.err
    assert "cached, " in next(line for line in again.err.splitlines() if "✓ search" in line)
    printed = json.loads(again.out)
    assert printed.pop("backend") == "tensorrt-rtx"
    assert set(printed.pop("bytes")) == {"fp32", "int8", "mixed"}
    assert printed == result
    assert Path("out/trials.jsonl").read_text() == trials
    _require_mixed_in_a_build(qconvert, lifted)


def _require_mixed_in_a_build(qconvert: Command, lifted: set[str]) -> None:
    """A build runs the same search, so it is cached."""
    options = (*GIVEN, "--precision", "int8,mixed", "--plan-only", "-o", "run", "--json")
    outcome = qconvert("build", *options)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert set(report["mixes"]["tensorrt-rtx"]["chosen"]["lifted"]) == lifted
    plain, mixed = report["variants"]
    assert (plain["precision"], mixed["precision"]) == ("int8", "mixed")
    assert mixed["quantized"] < plain["quantized"]
    assert any(node["reason"].startswith("kept in fp16") for node in mixed["unquantized"])
    assert Path("run/analysis/tensorrt-rtx-trials.jsonl").is_file()


@pytest.mark.slow
def test_search_ends_at_once_if_int8_stays_within_the_budget(qconvert: Command) -> None:
    outcome = qconvert("search", *GIVEN, "--budget", "50", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "INT8 keeps the budget" in outcome.out
    assert not Path("out/mixed.onnx").exists()
    options = (*GIVEN, "--budget", "50", "--precision", "mixed", "-o", "run", "--plan-only")
    refused = qconvert("build", *options)
    assert refused.code == 3
    assert "no `tensorrt-rtx-mixed`: INT8 keeps the budget" in refused.err


@pytest.mark.long
@pytest.mark.parametrize("float_ms", [1.0, 3.0])
def test_search_without_a_solution_exits_with_1(
    float_ms: float, qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the CPU decides which of both is faster.
    times = {(): [2.0], None: [float_ms]}
    monkeypatch.setattr(search, "make_timer", lambda *_: lambda sets: times)
    options = (*ON_CPU, "--set", "search.by-latency=false")
    outcome = qconvert("search", *options, "--max-latency", "0.5", "-o", "out")
    assert outcome.code == 1
    assert "allow a larger `--budget` or `--max-latency`" in " ".join(outcome.err.split())
    assert "no `--eval`: the mix is confirmed on" in " ".join(outcome.err.split())


def test_search_dry_run_lists_trials_and_writes_nothing(qconvert: Command) -> None:
    outcome = qconvert("search", *GIVEN, "-o", "out", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "blocks" in outcome.out
    assert "operators in INT8" not in outcome.out
    assert "operators in INT8" in qconvert("search", *ON_CPU, "-o", "out", "--dry-run").out
    assert not Path("out").exists()
    for place in ("calib", "network.onnx"):
        refused = qconvert("search", *GIVEN, "-o", place, "--dry-run")
        assert (refused.code, refused.out) == (2, "")
        assert f"`{place}` " in refused.err


@pytest.mark.slow
def test_search_refuses_two_backends_and_missing_images(qconvert: Command) -> None:
    two = qconvert("search", "network.onnx", "--backend", "cpu,tensorrt", "--images", "calib")
    assert (two.code, "search needs one backend" in two.err) == (2, True)
    blind = qconvert("search", "network.onnx", "--backend", "cpu", "-o", "out")
    assert blind.code == 2


def _labelled(shift: int) -> None:
    """Write labels, which are correct if the shift is 0."""
    names = Path("val/classes.txt").read_text().split()
    files = sorted(Path("val").glob("*.jpg"))
    numbers = [(names.index(file.stem.partition("-")[2]) + shift) % len(names) for file in files]
    lines = [f"{file},{number}" for file, number in zip(files, numbers, strict=True)]
    Path("labels.csv").write_text("\n".join(["file,label", *lines]))


@pytest.mark.long
def test_other_labels_start_new_trials(qconvert: Command) -> None:
    def searched(out: str) -> dict[str, Any]:
        options = (*GIVEN, "--labels", "labels.csv", "--by", "top-1", "--budget", "50")
        outcome = qconvert("search", *options, "-o", out, "--json")
        assert outcome.code == 0, outcome.err
        confirmed: dict[str, Any] = json.loads(outcome.out)["int8"]["confirmed"]
        return confirmed

    _labelled(0)
    first = searched("out")
    assert first["pp"] > 0
    _labelled(3)
    again = searched("out")
    assert again["pp"] < first["pp"]
    assert again == searched("other")


@pytest.mark.long
def test_other_thread_count_starts_a_new_search(qconvert: Command) -> None:
    options = (*GIVEN[:-1], "cpu", "--budget", "50", "--seconds", "0.02", "--json")
    for number in (1, 2):
        outcome = qconvert(
            "search", *options, "-o", f"out{number}", "--set", f"cpu.threads={number}"
        )
        assert outcome.code == 0, outcome.err
        assert "cached, " not in next(
            line for line in outcome.err.splitlines() if "✓ search" in line
        )


@pytest.mark.long
def test_another_budget_starts_a_new_search(qconvert: Command) -> None:
    built = ("--precision", "mixed", "--plan-only", "--json")
    outcome = qconvert("build", *GIVEN, *built, "-o", "run")
    assert outcome.code == 0, outcome.err
    again = ("build", "--from", "run", *built, "--backend", "tensorrt-rtx")
    resumed = qconvert(*again)
    assert "✓ search" not in resumed.err
    assert json.loads(resumed.out)["mixes"]["tensorrt-rtx"]["budget"] == 3
    other = qconvert(*again, "--set", "search.budget=2")
    assert "✓ search" in other.err
    assert json.loads(other.out)["mixes"]["tensorrt-rtx"]["budget"] == 2


@pytest.mark.long
def test_obsolete_mix_is_removed_from_a_run(qconvert: Command) -> None:
    planned = ("--precision", "int8,mixed", "--plan-only", "-o", "run")
    assert qconvert("build", *GIVEN, *planned).code == 0
    assert Path("run/engines/tensorrt-rtx-mixed").is_dir()
    assert qconvert("build", *GIVEN, *planned, "--budget", "50").code == 0
    assert not Path("run/engines/tensorrt-rtx-mixed").exists()


@pytest.mark.long
def test_search_folder_refuses_another_run(qconvert: Command) -> None:
    assert qconvert("search", *GIVEN, "--budget", "50", "-o", "out").code == 0
    other = qconvert("build", *GIVEN, "--method", "minmax", "--plan-only", "-o", "out")
    assert (other.code, "`out` holds another run" in other.err) == (2, True)
    assert qconvert("build", *GIVEN, "--plan-only", "-o", "out").code == 0


# A wide map of few channels, each filtered alone: integer kernels gain least on it, and Tanh, which
# has none, costs two conversions. The product at the end reads a quarter of the bytes in INT8.
UNEVEN = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 3, 96, 96] image) => (float[batch, 10] scores) {
    a = Conv <pads: ints = [1, 1, 1, 1]> (image, stem)
    b = Tanh (a)
    c = Conv <pads: ints = [1, 1, 1, 1], group: int = 8> (b, filters)
    d = Tanh (c)
    pooled = AveragePool <kernel_shape: ints = [8, 8], strides: ints = [8, 8]> (d)
    flat = Flatten (pooled)
    wide = Gemm <transB: int = 1> (flat, wide_weight)
    e = Relu (wide)
    scores = Gemm <transB: int = 1> (e, head)
}
"""
SHAPES = {"stem": (8, 3, 3, 3), "filters": (8, 1, 3, 3), "wide_weight": (512, 1152),
          "head": (10, 512)}  # fmt: skip
UNEVEN_ON_CPU = ("uneven.onnx", *ON_CPU[1:], "--budget", "100", "--seconds", "0.2")


def write_uneven() -> None:
    weights = {
        name: floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(SHAPES.items())
    }
    onnx_io.save(from_text(UNEVEN, **weights), Path("uneven.onnx"))


def front_is_faster(*_: object) -> SetTimer:
    """Return a timer by which the convolutions save 2 ms in float, and products lose 2."""

    def timer(sets: Sequence[BlockSet]) -> SetTimes:
        times: dict[tuple[str, ...] | None, Sequence[float]] = {None: [10.0] * 20}
        for blocks in sets:
            convolutions = sum("Conv" in block.name for block in blocks)
            ms = 10.0 - 2 * convolutions + 2 * (len(blocks) - convolutions)
            times[names_of(blocks)] = [ms] * 20
        return times

    return timer


def front_is_profiled(*_: object) -> Profiler:
    convolutions, products = ("Conv_0", "Conv_1"), ("Gemm_0", "Gemm_1")
    int8 = [(name, 4.0) for name in convolutions] + [(name, 1.0) for name in products]
    fp32 = [(name, 2.0) for name in convolutions] + [(name, 3.0) for name in products]
    profiles = {
        name: [OperatorTime(operator, "Conv", ms) for operator, ms in times]
        for name, times in (("int8", int8), ("float", fp32))
    }
    return lambda: profiles


@pytest.mark.long
def test_build_on_the_cpu_has_a_mix_for_speed(
    qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_uneven()
    monkeypatch.setattr(search, "make_timer", front_is_faster)
    monkeypatch.setattr(search, "make_profiler", front_is_profiled)
    options = (*UNEVEN_ON_CPU, "--precision", "int8,mixed", "--plan-only", "-o", "run")
    outcome = qconvert("build", *options, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    mix = report["mixes"]["cpu"]
    assert mix["faster"]["lifted"] == mix["chosen"]["lifted"] == ["Conv_0", "Conv_1"]
    note = next(note for note in report["notes"] if note.startswith("`cpu-mixed`: 2 blocks"))
    assert "for speed: 6.00 ms instead of 10.00 in INT8 and 10.00 in fp32" in note
    plan = plan_files.read_plan(Path("run/engines/cpu-mixed/plan.json"))
    reasons = {name: layer.left for name, layer in plan.layers.items()}
    assert reasons["Conv_1"] == "kept in fp32, in which it runs faster"
    assert reasons["Gemm_0"] == ""
    again = qconvert("build", *options)
    assert "cached, " in next(line for line in again.err.splitlines() if "✓ search" in line)


@pytest.mark.long
def test_search_on_the_cpu_times_operators_and_whole_engines(qconvert: Command) -> None:
    """Which engine is the fastest depends on the CPU; that results agree does not."""
    write_uneven()
    outcome = qconvert("search", *UNEVEN_ON_CPU, "--set", "cpu.threads=1", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "Blocks by what float saves, 4 of 4" in outcome.out
    mix = json.loads(Path("out/search.json").read_text())
    times = {row["block"]: row for row in mix["times"]}
    assert list(times) == ["Conv_0", "Conv_1", "Gemm_0", "Gemm_1"]
    assert all(row["int8_ms"] > 0 and row["float_ms"] > 0 for row in times.values())
    if mix["outcome"] == "mixed":
        assert f"{mix['chosen']['ms']:.2f} ms instead of" in mix["why"]
        plan = plan_files.read_plan(Path("out/plan.json"))
        kept = {name for name, layer in plan.layers.items() if "runs faster" in layer.left}
        assert set(mix["faster"]["lifted"]) <= kept
    else:
        assert not Path("out/mixed.onnx").exists()
        assert mix["outcome"] == ("int8" if mix["int8"]["ms"] < mix["float_ms"] else "float")
    # All times are in the cache, and an interrupted search takes them from there.
    shutil.rmtree(".store/search")
    assert qconvert("search", *UNEVEN_ON_CPU, "--set", "cpu.threads=1", "-o", "again").code == 0
    assert json.loads(Path("again/search.json").read_text()) == mix
