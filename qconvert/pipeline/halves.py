"""A model in half precision, with what calibration saw of it keeping out of overflow."""

from collections.abc import Mapping
from typing import Literal

import onnx_ir as ir

from qconvert.calibrate.calibration import Calibration
from qconvert.errors import QConvertError
from qconvert.graph.half import Halved, half
from qconvert.graph.observed import observe
from qconvert.graph.simplify import upgrade

# The first opset in which every operator of a network may be bfloat16.
BF16_OPSET = 22


def halved(
    model: ir.Model, kind: Literal["fp16", "bf16"], seen: Mapping[str, float], *, keep_io: bool
) -> Halved:
    """Return the model in half precision; for bfloat16 its opset is raised where it must be."""
    if kind == "bf16":
        try:
            model, _ = upgrade(model, BF16_OPSET)
        except ValueError as error:
            raise QConvertError(
                f"bf16 needs opset {BF16_OPSET}, and {error}",
                hint="fp16 needs no newer opset: `--precision fp16`",
            ) from None
    return half(model, kind, {**seen, **_rounded(model, seen)}, keep_io=keep_io)


def largest(model: ir.Model, calibration: Calibration | None) -> dict[str, float]:
    """Return the largest magnitude of every tensor that was seen, empty without calibration."""
    if calibration is None:
        return {}
    found = {
        name: max(abs(seen.low), abs(seen.high)) for name, seen in calibration.summaries.items()
    }
    shares = observe(model).shares.items()
    return found | {name: found[source] for name, source in shares if source in found}


def _rounded(model: ir.Model, seen: Mapping[str, float]) -> dict[str, float]:
    """Return for tensors that went through integers what was seen of them before."""
    found: dict[str, float] = {}
    for node in model.graph:
        integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        there = integers.producer() if integers is not None else None
        before = there.inputs[0] if there is not None else None
        name = (before.name or "") if before is not None else ""
        if name in seen:
            found[node.outputs[0].name or ""] = seen[name]
    return found
