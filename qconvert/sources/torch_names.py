"""Names for the nodes of a torch export, from the modules they came from."""

import ast
from collections import Counter

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_module(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes are called `/blocks/0/conv/Conv`, their outputs after them.

    Nodes that the exporter's own optimizer made carry no scope; they join the module of the node
    before them. Numbers tell nodes of one module apart, in the order of the graph.
    """
    model = model.clone()
    taken: Counter[str] = Counter()
    for node in model.graph:
        stem = f"{_scope(node)}/{node.op_type}"
        taken[stem] += 1
        node.name = stem if taken[stem] == 1 else f"{stem}_{taken[stem] - 1}"
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}_output_{index}"
    return model


def _scope(node: ir.Node) -> str:
    """Return the module of a node: its weight's, else the recorded one, else its input's."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.is_initializer() and (weight.name or "").endswith(".weight"):
        return _path(str(weight.name).removesuffix(".weight"))
    if recorded := node.metadata_props.get(SCOPES):
        scopes = [str(scope) for scope in ast.literal_eval(recorded)]
        return _path(scopes[-2]) if scopes[1:] else ""
    for value in node.inputs:
        before = value.producer() if value is not None else None
        if before is not None and (before.name or "").startswith("/"):
            return str(before.name).rpartition("/")[0]
    return ""


def _path(dotted: str) -> str:
    return "".join(f"/{part}" for part in dotted.split(".") if part)
