"""Build engines with TensorRT for RTX, whose builder needs no GPU and is strict about types."""

import onnx_ir as ir
import tensorrt_rtx as trt

from qconvert.core import onnx_io

BATCHES = (1, 2, 4)


def build(model: ir.Model) -> int:
    """Build an engine with the types of the graph and return its size; raise all parser errors.

    The engine is not opened, because that needs a GPU.
    """
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_io.serialize(model)):
        errors = [parser.get_error(at) for at in range(parser.num_errors)]
        raise AssertionError("\n".join(f"{error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network))
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, "\n".join(log.errors)
    return int(engine.nbytes)


class Log(trt.ILogger):  # type: ignore[misc]
    """Collects errors and drops other messages."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, text: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(text)


def _profile(builder: trt.Builder, network: trt.INetworkDefinition) -> trt.IOptimizationProfile:
    """Return a profile with the minimum, optimum and maximum batch for every input."""
    profile = builder.create_optimization_profile()
    for at in range(network.num_inputs):
        tensor = network.get_input(at)
        profile.set_shape(tensor.name, *((batch, *tensor.shape[1:]) for batch in BATCHES))
    return profile
