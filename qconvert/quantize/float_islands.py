"""Operators that a plan leaves in float stay there, whatever the runtime would make of them.

ONNX Runtime (1.31, `WeightBiasQuantization`) takes a Conv, ConvTranspose or Gemm that reads rounded
values and whose result is rounded, and rounds its float weights too: with one scale for the whole
tensor, which ruins depthwise filters. It looks through Relu and Clip and through nothing else, so a
LeakyRelu with slope 1 stops it, which changes no number and vanishes into the convolution.
"""

import onnx_ir as ir

from qconvert.graph.patterns import constant, is_standard, only_reader
from qconvert.quantize.wiring import Wiring

TAKEN = ("Conv", "ConvTranspose", "Gemm")
SEEN_THROUGH = ("Relu", "Clip")


def keep_float(wiring: Wiring) -> None:
    """Put a guard behind every operator with float weights that would be rounded unasked."""
    for node in [each for each in wiring.graph if is_standard(each, *TAKEN)]:
        floats = constant(node.inputs[1]) is not None
        if floats and _is_rounded(node.inputs[0]) and _is_rounded_next(node.outputs[0]):
            _guard(wiring, node)


def _is_rounded(value: ir.Value | None) -> bool:
    made = value.producer() if value is not None else None
    return made is not None and is_standard(made, "DequantizeLinear")


def _is_rounded_next(value: ir.Value) -> bool:
    reader = only_reader(value)
    while reader is not None and is_standard(reader, *SEEN_THROUGH):
        reader = only_reader(reader.outputs[0])
    return reader is not None and is_standard(reader, "QuantizeLinear")


def _guard(wiring: Wiring, node: ir.Node) -> None:
    value = node.outputs[0]
    readers = list(value.uses())
    guard = wiring.node("LeakyRelu", [value], f"{value.name}_kept_float")
    guard.attributes.add(ir.AttrFloat32("alpha", 1.0))
    guard.outputs[0].type, guard.outputs[0].shape = value.type, value.shape
    wiring.graph.insert_after(node, guard)
    for reader, slot in readers:
        reader.replace_input_with(slot, guard.outputs[0])
