"""What a model that is quantized already says of itself: by its plan, or by its graph."""

import onnx_ir as ir

from qconvert.graph.patterns import INTEGER_OPS, is_quantized
from qconvert.quantize.equalize import Factors
from qconvert.quantize.plan import Layer, Plan, loads

PLAN = "qconvert.plan"
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
UNKNOWN = "nothing that it reads comes from integers; the file does not say why"


def plan_of(model: ir.Model) -> Plan | None:
    """Return the plan that a model was rewritten with, if it carries one."""
    text = model.metadata_props.get(PLAN)
    return None if text is None or not is_quantized(model) else loads(text, "the model's metadata")


def factors_of(model: ir.Model) -> Factors:
    """Return what the channels of a model were divided by before it was rounded."""
    plan = plan_of(model)
    return plan.equalized if plan is not None else {}


def layers_of(model: ir.Model) -> dict[str, Layer]:
    """Return a layer for each node with weights, as far as Q/DQ nodes tell."""
    found: dict[str, Layer] = {}
    for node in model.graph:
        name, op = node.name or f"{node.op_type} {len(found)}", node.op_type
        if op.startswith("QLinear") or op in INTEGER_OPS:
            found[name] = Layer(op)
        elif op in WEIGHTED:
            found[name] = Layer(
                op, left="" if all(map(_from_integers, node.inputs[:2])) else UNKNOWN
            )
    return found


def _from_integers(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    # In half precision a Cast may stand between.
    while node is not None and node.op_type in ("Cast", "Reshape", "Transpose", "Flatten"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "DequantizeLinear"
