"""A plan round-trips as text, can be edited by hand, and errors in it are reported."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import backends
from qconvert.backends.ort import open_cpu
from qconvert.core.errors import UsageError
from qconvert.core.scales import choose_qparams
from qconvert.graph.passes import infer_shapes
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.scheme import Scheme
from tests.calibrate.activations import summarize
from tests.models import floats, ops, tiny

Edit = Callable[[dict[str, Any]], object]
IMAGES = floats(12, 3, 8, 8, seed=9)
NAMES = ("conv/1", "relu", "pool", "flat", "head")


def net() -> ir.Model:
    model = infer_shapes(tiny())[0]
    for node, name in zip(model.graph, NAMES, strict=True):
        node.name = name
    return model


def scheme() -> Scheme:
    required = backends.requirements("cpu").schemes.get("int8")
    assert required is not None
    return required


@cache
def planned(method: str = "mse") -> Plan:
    """Return the plan of a real calibration."""
    summaries = summarize(net(), {"image": IMAGES})
    return make_plan(net(), scheme(), summaries, QuantizeOptions(method=method))


def edited(edit: Edit) -> str:
    doc = json.loads(plan_files.format_plan(planned()))
    edit(doc)
    return json.dumps(doc)


def read(edit: Edit) -> Plan:
    return plan_files.parse_plan(edited(edit), "mine.json")


def scores_of(model: ir.Model) -> np.ndarray:
    scores: np.ndarray = open_cpu(model)({"image": IMAGES})["scores"]
    return scores


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile:99.9"])
def test_plan_round_trips_through_its_text(method: str, tmp_path: Path) -> None:
    plan = planned(method)
    assert plan.quantized == len(NAMES)
    assert plan_files.parse_plan(plan_files.format_plan(plan), "p.json") == plan
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "plan.json").write_text(plan_files.format_plan(plan), encoding=encoding)
        assert plan_files.read_plan(tmp_path / "plan.json") == plan


def test_plan_text_has_a_line_per_layer_and_tensor() -> None:
    plan, lines = planned(), plan_files.format_plan(planned()).splitlines()
    inner = [line for line in lines if line.startswith("    ")]
    read_back = [json.loads("{" + line.strip().rstrip(",") + "}") for line in inner]
    assert [name for line in read_back for name in line] == [*plan.layers, *plan.tensors]
    doc = plan_files.plan_to_json(plan)
    assert read_back == [
        {name: value} for part in ("layers", "tensors") for name, value in doc[part].items()
    ]


def test_plan_has_ranges_for_quantized_tensors_alone() -> None:
    assert set(planned().tensors) == {"image", "relu", "pooled", "flat"}
    assert planned().tensors["flat"] == planned().tensors["pooled"]


def test_applied_plan_gives_outputs_close_to_float() -> None:
    expected, outputs = scores_of(net()), scores_of(apply_plan(net(), planned()))
    assert 0 < np.abs(outputs - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(
    "edit",
    [
        lambda doc: doc["layers"].pop("head"),
        lambda doc: doc["layers"]["head"].update(left="it decides the output"),
    ],
    ids=["taken out", "left"],
)
def test_layer_removed_by_hand_stays_in_float(edit: Edit) -> None:
    plan = read(edit)
    assert plan.quantized == len(NAMES) - 1
    whole, without = apply_plan(net(), planned()), apply_plan(net(), plan)
    weight = without.graph[-1].inputs[1]
    assert weight is not None
    assert weight.name == "head_weight"
    assert "head_weight" not in whole.graph.initializers
    assert ops(whole).count("DequantizeLinear") == 8
    assert ops(without).count("DequantizeLinear") == 6
    assert not np.array_equal(scores_of(whole), scores_of(without))
    np.testing.assert_allclose(scores_of(without), scores_of(net()), atol=0.1)


def test_range_edited_by_hand_is_used() -> None:
    plan = read(lambda doc: doc["tensors"]["image"].update(low=-0.25, high=0.5))
    initializers = apply_plan(net(), plan).graph.initializers
    scale = choose_qparams(plan.tensors["image"], plan.activations)
    for name, expected in (("image_scale", scale.scale), ("image_zero_point", scale.zero_point)):
        stored = initializers[name].const_value
        assert stored is not None
        np.testing.assert_array_equal(stored.numpy(), expected)
    ends = [plan.activations.quant_min, plan.activations.quant_max]
    reached = (np.array(ends) - scale.zero_point) * scale.scale
    assert reached.tolist() == pytest.approx([-0.25, 0.5], abs=float(scale.scale))


def test_layer_without_quantized_input_keeps_its_integer_weight() -> None:
    def weight_alone(doc: dict[str, Any]) -> None:
        doc["layers"]["conv/1"].pop("inputs")
        doc["tensors"].pop("image")

    rewritten = apply_plan(net(), read(weight_alone))
    assert "conv_weight_quantized" in rewritten.graph.initializers
    np.testing.assert_allclose(scores_of(rewritten), scores_of(net()), atol=0.1)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (lambda doc: doc.update(colour="red"), "colour: "),
        (lambda doc: doc["layers"]["head"].update(bits=4), "layers.head.bits: "),
        (lambda doc: doc["weights"].update(width=8), "weights.width: "),
        (lambda doc: doc["layers"]["head"]["weight"].pop("axis"), "layers.head.weight.axis: "),
        (lambda doc: doc.pop("scheme"), "scheme: "),
        (lambda doc: doc["layers"]["head"].update(inputs="first"), "layers.head.inputs: "),
        (lambda doc: doc["layers"]["head"].update(output="perhaps"), "layers.head.output: "),
        (lambda doc: doc["tensors"]["image"].update(low="small"), "tensors.image.low: "),
        (lambda doc: doc["tensors"]["image"].update(low=1e9), "the ends of a range must ascend"),
        (lambda doc: doc["weights"].update(bits=1), "2 to 16 bits"),
        (lambda doc: doc.update(rest="fp8"), "rest: "),
        (lambda doc: doc.update(layers=[]), "layers: "),
    ],
)
def test_invalid_key_or_value_is_rejected_with_its_location(edit: Edit, where: str) -> None:
    with pytest.raises(UsageError, match=r"`mine.json` is not a plan") as raised:
        read(edit)
    (wrong,) = raised.value.details
    assert where in wrong
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "{", "no plan", "[]", "null", "\x00"])
def test_text_without_a_json_object_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match=r"`plan.json` is not a plan") as raised:
        plan_files.parse_plan(text, "plan.json")
    assert raised.value.details[0].startswith("file: ")


def test_missing_or_binary_plan_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    for name in ("missing", "folder", "bytes"):
        with pytest.raises(UsageError, match=f"{name}` cannot be read") as raised:
            plan_files.read_plan(tmp_path / name)
        assert "--plan-out" in raised.value.hint


@pytest.mark.parametrize(
    "edit",
    [lambda doc: doc.update(format=2), lambda doc: doc.update(format=2, news={"a": 1})],
    ids=["same keys", "other keys"],
)
def test_other_plan_format_is_rejected_with_both_formats(edit: Edit) -> None:
    with pytest.raises(UsageError, match="plan format 2, this version reads 1"):
        read(edit)


def test_plan_for_another_model_is_rejected() -> None:
    other, same = net(), net()
    other.graph.initializers["head_bias"].const_value = ir.tensor(floats(5), name="head_bias")
    same.metadata_props["note"] = "what is written beside a model does not change it"
    with pytest.raises(UsageError, match="made for another model"):
        apply_plan(other, planned())
    np.testing.assert_array_equal(
        scores_of(apply_plan(same, planned())), scores_of(apply_plan(net(), planned()))
    )


def move(doc: dict[str, Any], name: str) -> None:
    doc["layers"][name] = doc["layers"].pop("head")


# Errors of a plan about a model, their text in the plan, and the message of the refusal.
WRONG: dict[str, tuple[Edit, str]] = {
    "unknown node": (lambda doc: move(doc, "tail"), "`tail`, which is not a Gemm of this model"),
    "other operator": (lambda doc: move(doc, "relu"), "`relu`, which is not a Gemm of this"),
    "range of an input": (
        lambda doc: doc["tensors"].pop("image"),
        "quantizes `image` at `conv/1` without a range",
    ),
    "range of a result": (
        lambda doc: doc["tensors"].pop("relu"),
        "quantizes `relu` at `relu` without a range",
    ),
    "slot": (
        lambda doc: doc["layers"]["head"].update(inputs=[3]),
        "input of `head` that does not exist",
    ),
    "slot below 0": (
        lambda doc: doc["layers"]["head"].update(inputs=[-3]),
        "input of `head` that does not exist",
    ),
    "slot of a weight": (
        lambda doc: doc["layers"]["relu"].update(weight={"slot": 1, "axis": 0}),
        "input of `relu` that does not exist",
    ),
    "weight that is none": (lambda doc: doc["layers"]["head"]["weight"].update(slot=0), "`head`"),
    "axis": (lambda doc: doc["layers"]["head"]["weight"].update(axis=2), "`head`"),
    "weight method": (lambda doc: doc.update(weight_method="best"), "is not a plan"),
}


@pytest.mark.parametrize("what", WRONG)
def test_plan_that_does_not_fit_the_graph_is_rejected(what: str) -> None:
    edit, message = WRONG[what]
    with pytest.raises(UsageError, match=message):
        apply_plan(net(), read(edit))
