"""A plan on disk, and beside it the weights that were learned with it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pydantic

from qconvert.core.errors import UsageError, first_line
from qconvert.graph.patterns import INTEGER_OPS, is_quantized
from qconvert.quantize import rounded_weights
from qconvert.quantize.cross_layer import ChannelFactors
from qconvert.quantize.plan import FORMAT, LayerPlan, Plan
from qconvert.quantize.rounded_weights import RoundedWeights

PLAN_ADAPTER = pydantic.TypeAdapter(Plan)


@dataclass(frozen=True)
class PlanWithWeights:
    """A plan with the weights that belong to it."""

    plan: Plan
    weights: RoundedWeights = field(default_factory=dict)


def weights_path(path: Path) -> Path:
    """Return where the weights of a plan file lie."""
    return path.with_suffix(".learned.npz")


def save_plan(planned: PlanWithWeights, path: Path) -> None:
    """Write a plan, and its weights if it has any."""
    path.write_text(format_plan(planned.plan), encoding="utf-8")
    if planned.weights:
        rounded_weights.save(planned.weights, weights_path(path))
    else:
        weights_path(path).unlink(missing_ok=True)


def load_plan(path: Path) -> PlanWithWeights:
    """Read a plan; refuse one whose weights are not beside it."""
    found = read_plan(path)
    if not found.learned:
        return PlanWithWeights(found)
    if not weights_path(path).is_file():
        raise UsageError(
            f"`{path}` was made with learned weights, and `{weights_path(path)}` is not there",
            hint='copy that file too, or delete the line "learned" from the plan',
        )
    weights = rounded_weights.load(weights_path(path))
    rounded_weights.require_match(weights, found.learned)
    return PlanWithWeights(found, weights)


PLAN_METADATA_KEY = "qconvert.plan"
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
UNKNOWN_REASON = "nothing that it reads comes from integers; the file does not say why"


def read_embedded_plan(model: ir.Model) -> Plan | None:
    """Return the plan that a model was rewritten with, if it carries one."""
    text = model.metadata_props.get(PLAN_METADATA_KEY)
    return (
        None
        if text is None or not is_quantized(model)
        else parse_plan(text, "the model's metadata")
    )


def read_equalization_factors(model: ir.Model) -> ChannelFactors:
    """Return what the channels of a model were divided by before it was rounded."""
    plan = read_embedded_plan(model)
    return plan.equalized if plan is not None else {}


def read_layers(model: ir.Model) -> dict[str, LayerPlan]:
    """Return a layer for each node with weights, as far as Q/DQ nodes tell."""
    found: dict[str, LayerPlan] = {}
    for node in model.graph:
        name, op = node.name or f"{node.op_type} {len(found)}", node.op_type
        if op.startswith("QLinear") or op in INTEGER_OPS:
            found[name] = LayerPlan(op)
        elif op in _WEIGHTED:
            found[name] = LayerPlan(
                op, left="" if all(map(_is_dequantized, node.inputs[:2])) else UNKNOWN_REASON
            )
    return found


def _is_dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    # In half precision a Cast may stand between.
    while node is not None and node.op_type in ("Cast", "Reshape", "Transpose", "Flatten"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values; what a layer does not have is left out."""
    told: dict[str, Any] = PLAN_ADAPTER.dump_python(plan, mode="json", exclude_defaults=True)
    grids = {"activations": asdict(plan.activations), "weights": asdict(plan.weights)}
    return {"format": plan.format, **told, **grids}


def format_plan(plan: Plan) -> str:
    """Return the plan as text with a line for each layer and tensor, which is easy to edit."""
    told = plan_to_json(plan)
    lines = [f"  {json.dumps(key)}: {_format_value(value)}" for key, value in told.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _format_value(value: object) -> str:
    if not isinstance(value, dict) or not any(
        isinstance(each, dict | list) for each in value.values()
    ):
        return json.dumps(value, ensure_ascii=False)
    inner = [
        f"    {json.dumps(key, ensure_ascii=False)}: {json.dumps(each, ensure_ascii=False)}"
        for key, each in value.items()
    ]
    return "{\n" + ",\n".join(inner) + "\n  }"


def read_plan(path: Path) -> Plan:
    """Read a plan file; refuse what is not one, with the line or key that is wrong."""
    try:
        return parse_plan(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {first_line(error)}",
            hint="`qconvert quantize --plan-out PLAN.json` writes a plan",
        ) from None


def parse_plan(text: str, name: str) -> Plan:
    """Read a plan; `name` says in errors where it came from."""
    try:
        _require_format(json.loads(text), name)
        plan = PLAN_ADAPTER.validate_json(text, strict=True)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"`{name}` is not a plan",
            details=[f"file: not JSON: {first_line(error)}"],
            hint="`qconvert quantize --plan-out PLAN.json` writes a plan",
        ) from None
    except pydantic.ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()
        ]
        raise UsageError(
            f"`{name}` is not a plan",
            details=wrong[:5],
            hint="a plan has the keys that `qconvert quantize --plan-out PLAN.json` writes",
        ) from None
    return plan


def _require_format(told: object, name: str) -> None:
    found = told.get("format", FORMAT) if isinstance(told, dict) else FORMAT
    if found != FORMAT:
        raise UsageError(
            f"`{name}` has plan format {found}, this version reads {FORMAT}",
            hint="make the plan again with this version",
        )
