"""Plans as files with their learned weights beside them, and inside quantized models."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic
from numpy.typing import NDArray

from qconvert.core import atomic, npz
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.graph.patterns import (
    INTEGER_OPS,
    WEIGHT_ONLY_OPS,
    WEIGHTED,
    is_quantized,
    producer_of,
)
from qconvert.quantize.cross_layer import ChannelFactors
from qconvert.quantize.plan import FORMAT, LayerPlan, Plan, RoundedWeight, RoundedWeights

PLAN_ADAPTER = pydantic.TypeAdapter(Plan)
PLAN_METADATA_KEY = "qconvert.plan"
WRITE_HINT = "`qconvert quantize --plan-out PLAN.json` writes a plan"
WEIGHTS_HINT = "it must be beside its plan, as `quantize --plan-out` and `build` write it"
UNKNOWN_REASON = "its inputs do not come from integers; the file does not say why"


@dataclass(frozen=True)
class PlanWithWeights:
    """A plan with the learned weights that belong to it."""

    plan: Plan
    weights: RoundedWeights = field(default_factory=dict)


def weights_path(path: Path) -> Path:
    """Return the path of the learned weights of a plan file."""
    return path.with_suffix(".learned.npz")


def save_plan(saved: PlanWithWeights, path: Path) -> None:
    """Write a plan, and its learned weights if it has any."""
    path.write_text(format_plan(saved.plan), encoding="utf-8")
    if saved.weights:
        save_weights(saved.weights, weights_path(path))
    else:
        weights_path(path).unlink(missing_ok=True)


def load_plan(path: Path) -> PlanWithWeights:
    """Read a plan and its learned weights; both must belong together."""
    plan = read_plan(path)
    if not plan.learned:
        return PlanWithWeights(plan)
    if not weights_path(path).is_file():
        raise UsageError(
            f"`{path}` was made with learned weights, but `{weights_path(path)}` is missing",
            hint='copy that file too, or delete the line "learned" from the plan',
        )
    weights = load_weights(weights_path(path))
    require_matching_weights(weights, plan.learned)
    return PlanWithWeights(plan, weights)


def weights_digest(weights: RoundedWeights) -> str:
    """Return the sha256 of all learned weights, empty if there are none."""
    if not weights:
        return ""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode())
        for array in weights[name].arrays().values():
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def save_weights(weights: RoundedWeights, path: Path) -> None:
    """Write the learned weights of each node; the same weights give the same bytes."""
    arrays = {
        f"{name}/{key}": array
        for name, weight in weights.items()
        for key, array in weight.arrays().items()
    }
    atomic.write_bytes(path, npz.pack(arrays))


def load_weights(path: Path) -> dict[str, RoundedWeight]:
    """Read the weights that `save_weights` wrote."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    types = {
        "integers": (np.int8, np.uint8),
        "zero_points": (np.uint8,),
        "steps": (np.float32,),
        "bias": (np.float32,),
    }
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            npz.require_within_limit(members)
            for member in members:
                name, key = member.filename.removesuffix(".npy").rsplit("/", 1)
                array = npz.read_array(archive, member)
                if array.dtype not in types.get(key, (array.dtype,)):
                    raise ValueError("an array has another type than it was written with")
                arrays.setdefault(name, {})[key] = array
        return {
            name: RoundedWeight(
                row["integers"], row["steps"], row.get("bias"), row.get("zero_points")
            )
            for name, row in arrays.items()
        }
    except npz.CORRUPT_ERRORS as error:
        reason = first_line(error)
        raise QConvertError(
            f"`{path}` has no learned weights: {reason}", hint=WEIGHTS_HINT
        ) from None


def require_matching_weights(weights: RoundedWeights, expected: str) -> None:
    """Refuse weights that were not learned with the plan."""
    if weights_digest(weights) != expected:
        reason = "other learned weights than these" if weights else "learned weights"
        raise UsageError(f"the plan was written with {reason}", hint=WEIGHTS_HINT)


def read_plan(path: Path) -> Plan:
    """Read a plan file without its weights."""
    try:
        return parse_plan(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise UsageError(f"`{path}` cannot be read: {reason}", hint=WRITE_HINT) from None


def parse_plan(text: str, origin: str) -> Plan:
    """Read the text of a plan; an error names its `origin` and the lines or keys that are wrong."""
    try:
        document = json.loads(text)
        version = document.get("format", FORMAT) if isinstance(document, dict) else FORMAT
        if version != FORMAT:
            raise UsageError(
                f"`{origin}` has plan format {version}, this version reads {FORMAT}",
                hint="make the plan again with this version",
            )
        return PLAN_ADAPTER.validate_json(text, strict=True)
    except json.JSONDecodeError as error:
        details, hint = [f"file: not JSON: {first_line(error)}"], WRITE_HINT
    except pydantic.ValidationError as error:
        details = [
            f"{'.'.join(map(str, row['loc'])) or 'file'}: {row['msg']}"
            for row in error.errors()[:5]
        ]
        hint = "a plan has the keys that `qconvert quantize --plan-out PLAN.json` writes"
    raise UsageError(f"`{origin}` is not a plan", details=details, hint=hint)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values; default values of layers are left out."""
    values: dict[str, Any] = PLAN_ADAPTER.dump_python(plan, mode="json", exclude_defaults=True)
    grids = {"activations": asdict(plan.activations), "weights": asdict(plan.weights)}
    return {"format": plan.format, **values, **grids}


def format_plan(plan: Plan) -> str:
    """Return the plan as text with a line for each layer and tensor, which is easy to edit."""
    lines, dumps = [], partial(json.dumps, ensure_ascii=False)
    for key, value in plan_to_json(plan).items():
        text = dumps(value)
        if isinstance(value, dict) and any(isinstance(row, dict | list) for row in value.values()):
            rows = (f"    {dumps(name)}: {dumps(row)}" for name, row in value.items())
            text = "{\n" + ",\n".join(rows) + "\n  }"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_embedded_plan(model: ir.Model) -> Plan | None:
    """Return the plan in the metadata of a quantized model, if there is one."""
    text = model.metadata_props.get(PLAN_METADATA_KEY)
    if text is None or not is_quantized(model):
        return None
    return parse_plan(text, "the model's metadata")


def read_equalization_factors(model: ir.Model) -> ChannelFactors:
    """Return the factors by which the channels of a model were divided before quantization."""
    plan = read_embedded_plan(model)
    return plan.equalized if plan is not None else {}


def read_layers(model: ir.Model) -> dict[str, LayerPlan]:
    """Return a layer for each weighted node of a quantized model, as its Q/DQ nodes show."""
    layers: dict[str, LayerPlan] = {}
    for node in model.graph:
        name, op = node.name or f"{node.op_type} {len(layers)}", node.op_type
        if op.startswith("QLinear") or op in INTEGER_OPS | WEIGHT_ONLY_OPS:
            layers[name] = LayerPlan(op)
        elif op in WEIGHTED:
            # In half precision a Cast may stand between.
            moving = ("Cast", "Reshape", "Transpose", "Flatten")
            producers = [producer_of(value, *moving) for value in node.inputs[:2]]
            operators = {producer.op_type if producer else "" for producer in producers}
            quantized = operators == {"DequantizeLinear"}
            layers[name] = LayerPlan(op, left="" if quantized else UNKNOWN_REASON)
    return layers
