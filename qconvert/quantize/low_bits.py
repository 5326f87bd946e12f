"""What grids below 8 bits mean on the runtimes of today, in sentences with their figures.

Their integers are stored as INT8: ONNX Runtime and TensorRT have no convolution with fewer bits, so
that a file shows the accuracy of a grid, and is what a device with such kernels starts from.
"""

import math
from collections import Counter

import onnx_ir as ir

from qconvert.core import number_format as fmt
from qconvert.core.formats import FORMATS
from qconvert.graph import patterns
from qconvert.quantize.plan import Plan


def describe_low_bits(model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Return the notes of a model whose plan has grids below 8 bits; none with 8.

    Weight-only formats store 4 bits as 4 bits.
    """
    if FORMATS[plan.precision].weights_only:
        return ()
    notes, bits = [], plan.weights.bits
    if bits < 8:
        counts = count_weights(model, plan)
        stored, needed = counts.total(), sum(own * size for own, size in counts.items())
        wider = 1.0 - counts[bits] / stored if stored else 0.0
        kept = f" ({wider:.1%} of them keep 8)" if wider else ""
        notes.append(
            f"{bits}-bit weights{kept} are stored as INT8, {fmt.megabytes(stored)} MB where these "
            f"bits would take {fmt.megabytes(math.ceil(needed / 8))} MB: no runtime here is "
            f"faster, and no engine smaller, than with 8 bits; the accuracy is that of {bits}"
        )
    if (bits := plan.activations.bits) < 8:
        notes.append(
            f"{bits}-bit activations are stored as INT8, with a Clip of the integers behind each "
            "QuantizeLinear: no runtime here is faster than with 8 bits, and ONNX Runtime may be "
            "slower, as it computes layers with a Clip of their own in float"
        )
    return tuple(notes)


def count_weights(model: ir.Model, plan: Plan) -> Counter[int]:
    """Return how many weights a Q/DQ graph stores as bytes, by the bits that a plan gives them."""
    bits: dict[ir.Value, int] = {}
    for node in model.graph:
        layer = plan.layers.get(node.name or "")
        weight = layer.weight if layer is not None else None
        source = node.inputs[weight.slot] if weight is not None else None
        dequantize = source.producer() if source is not None else None
        if weight is not None and dequantize is not None and (value := dequantize.inputs[0]):
            bits[value] = max(plan.grid_of_weight(weight).bits, bits.get(value, 0))
    counts: Counter[int] = Counter()
    for value, own in bits.items():
        array = patterns.constant_array(value)
        counts[own] += array.size if array is not None and array.dtype.itemsize == 1 else 0
    return counts
