"""In which precision each layer of an engine computes, from the text of TensorRT's inspector."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qconvert.backends.kernels import CASTS, OTHER

# Releases spell types differently: `Row major linear FP32`, `Half`, `Int8 NHWC32`.
SPELLED = (
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)


def by_precision(text: str) -> Mapping[str, int] | None:
    """Count an engine's layers by the type of what each reads first, None where it is not told.

    A layer that reads INT8 multiplies INT8, whatever it answers in. Changes of type or layout alone
    count as `casts`. Written from the format's description; no engine was inspected to test it.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    counts = Counter(_word(layer) for layer in layers)
    return dict(sorted(counts.items()))


def _word(layer: Mapping[str, Any]) -> str:
    if layer.get("LayerType") == "Reformat":
        return CASTS
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    spelled = [str(each.get("Format/Datatype", each.get("Datatype", ""))) for each in tensors]
    for text in spelled:
        found = next((word for word, pattern in SPELLED if pattern.search(text)), None)
        if found:
            return found
    return OTHER
