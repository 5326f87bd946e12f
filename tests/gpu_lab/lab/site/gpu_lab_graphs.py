"""Answer the fake TensorRT's questions about graphs, and compute them on the CPU.

The fake libraries import this module in the process that loads them, whatever runs in it, and call
`_answer`. A reply is bytes: text in lines, or an ONNX file.
"""

import ctypes
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

SCRIPT = json.loads(os.environ.get("GPU_LAB_SCRIPT", "{}"))

# TensorRT's numbers of types, by ONNX's.
TYPES: Mapping[int, int] = {
    TensorProto.FLOAT: 0,
    TensorProto.FLOAT16: 1,
    TensorProto.INT8: 2,
    TensorProto.INT32: 3,
    TensorProto.BOOL: 4,
    TensorProto.UINT8: 5,
    TensorProto.FLOAT8E4M3FN: 6,
    TensorProto.BFLOAT16: 7,
    TensorProto.INT64: 8,
}
ARRAYS = {
    0: np.float32,
    1: np.float16,
    2: np.int8,
    3: np.int32,
    4: np.bool_,
    5: np.uint8,
    7: ml_dtypes.bfloat16,
    8: np.int64,
}
# TensorRT's numbers of layers; others count as identities, of which nobody asks anything.
LAYERS = {"Conv": 0, "Relu": 2, "MaxPool": 3, "Softmax": 6, "ConvTranspose": 7, "MatMul": 17}
IDENTITY = 20
SPELLED = {
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
    TensorProto.INT8: "Int8",
}

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass
class Graph:
    """A graph by its bytes, without what TensorRT would not need to know."""

    onnx: bytes

    @cached_property
    def model(self) -> ModelProto:
        return read(self.onnx)

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Q/DQ nodes as they stand: TensorRT has its own integer kernels.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = without_bfloat16(self.onnx)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    @cached_property
    def shapes(self) -> dict[str, str]:
        """The replies to `shapes`, by the request without addresses."""
        return {}

    def inputs(self) -> list[ValueInfoProto]:
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in weights]

    def describe(self) -> str:
        lines = []
        for kind, values in (("input", self.inputs()), ("output", self.model.graph.output)):
            for value in values:
                tensor = value.type.tensor_type
                sizes = [
                    dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim
                ]
                numbers = (TYPES[tensor.elem_type], len(sizes), *sizes)
                lines.append(" ".join((kind, *map(str, numbers), value.name)))
        for node in self.model.graph.node:
            lines.append(f"layer {LAYERS.get(node.op_type, IDENTITY)} {node.name}")
            if node.op_type.endswith("_TRT"):
                lines.append(f"plugin {node.op_type}")
        if any(node.op_type == "QuantizeLinear" for node in self.model.graph.node):
            lines.append("integers")
        return "\n".join(lines)

    def supports(self) -> str:
        """The lists of nodes that an engine would take, a line each: a refused node ends a list."""
        refused = SCRIPT.get("refuses", [])
        runs: list[list[str]] = [[]]
        for index, node in enumerate(self.model.graph.node):
            if node.op_type in refused:
                runs.append([])
            else:
                runs[-1].append(str(index))
        return "\n".join(" ".join(run) for run in runs if run)

    def strip(self) -> bytes:
        """The graph with weights of zero, which stay zero until a refit."""
        model = read(self.onnx)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1:
                zeros = np.zeros(tuple(tensor.dims), np.float32)
                tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
        return bytes(model.SerializeToString())

    def run(self, feeds: Arrays) -> Arrays:
        if any(node.op_type.endswith("_TRT") for node in self.model.graph.node):
            return self.zeros(len(next(iter(feeds.values()))))
        widened = {
            name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
            for name, array in feeds.items()
        }
        kinds = {
            it.name: ARRAYS[TYPES[it.type.tensor_type.elem_type]] for it in self.model.graph.output
        }
        arrays = self.session.run(list(kinds), widened)
        outputs = {
            name: array.astype(kind, copy=False)
            for (name, kind), array in zip(kinds.items(), arrays, strict=True)
        }
        is_struck = SCRIPT["strikes"] in (value.name for value in self.inputs())
        if is_struck and "fill" in SCRIPT:  # the number that a broken engine answers with
            outputs = {
                name: np.full_like(it, float(SCRIPT["fill"])) for name, it in outputs.items()
            }
        return outputs

    def zeros(self, batch: int) -> Arrays:
        """Answer for a graph with plugins, which the CPU provider cannot compute."""
        outputs = {}
        for value in self.model.graph.output:
            tensor = value.type.tensor_type
            shape = [dim.dim_value or batch for dim in tensor.shape.dim]
            outputs[value.name] = np.zeros(shape, ARRAYS[TYPES[tensor.elem_type]])
        return outputs

    def inspect(self, options: Mapping[str, int]) -> str:
        """The layers as TensorRT's inspector lists them; one that reads Q/DQ is INT8.

        Weakly typed networks take the precision of the rest from the flags of the build.
        """
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {
            node.output[0]: TensorProto.INT8
            for node in self.model.graph.node
            if node.op_type == "DequantizeLinear"
        }
        has_half = not options["strongly_typed"] and options["flags"] & 1
        layers = []
        for node in self.model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            kind = types.get(next(iter(node.input), ""), TensorProto.FLOAT)
            kind = TensorProto.FLOAT16 if has_half and kind == TensorProto.FLOAT else kind
            tensor = {"Name": "", "Dimensions": [], "Format/Datatype": SPELLED.get(kind, "Int32")}
            layer_type = "Reformat" if node.op_type == "Cast" else node.op_type
            layers.append(
                {
                    "Name": node.name,
                    "LayerType": layer_type,
                    "Inputs": [tensor],
                    "Outputs": [tensor],
                }
            )
        return json.dumps({"Layers": layers, "Bindings": []})


def read(content: bytes) -> ModelProto:
    """Read an ONNX file's bytes."""
    model = ModelProto()
    model.ParseFromString(content)
    return model


_graphs: list[Graph] = []
_numbers: dict[str, int] = {}
_replies = threading.local()


def load(content: bytes) -> str:
    """Keep a graph, and return its number; ONNX Runtime must be able to read it."""
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _numbers:
        graph = Graph(content)
        graph.describe()
        _graphs.append(graph)
        _numbers[digest] = len(_graphs) - 1
    return str(_numbers[digest])


def without_bfloat16(content: bytes) -> bytes:
    """Return a graph that computes in float32 what the CPU provider has no kernels for."""
    model = read(content)
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    tensors = [*graph.initializer]
    for attribute in [attribute for node in graph.node for attribute in node.attribute]:
        if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return bytes(model.SerializeToString())


def read_feeds(request: str, *, zeros: bool = False) -> Arrays:
    """Read inputs from lines of `TYPE RANK SIZE... ADDRESS NAME`."""
    feeds = {}
    for line in request.splitlines():
        dtype, rank, rest = (*line.split(" ", 2)[:2], line.split(" ", 2)[2])
        *sizes, address, name = rest.split(" ", int(rank) + 1)
        shape = tuple(map(int, sizes))
        kind = np.dtype(ARRAYS[int(dtype)])
        if zeros:
            feeds[name] = np.zeros(shape, kind)
        else:
            count = int(np.prod(shape)) * kind.itemsize
            buffer = (ctypes.c_char * count).from_address(int(address))
            feeds[name] = np.frombuffer(buffer, kind).reshape(shape).copy()
    return feeds


def write_outputs(outputs: Arrays) -> str:
    """Return a line of `TYPE RANK SIZE... ADDRESS BYTES NAME` for each, kept alive."""
    numbers = {np.dtype(kind): number for number, kind in ARRAYS.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in outputs.items()}
    _replies.arrays = arrays
    return "\n".join(
        " ".join(map(str, (numbers[it.dtype], it.ndim, *it.shape, it.ctypes.data, it.nbytes, name)))
        for name, it in arrays.items()
    )


def answer(what: str, number: int, data: bytes, request: str) -> str | bytes:
    """Answer one question about a graph."""
    if what == "load":
        return load(data)
    if what == "load file":  # weights beside the file become part of it
        return load(onnx.load(request).SerializeToString())
    graph = _graphs[number]
    match what:
        case "describe":
            return graph.describe()
        case "supports":
            return graph.supports()
        case "onnx":
            return graph.onnx
        case "strip":
            return graph.strip()
        case "shapes":
            feeds = read_feeds(request, zeros=True)
            key = str({name: array.shape for name, array in feeds.items()})
            if key not in graph.shapes:
                graph.shapes[key] = write_outputs(graph.run(feeds))
            return graph.shapes[key]
        case "run":
            return write_outputs(graph.run(read_feeds(request)))
        case "inspect":
            return graph.inspect(json.loads(request))
    raise ValueError(what)


BRAIN = ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_long),
)


@BRAIN
def _answer(what, number, data, size, request, reply_size):  # type: ignore[no-untyped-def]
    try:
        content = ctypes.string_at(data, size) if data else b""
        reply = answer(what.decode(), number, content, request.decode())
        reply = reply.encode() if isinstance(reply, str) else reply
        reply_size[0] = len(reply)
    except Exception as error:
        reply = f"{type(error).__name__}: {error}".encode()
        reply_size[0] = -1
    _replies.text = ctypes.create_string_buffer(reply)  # lives until the next question
    return ctypes.addressof(_replies.text)


def connect(library: str) -> None:
    """Give a fake TensorRT the function that answers."""
    ctypes.CDLL(library).lab_set_brain(_answer)
