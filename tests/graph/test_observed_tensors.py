"""Every tensor that could be quantized is observed once; all others have a reason."""

import onnx_ir as ir
import pytest

from qconvert.graph.error_attribution import comparable_tensors, values_by_name
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import ObservedTensors, channel_axis, find_observed_tensors
from tests.models import floats, from_text, tiny

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
CONV = "Conv <pads: ints = [1, 1, 1, 1]> (x, w)"


def model(body: str, inputs: str = "float[N, 4, 6, 6] x", **weights: tuple[int, ...]) -> ir.Model:
    parsed = from_text(
        HEAD + f"net ({inputs}) => (float[] y) {{ {body} }}",
        **{name: floats(*shape) for name, shape in weights.items()},
    )
    return infer_shapes(parsed)[0]


def observed(body: str, inputs: str = "float[N, 4, 6, 6] x") -> ObservedTensors:
    weights = {"w": (4, 4, 3, 3)} if "(x, w" in body else {}
    return find_observed_tensors(model(body, inputs, **weights))


def test_classifier_is_observed_wherever_a_backend_could_quantize() -> None:
    tensors = find_observed_tensors(infer_shapes(tiny())[0])
    assert tensors.quantizable == ("image", "relu", "pooled", "scores")
    assert not tensors.one_image_per_run


@pytest.mark.parametrize("activation", ["Relu (h)", "Clip (h, zero, six)"])
def test_tensor_fused_with_its_activation_is_not_observed(activation: str) -> None:
    body = "zero = Constant <value: tensor = float {0.0}> () "
    body += f"six = Constant <value: tensor = float {{6.0}}> () h = {CONV} y = {activation}"
    tensors = observed(body)
    assert tensors.quantizable == ("x", "y")
    assert "fused" in tensors.skipped["h"]


def test_tensor_with_two_readers_is_observed() -> None:
    tensors = observed(f"h = {CONV} r = Relu (h) y = Add (h, r)")
    assert tensors.quantizable == ("x", "h", "r", "y")


def test_moved_tensors_are_aliases_of_their_source() -> None:
    tensors = observed(
        f"h = {CONV} p = MaxPool <kernel_shape: ints = [2, 2]> (h) "
        "t = Transpose <perm: ints = [0, 2, 3, 1]> (p) y = Sigmoid (t)"
    )
    assert tensors.quantizable == ("x", "h", "y")
    assert tensors.aliases == {"p": "h", "t": "h"}


def test_cubic_resize_output_is_not_an_alias() -> None:
    scales = "s = Constant <value: tensor = float[4] {1.0, 1.0, 2.0, 2.0}> () "
    for mode, shared in (("linear", True), ("cubic", False)):
        tensors = observed(f'{scales} h = {CONV} y = Resize <mode: string = "{mode}"> (h, , s)')
        assert ("y" in tensors.aliases) is shared


def test_tensors_no_backend_quantizes_are_range_only() -> None:
    tensors = observed(f"h = {CONV} e = Exp (h) f = Sqrt (e) y = Relu (f)")
    assert tensors.range_only == ("e",)
    assert tensors.quantizable == ("x", "h", "f", "y")


def test_integers_constants_and_sizes_are_not_observed() -> None:
    tensors = observed(
        "size = Shape (x) real = Cast <to: int = 1> (size) twice = Add (real, real) "
        "c = Constant <value: tensor = float {2.0}> () z = Mul (x, c) i = Cast <to: int = 7> (z) "
        "y = Cast <to: int = 1> (i)"
    )
    assert tensors.quantizable == ("x", "z")
    assert tensors.range_only == ("y",)
    assert not tensors.skipped


def test_data_dependent_size_is_skipped() -> None:
    tensors = observed(
        "places = NonZero (x) rows = Transpose (places) picked = GatherND (x, rows) "
        "y = Relu (picked)"
    )
    assert "depends on the values" in tensors.skipped["y"]
    assert tensors.range_only == ("x",)


def test_lost_batch_axis_means_one_image_per_run() -> None:
    body = (
        "shape = Constant <value: tensor = int64[2] {-1, 6}> () "
        "h = Reshape (x, shape) r = Sigmoid (h) y = Add (r, r)"
    )
    tensors = observed(body)
    assert tensors.one_image_per_run
    assert tensors.quantizable == ("x", "r", "y")


def test_lost_batch_axis_of_a_fixed_batch_is_skipped() -> None:
    body = (
        "shape = Constant <value: tensor = int64[2] {-1, 6}> () "
        "h = Reshape (x, shape) r = Sigmoid (h) y = Add (r, r)"
    )
    tensors = observed(body, "float[3, 4, 6, 6] x")
    assert tensors.quantizable == ("x",)
    assert "not the batch" in tensors.skipped["r"]


def test_subgraphs_are_not_observed() -> None:
    tensors = observed(
        "m = ReduceMax <keepdims: int = 0> (x) c = Cast <to: int = 9> (m) "
        "h = If (c) <then_branch = a () => (float t) { t = Relu (x) }, "
        "else_branch = b () => (float e) { e = Sigmoid (x) }> y = Relu (h)"
    )
    assert "t" not in (*tensors.quantizable, *tensors.range_only, *tensors.skipped)


def test_channel_axis_follows_the_neighbours() -> None:
    net = model(
        f"h = {CONV} t = Transpose <perm: ints = [0, 2, 3, 1]> (h) y = MatMul (t, m)",
        w=(4, 4, 3, 3),
        m=(4, 5),
    )
    values = {value.name: value for node in net.graph for value in node.outputs}
    assert channel_axis(values["h"]) == 1
    assert channel_axis(values["t"]) == 3
    assert channel_axis(net.graph.inputs[0]) == 1


def test_flattened_map_has_no_channel_axis() -> None:
    net = model("y = Flatten (x)", "float[N, 64, 32, 32] x")
    assert channel_axis(net.graph.outputs[0]) is None


SEQUENCE = f"h = {CONV} s = SequenceConstruct (h, x) t = Cast <to: int = 8> (h) y = Relu (h)"


def test_sequences_are_not_observed() -> None:
    one = model(SEQUENCE, w=(4, 4, 3, 3))
    values = values_by_name(one.graph)
    assert values["s"].type is None, "inference calls it a tensor"
    for kind in (None, ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))):
        values["s"].type = kind
        tensors = find_observed_tensors(one)
        assert "s" not in {*tensors.quantizable, *tensors.range_only, *tensors.aliases}


def test_text_and_sequences_are_not_comparable() -> None:
    one = model(SEQUENCE, w=(4, 4, 3, 3))
    values = values_by_name(one.graph)
    values["s"].type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    one.graph.outputs.extend([values["s"], values["t"]])
    assert comparable_tensors(one, one) == ["x", "h", "y"]
