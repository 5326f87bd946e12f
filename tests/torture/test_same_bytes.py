"""Two builds from the same inputs give the same bytes."""

from pathlib import Path

import pytest

from tests.torture.environment import Environment
from tests.torture.run_content import hashes, stable_facts

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

GRAPHS = {
    "model.onnx",
    *(f"engines/{backend}-{precision}/model.onnx" for backend in ("cpu", "tensorrt-rtx")
      for precision in ("fp32", "fp16", "int8")),
}  # fmt: skip


def test_two_fresh_builds_give_the_same_graphs_plans_and_ranges(
    environment: Environment, tmp_path: Path
) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, seed in zip(runs, ("1", "4711"), strict=True):
        outcome = environment.build(run, run.with_suffix(".cache"), PYTHONHASHSEED=seed)
        assert outcome.code == 0, outcome.err
    first, second = (hashes(run, "*.onnx") for run in runs)
    assert first == second
    assert set(first) > GRAPHS
    for name in ("plan.json", "made.json", "calibration.npz", "images.txt", "run.toml"):
        first, second = (hashes(run, name) for run in runs)
        assert first
        assert first == second
    assert stable_facts(runs[0]) == stable_facts(runs[1])
