"""Cleaning applies its passes in order, and checks and reports each."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors, random_inputs
from qconvert.graph import clean as cleaning
from qconvert.graph.clean import CleanedModel, Pass, clean_model, perturb_inputs
from qconvert.graph.passes import upgrade_opset
from tests import models
from tests.models import floats, from_text, ops

NORMED = """
<ir_version: 8, opset_import: ["": 13]>
net (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
    two = Constant <value: tensor = float[1] {2.0}> ()
    three = Constant <value: tensor = float[1] {3.0}> ()
    six = Mul (two, three)
    c = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
    n = BatchNormalization (c, gamma, beta, mean, var)
    same = Identity (n)
    y = Mul (same, six)
}
"""


# The sine of large numbers amplifies the error in their last bits.
SENSITIVE = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    h = Conv (x, w)
    n = BatchNormalization (h, gamma, beta, mean, var)
    y = Sin (n)
}
"""


def normed() -> ir.Model:
    return from_text(
        NORMED,
        w=floats(4, 3, 3, 3),
        gamma=floats(4, seed=1),
        beta=floats(4, seed=2),
        mean=floats(4, seed=3),
        var=abs(floats(4, seed=4)) + 0.5,
    )


def clean(model: ir.Model, *skip: str) -> CleanedModel:
    feeds = random_inputs(onnx_io.inputs(model), 2, seed=0)

    def outputs(candidate: ir.Model) -> Tensors:
        return open_cpu(candidate)(feeds)

    return clean_model(model, 20, skip, outputs)


def test_messy_graph_is_cleaned_and_outputs_stay() -> None:
    model = normed()
    before = onnx_io.fingerprint(model)
    outcome = clean(model)
    assert ops(outcome.model) == ["Conv"]
    assert outcome.model.opset_imports[""] == 20
    assert all(not step.dropped for step in outcome.steps)
    assert {step.name for step in outcome.steps if step.changed} >= {"opset", "constants"}
    assert onnx_io.fingerprint(model) == before, "the input is left alone"
    assert all(node.name for node in outcome.model.graph)


@pytest.mark.parametrize("slack", [0.0, cleaning.SLACK])
def test_pass_is_kept_if_outputs_change_within_float32_noise(
    monkeypatch: pytest.MonkeyPatch, slack: float
) -> None:
    model = from_text(
        SENSITIVE,
        w=floats(4, 3, 3, 3),
        gamma=np.full(4, 1000, np.float32),
        beta=floats(4, seed=2),
        mean=floats(4, seed=3),
        var=abs(floats(4, seed=4)) + 0.5,
    )
    nudging = Pass("nudge", lambda model: (perturb_inputs(model) or model, "nudged"))
    monkeypatch.setattr(cleaning, "list_passes", lambda opset: (nudging,))
    monkeypatch.setattr(cleaning, "SLACK", slack)
    (step,) = clean(model).steps
    assert (step.changed, "moved `y`" in step.dropped) == (
        ("nudged", False) if slack else ("", True)
    )


def test_cleaning_twice_changes_nothing_more() -> None:
    once = clean(normed()).model
    twice = clean(once).model
    assert onnx_io.serialize(once) == onnx_io.serialize(twice)


def test_pass_that_changes_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_to_bias(model: ir.Model, number: float) -> tuple[ir.Model, str]:
        spoiled = model.clone()
        bias = spoiled.graph.initializers["head_bias"]
        array = floats(5, seed=3) + np.float32(number)
        bias.const_value = ir.tensor(array, name="head_bias")
        return spoiled, "spoiled"

    def fail(model: ir.Model) -> tuple[ir.Model, str]:
        raise RuntimeError("tripped")

    def break_graph(model: ir.Model) -> tuple[ir.Model, str]:
        broken = model.clone()
        broken.graph.node(0).op_type = "Nonsense"
        return broken, "broken"

    def rename(model: ir.Model) -> tuple[ir.Model, str]:
        renamed = model.clone()
        renamed.graph.outputs[0].name = "other"
        return renamed, "renamed"

    wrong = [
        Pass("spoil", lambda model: add_to_bias(model, 0.01)),
        Pass("poison", lambda model: add_to_bias(model, np.nan)),
        Pass("fail", fail),
        Pass("break", break_graph),
        Pass("rename", rename),
    ]
    monkeypatch.setattr(cleaning, "list_passes", lambda opset: tuple(wrong))
    model = models.tiny()
    outcome = clean(model)
    dropped = {step.name: step.dropped for step in outcome.steps}
    assert dropped["spoil"].startswith("it moved `scores` by ")
    assert dropped["poison"] == "it made values of `scores` infinite or NaN"
    assert dropped["fail"] == "it failed: tripped"
    assert dropped["break"].startswith(
        "its result does not run: ONNX Runtime cannot load this model"
    )
    assert dropped["rename"] == "it renamed the outputs to other"
    assert onnx_io.fingerprint(outcome.model) == onnx_io.fingerprint(model)


QUANTIZED = """
<ir_version: 10, opset_import: ["": 20]>
qat (float[N, 4] x) => (float[N, 4] y) {
    s = Constant <value: tensor = float {0.1}> ()
    z = Constant <value: tensor = int8 {0}> ()
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    wd = DequantizeLinear (w, s, z)
    same = Identity (d)
    y = MatMul (same, wd)
}
"""


def test_quantized_model_keeps_its_quantizers() -> None:
    weight = (floats(4, 4) * 40).astype("int8")
    outcome = clean(from_text(QUANTIZED, w=weight))
    assert ops(outcome.model).count("DequantizeLinear") == 2
    assert ops(outcome.model).count("QuantizeLinear") == 1
    left_out = {
        step.name for step in outcome.steps if step.dropped == cleaning.UNSAFE_FOR_QUANTIZED
    }
    assert left_out == {"simplify", "batchnorm"}
    assert outcome.model.graph.initializers["w"].dtype == ir.DataType.INT8


def test_passes_are_skipped_by_name_and_unknown_names_rejected() -> None:
    outcome = clean(normed(), "simplify", "batchnorm", "constants")
    assert "BatchNormalization" in ops(outcome.model)
    assert [step.name for step in outcome.steps if step.dropped == "skipped on request"] == [
        "constants",
        "simplify",
        "batchnorm",
    ]
    with pytest.raises(UsageError, match="no pass `simplfy`; did you mean `simplify`"):
        clean(normed(), "simplfy")


def test_large_model_skips_passes_that_hold_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    outcome = clean(normed())
    assert {step.name for step in outcome.steps if step.dropped == cleaning.TOO_LARGE} == {
        "simplify"
    }
    (opset,) = [step.dropped for step in outcome.steps if step.name == "opset"]
    assert opset == "it failed: a model above 2 GB stays at opset 13"
    assert "BatchNormalization" not in ops(outcome.model)


FUNCTION = """
<ir_version: 10, opset_import: ["": 20, "my": 1]>
net (float[N, 4] x) => (float[N, 4] y) { y = my.Twice (x) }
<domain: "my", opset_import: ["": 20]>
Twice (a) => (b) { b = Add (a, a) }
"""


def test_model_functions_are_inlined() -> None:
    outcome = clean(ir.from_onnx_text(FUNCTION))
    assert ops(outcome.model) == ["Add"]
    assert not outcome.model.functions
    assert outcome.steps[0].changed == "1 functions"


def test_duplicate_node_names_are_renamed_before_the_first_run() -> None:
    model = models.tiny()
    for node in model.graph:
        node.name = "same"
    outcome = clean(model)
    assert len({node.name for node in outcome.model.graph}) == len(outcome.model.graph)
    assert {step.name: step.changed for step in outcome.steps}["names"] == "4 duplicates renamed"


DRAWING = """
<ir_version: 10, opset_import: ["": 19]>
net (float[N, 4] x) => (float[N, 4] y) {
    training = Constant <value: tensor = bool {1}> ()
    ratio = Constant <value: tensor = float {0.5}> ()
    d = Dropout (x, ratio, training)
    y = Add (d, d)
}
"""


def test_random_model_skips_passes_that_compute() -> None:
    outcome = clean(ir.from_onnx_text(DRAWING))
    dropped = {step.name: step.dropped for step in outcome.steps}
    assert dropped["opset"] == dropped["simplify"] == cleaning.NOT_REPEATABLE
    assert dropped["inline"] == dropped["shapes"] == dropped["names"] == ""
    assert ops(outcome.model)[-2:] == ["Dropout", "Add"]
    assert all(node.name for node in outcome.model.graph)


UNREAD = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 2] first, float[N, 4] x) => (float[N, 4] y) {
    a = Identity (x)
    y = Relu (a)
}
"""


def test_unused_input_is_restored_after_a_pass() -> None:
    outcome = clean(ir.from_onnx_text(UNREAD))
    assert [str(spec) for spec in onnx_io.inputs(outcome.model)] == [
        "first: float32[N, 2]",
        "x: float32[N, 4]",
    ]
    assert ops(outcome.model) == ["Relu"]


def test_unreachable_opset_names_the_operator() -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 9]>\n'
        "net (float[N, 3, 4, 4] x) => (float[N, 3, 8, 8] y) "
        '{ s = Constant <value: tensor = float[4] {1, 1, 2, 2}> () y = Upsample <mode = "linear"> '
        "(x, s) }"
    )
    (step,) = [step for step in clean(ir.from_onnx_text(text)).steps if step.name == "opset"]
    assert "converting `Upsample` to opset 20; the model stays at opset 9" in step.dropped


def test_operator_without_a_version_adapter_is_named() -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 5]>\n'
        "net (float[2, 3] x) => (float[2, 3] y) { y = Cast <to: int = 1> (x) }"
    )
    with pytest.raises(ValueError, match="upgrade `Cast` beyond opset 5; the model stays at"):
        upgrade_opset(ir.from_onnx_text(text), 20)


def test_cleaned_model_is_valid_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(model: ir.Model) -> tuple[ir.Model, str]:
        aged = model.clone()
        aged.ir_version = 3
        return aged, "older"

    monkeypatch.setattr(cleaning, "list_passes", lambda opset: (Pass("older", older),))
    with pytest.raises(QConvertError, match="the cleaned model is not valid ONNX"):
        clean(models.tiny())


CROWDED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 4] x) => (float[N, 4] y) {
    c = Add (k, k)
    d = Mul (x, c)
    y = Add (d, c_folded)
}
"""


def test_folded_constant_gets_a_unique_name() -> None:
    model = from_text(CROWDED, k=floats(4), c_folded=floats(4, seed=1))
    outcome = clean(model, "simplify")
    assert "constants" not in [step.name for step in outcome.steps if step.dropped]
    assert set(outcome.model.graph.initializers) == {"c_folded", "c_folded_1"}
