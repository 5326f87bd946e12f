"""HardSigmoid and HardSwish are found in arithmetic, and only there."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.graph.activations import fuse_activations
from qconvert.graph.clean import list_passes
from tests.models import from_text, ops

NUMBERS = {
    "zero": 0.0, "one": 1.0, "three": 3.0, "five": 5.0, "six": 6.0, "sixth": 1 / 6, "minus": -6.0,
}  # fmt: skip
SUM = "s = Add (x, three) c = Clip (s, zero, six)"
FUSED = {
    "hard swish by division at the end": (f"{SUM} m = Mul (x, c) y = Div (m, six)", "HardSwish"),
    "hard swish by a factor at the end": (f"{SUM} m = Mul (c, x) y = Mul (sixth, m)", "HardSwish"),
    "hard swish by division before": (f"{SUM} d = Div (c, six) y = Mul (d, x)", "HardSwish"),
    "hard swish with the sum the other way": (
        "s = Add (three, x) c = Clip (s, zero, six) d = Mul (c, sixth) y = Mul (x, d)", "HardSwish",
    ),
    "hard swish of a hard sigmoid": (
        "g = HardSigmoid <alpha: float = 0.16666667, beta: float = 0.5> (x) y = Mul (x, g)",
        "HardSwish",
    ),
    "hard sigmoid": (f"{SUM} y = Div (c, six)", "HardSigmoid"),
    "hard sigmoid with another shift": (
        "s = Add (x, one) c = Clip (s, zero, six) y = Mul (c, sixth)", "HardSigmoid",
    ),
    "hard sigmoid that multiplies another tensor": (
        f"{SUM} g = Div (c, six) e = Exp (x) y = Mul (e, g)", "HardSigmoid Exp Mul",
    ),
}  # fmt: skip
UNCHANGED = {
    "a clip at another number": "s = Add (x, three) c = Clip (s, zero, five) y = Div (c, six)",
    "a clip from another number": "s = Add (x, three) c = Clip (s, one, six) y = Div (c, six)",
    "a clip without an end": "s = Add (x, three) c = Clip (s, zero) y = Div (c, six)",
    "a negative factor": f"{SUM} y = Div (c, minus)",
    "a quotient of the other order": f"{SUM} y = Div (six, c)",
    "a sum that something else reads": f"{SUM} d = Div (c, six) y = Mul (d, s)",
    "a clip that something else reads": f"{SUM} d = Div (c, six) y = Mul (d, c)",
    "a square": f"{SUM} m = Mul (c, x) n = Mul (m, x) y = Div (n, six)",
    "a gate of another slope": "g = HardSigmoid (x) y = Mul (x, g)",
    "a falling gate": "g = HardSigmoid <alpha: float = -0.2> (x) y = Mul (x, g)",
}


def build(body: str, opset: int = 20, kind: str = "float") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["": {opset}]>\n'
    text += f"net ({kind}[2, 50] x) => ({kind}[2, 50] y) {{ {body} }}"
    dtype = np.dtype("float32" if kind == "float" else kind)
    used = {name: np.array(number, dtype) for name, number in NUMBERS.items() if name in body}
    return from_text(text, **used)


@pytest.mark.parametrize("case", FUSED)
def test_activation_replaces_its_arithmetic(case: str) -> None:
    body, operators = FUSED[case]
    model = build(body)
    fused, summary = fuse_activations(model)
    assert (ops(fused), summary) == (operators.split(), "1 fused")
    images = {"x": np.linspace(-8, 8, 100, dtype=np.float32).reshape(2, 50)}
    expected, outputs = (open_cpu(net)(images)["y"] for net in (model, fused))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


@pytest.mark.parametrize("case", UNCHANGED)
def test_other_arithmetic_stays(case: str) -> None:
    model = build(UNCHANGED[case])
    assert fuse_activations(model) == (model, "")


@pytest.mark.parametrize(("kind", "count"), [("float16", 1), ("double", 0), ("int32", 0)])
def test_types_without_these_activations_stay(kind: str, count: int) -> None:
    model = build(f"{SUM} y = Div (c, six)", kind=kind)
    fused, _ = fuse_activations(model)
    assert ops(fused).count("HardSigmoid") == count
    image = np.linspace(-8, 8, 100).reshape(2, 50).astype("float16" if count else kind)
    np.testing.assert_allclose(
        open_cpu(fused)({"x": image})["y"], open_cpu(model)({"x": image})["y"]
    )


def test_old_opset_has_no_hard_swish() -> None:
    model = build(f"{SUM} m = Mul (x, c) y = Div (m, six)", opset=13)
    assert fuse_activations(model) == (model, "")


def test_shift_is_fused_before_it_is_folded_into_a_bias() -> None:
    names = [step.name for step in list_passes(20)]
    assert names.index("constants") < names.index("activations") < names.index("batchnorm")
