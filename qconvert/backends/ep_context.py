"""An engine as an ONNX file: one node that names the engine's file, which a provider then loads."""

import onnx_ir as ir

from qconvert.backends.folder import GRAPH

DOMAIN = "com.microsoft"
OPERATOR = "EPContext"

# Providers differ in what they write themselves: RTX gives every node an engine of its own.
MAIN_CONTEXT = {"TensorrtExecutionProvider": 1, "NvTensorRTRTXExecutionProvider": 0}


def wrap(model: ir.Model, engine: str, provider: str) -> ir.Model:
    """Return a model with the inputs and outputs of another, computed by an engine file beside it.

    Providers load engines from the model's own folder or below, and refuse any other path.
    """
    if engine.startswith("/") or ".." in engine:
        raise ValueError(f"an engine lies beside its model, got {engine}")
    inputs = [_copy(value) for value in model.graph.inputs]
    outputs = [_copy(value) for value in model.graph.outputs]
    attributes: dict[str, int | str] = {
        "main_context": MAIN_CONTEXT[provider],
        "embed_mode": 0,
        "ep_cache_context": engine,
        "source": provider,
        "onnx_model_filename": GRAPH,
        "partition_name": "engine",
    }
    node = ir.node(OPERATOR, inputs, attributes, domain=DOMAIN, outputs=outputs, name="engine")
    opsets = {"": model.opset_imports.get("", 20), DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="engine")
    return ir.Model(graph, ir_version=model.ir_version, producer_name="qconvert")


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)
