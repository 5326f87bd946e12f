"""How far rounding alone moves the outputs of a network: what no pass can be blamed for."""

import numpy as np
import onnx_ir as ir

from qconvert.graph.names import Names, tensor_names

# About four units in the last place of float32.
BY = np.float32(1 + 2**-21)


def shaken(model: ir.Model) -> ir.Model | None:
    """Return a copy that scales its inputs by next to nothing, or None where no input is float32.

    Its outputs are off as those of the same network are when it is computed in another order.
    """
    shaking = model.clone()
    graph, names = shaking.graph, Names(tensor_names(model.graph))
    wanted = [each for each in graph.inputs if each.dtype is ir.DataType.FLOAT and each.uses()]
    if not wanted or not len(graph):
        return None
    name = names.free("qconvert.shaken.by")
    factor = ir.Value(name=name, const_value=ir.tensor(BY, name=name))
    factor.shape, factor.dtype = ir.Shape([]), ir.DataType.FLOAT
    graph.register_initializer(factor)
    for value in wanted:
        moved = ir.node("Mul", [value, factor])
        moved.outputs[0].name = names.free(f"{value.name}.shaken")
        for reader, slot in list(value.uses()):
            if reader is not moved:
                reader.replace_input_with(slot, moved.outputs[0])
        graph.insert_before(graph[0], moved)
    return shaking
