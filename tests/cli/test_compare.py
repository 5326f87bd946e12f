"""`qconvert compare`: the differences of two models, layer by layer."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert.core import onnx_io
from qconvert.measure.layer_errors import LayerError
from qconvert.run.compare import layers_to_json
from tests.cli.test_console import on_terminal
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import mixed, tiny

pytestmark = pytest.mark.slow

Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, qconvert: Command) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_images(tmp_path / "images", 40)
    outcome = qconvert("quantize", "net.onnx", "--images", "images", "-o", "int8.onnx")
    assert outcome.code == 0, outcome.err


def test_compare_lists_layers_in_order_and_names_the_worst(qconvert: Command) -> None:
    outcome = qconvert("compare", "net.onnx", "int8.onnx", "--images", "images")
    assert outcome.code == 0, outcome.err
    rows = [line.split()[0] for line in outcome.out.splitlines() if " int8 " in line]
    assert rows[:2] == ["image", "a"]
    assert rows[-1] == "scores"
    assert "the largest errors are made by `" in outcome.out
    assert "on 32 images" in outcome.err
    again = qconvert("compare", "net.onnx", "int8.onnx", "--images", "images")
    assert again.out == outcome.out
    assert "cached, " in again.err


def test_nonfinite_numbers_are_words_in_json() -> None:
    layer = LayerError("a", "n", "Conv", "fp16", -math.inf, math.inf, None, None, None)
    (row,) = layers_to_json([layer])
    assert (row["arriving_db"], row["made_db"]) == ("-inf", "inf")


def test_layer_patterns_match_tensor_node_and_operator(qconvert: Command) -> None:
    base = ("compare", "net.onnx", "int8.onnx", "--images", "images", "--count", "8", "--json")
    layers = json.loads(qconvert(*base, "--layers", "Conv", "--layers", "sc*").out)
    assert {layer["op"] for layer in layers} == {"Conv", "Gemm"}
    assert all(layer["arriving_db"] > 0 and layer["made_db"] > 0 for layer in layers)
    refused = qconvert(*base, "--layers", "nothing")
    assert refused.code == 2
    assert "`--layers nothing` matches no layer" in refused.err


def test_compare_csv_has_every_layer(qconvert: Command) -> None:
    base = ("compare", "net.onnx", "int8.onnx", "--images", "images", "--count", "8")
    assert qconvert(*base, "--layers", "scores", "-o", "layers.csv").code == 0
    with Path("layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 8
    assert {row["variant"] for row in rows} == {"int8.onnx"}
    assert all(float(row["made_db"]) > 0 for row in rows)


def test_compare_uses_images_and_settings_of_the_run(qconvert: Command) -> None:
    build = ("build", "net.onnx", "--images", "images", "--seconds", "0.02", "-o", "run")
    assert qconvert(*build, "--backend", "cpu").code == 0
    outcome = qconvert("compare", "run/model.onnx", "run/engines/cpu-int8")
    assert outcome.code == 0, outcome.err
    assert "cached, " in outcome.err  # the build has compared them already
    same = qconvert("compare", "run/engines/cpu-fp32", "run/model.onnx")
    assert "there is no error" in same.out
    whole = qconvert("compare", "run", "run/engines/cpu-int8")
    assert whole.code == 2
    assert "run/engines/cpu-fp16" in whole.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("net.onnx", "int8.onnx"), "there are no images"),
        (("net.onnx", "absent.onnx", "--images", "images"), "`absent.onnx` is not a run"),
        (("net.onnx", "tiny.onnx", "--images", "images"), "and `net.onnx` takes `image: "),
        (("net.onnx", "renamed.onnx", "--images", "images"), "no tensor in common"),
    ],
)
def test_incomparable_models_are_refused(
    qconvert: Command, args: tuple[str, ...], words: str
) -> None:
    strange = tiny()
    strange.graph.inputs[0].name = "picture"
    write(strange, Path("tiny.onnx"))
    renamed = onnx_io.load(Path("net.onnx"))
    for node in renamed.graph:
        node.outputs[0].name = f"{node.outputs[0].name}_"
    write(renamed, Path("renamed.onnx"))
    outcome = qconvert("compare", *args)
    assert outcome.code in (2, 3)
    assert words in outcome.err


def test_report_on_a_terminal_is_not_cut(qconvert: Command, tmp_path: Path) -> None:
    script = (
        "import sys; from qconvert.cli import main; "
        f"main.main(['compare', '{tmp_path}/net.onnx', '{tmp_path}/int8.onnx', '--images', "
        f"'{tmp_path}/images', '-q'], standalone_mode=False)"
    )
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in on_terminal(80, script).splitlines()]
    piped = qconvert("compare", "net.onnx", "int8.onnx", "--images", "images", "-q").out
    assert max(map(len, shown)) <= 80
    assert len(shown) == len(piped.splitlines())
    assert not any("…" in line for line in shown)
    assert any("█" in line for line in shown)
