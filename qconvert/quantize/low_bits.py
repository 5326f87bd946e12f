"""What grids below 8 bits mean on the runtimes of today, in sentences with their figures.

Their integers are stored as INT8: ONNX Runtime and TensorRT have no convolution with fewer bits, so
that a file shows the accuracy of a grid, and is what a device with such kernels starts from.
"""

import math

import onnx_ir as ir

from qconvert.core import number_format as fmt
from qconvert.graph import patterns
from qconvert.quantize.plan import Plan


def describe_low_bits(model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Return the notes of a model whose plan has grids below 8 bits; none with 8."""
    notes, bits = [], plan.weights.bits
    if bits < 8:
        stored = count_weights(model)
        notes.append(
            f"{bits}-bit weights are stored as INT8, {fmt.megabytes(stored)} MB where {bits} bits "
            f"would take {fmt.megabytes(math.ceil(stored * bits / 8))} MB: no runtime here is "
            f"faster, and no engine smaller, than with 8 bits; the accuracy is that of {bits}"
        )
    if (bits := plan.activations.bits) < 8:
        notes.append(
            f"{bits}-bit activations are stored as INT8, with a Clip of the integers behind each "
            "QuantizeLinear: no runtime here is faster than with 8 bits, and ONNX Runtime may be "
            "slower, as it computes layers with a Clip of their own in float"
        )
    return tuple(notes)


def count_weights(model: ir.Model) -> int:
    """Return how many weights a Q/DQ graph stores as bytes."""
    weights = {
        node.inputs[0] for node in model.graph if patterns.is_standard(node, "DequantizeLinear")
    }
    arrays = (patterns.constant_array(value) for value in weights)
    return sum(array.size for array in arrays if array is not None and array.dtype.itemsize == 1)
