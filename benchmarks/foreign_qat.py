"""Quantize one network with the tools of others, and read what they write.

    python -m benchmarks.foreign_qat [FOLDER]

A tool that is not installed is skipped: `pip install torch onnxscript torchao brevitas
onnxoptimizer nvidia-modelopt`. For each file the table shows how many quantizers were read, and per
backend the largest difference of an output between the file and the graph that qconvert writes,
both run node by node, or the first reason for which the backend refuses it. On the CPU a float bias
becomes an integer, so a difference of a few steps is right there.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxruntime import quantization
from torch import nn

from qconvert import backends
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import random_inputs
from qconvert.graph.clean import clean_model
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.trained_plan import make_trained_plan
from qconvert.quantize.trained_qdq import TrainedModel, read_qdq

NAMES: dict[str, Any] = {"input_names": ["image"], "output_names": ["scores"]}
ORT_SETTINGS: dict[str, tuple[str, str, bool, dict[str, bool]]] = {
    "u8s8": ("QUInt8", "QInt8", True, {}),
    "s8s8": ("QInt8", "QInt8", False, {}),
    "symmetric": ("QInt8", "QInt8", True, {"ActivationSymmetric": True}),
    "u8u8": ("QUInt8", "QUInt8", False, {}),
    "weights": ("QInt8", "QInt8", True, {"ActivationSymmetric": True, "AddQDQPairToWeight": True}),
}


class Network(nn.Module):
    """Convolutions with normalizations and activations, a residual, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        wide = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.wide = nn.Sequential(wide, nn.BatchNorm2d(16), nn.ReLU6())
        self.narrow = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.last = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores of images."""
        first = self.stem(image)
        second = torch.relu(first + self.narrow(self.wide(first)))
        scores: torch.Tensor = self.head(self.last(second))
        return scores


def images() -> list[torch.Tensor]:
    """Return batches to calibrate on."""
    return [torch.randn(4, 3, 32, 32, generator=torch.manual_seed(seed)) for seed in range(8)]


def from_onnxruntime(folder: Path) -> Iterator[Path]:
    """Quantize with ONNX Runtime's quantizer in its usual settings."""
    source, prepared = folder / "float.onnx", folder / "prepared.onnx"
    torch.onnx.export(Network().eval(), (images()[0],), source, dynamo=True, **NAMES)
    quantization.quant_pre_process(str(source), str(prepared))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(images())

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch."""
            batch = next(self.rows, None)
            return None if batch is None else {"image": batch.numpy()}

    for name, (activations, weights, per_channel, options) in ORT_SETTINGS.items():
        file = folder / f"onnxruntime-{name}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(file),
            Reader(),
            activation_type=quantization.QuantType[activations],
            weight_type=quantization.QuantType[weights],
            per_channel=per_channel,
            extra_options=options,
        )
        yield file


def from_fake_quantization(folder: Path) -> Iterator[Path]:
    """Train with PyTorch's symmetric fake quantization, as TensorRT needs it."""
    from torch.ao import quantization as ao

    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(ao.QuantStub(), *layers, nn.Linear(16, 10)).train()
    limits = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
    activation = ao.FakeQuantize.with_args(
        observer=ao.MovingAverageMinMaxObserver, qscheme=torch.per_tensor_symmetric, **limits
    )
    weight = ao.FakeQuantize.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        **limits,
    )
    model.qconfig = ao.QConfig(activation=activation, weight=weight)
    ao.prepare_qat(model, inplace=True)
    for batch in images():
        model(batch)
    model.apply(ao.disable_observer)
    file = folder / "torch-fake-quantize.onnx"
    torch.onnx.export(model.eval(), (images()[0],), file, dynamo=False, opset_version=17, **NAMES)
    yield file


def from_pt2e(folder: Path) -> Iterator[Path]:
    """Train and quantize with PT2E of torchao."""
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(Network().train(), (images()[0],)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(exported, quantizer)
    for batch in images():
        prepared(batch)
    pt2e.move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    pt2e.move_exported_model_to_eval(converted)
    file = folder / "pt2e.onnx"
    torch.onnx.export(converted, (images()[0],), file, dynamo=True, **NAMES)
    yield file


def from_brevitas(folder: Path) -> Iterator[Path]:
    """Train with Brevitas in 8 and 4 bits, and export QCDQ."""
    from brevitas import nn as qnn
    from brevitas.export import export_onnx_qcdq

    for bits in (8, 4):
        layers = [
            qnn.QuantIdentity(return_quant_tensor=True),
            qnn.QuantConv2d(3, 16, 3, 2, 1, weight_bit_width=bits),
            nn.BatchNorm2d(16),
            qnn.QuantReLU(bit_width=bits, return_quant_tensor=True),
            qnn.QuantConv2d(16, 16, 3, 1, 1, weight_bit_width=bits),
            qnn.QuantReLU(bit_width=8),
        ]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        for batch in images():
            model.train()(batch)
        file = folder / f"brevitas-{bits}.onnx"
        export_onnx_qcdq(
            model.eval(), args=images()[0], export_path=str(file), dynamo=False, **NAMES
        )
        yield file


def from_modelopt(folder: Path) -> Iterator[Path]:
    """Quantize with ModelOpt's default INT8."""
    from modelopt.torch import quantization as mtq

    def calibrate(network: nn.Module) -> None:
        for batch in images():
            network(batch)

    model = mtq.quantize(Network().eval(), mtq.INT8_DEFAULT_CFG, calibrate)
    file = folder / "modelopt.onnx"
    torch.onnx.export(model, (images()[0],), file, dynamo=False, opset_version=17, **NAMES)
    yield file


TOOLS: list[Callable[[Path], Iterator[Path]]] = [
    from_onnxruntime,
    from_fake_quantization,
    from_pt2e,
    from_brevitas,
    from_modelopt,
]


def describe(model: ir.Model, trained: TrainedModel, backend: str) -> str:
    """Return the largest difference of an output on a backend, or why it refuses the file."""
    scheme = backends.requirements(backend).scheme
    assert scheme is not None
    try:
        saved = make_trained_plan(trained, replace(scheme, portable=False))
    except QConvertError as error:
        return f"refused: {error.details[0]}"
    written = apply_plan(trained.model, saved.plan, saved.weights)
    feeds = random_inputs(onnx_io.inputs(model), 4, seed=0)
    before, after = (open_cpu(graph, keep_qdq=True)(feeds) for graph in (model, written))
    largest = max(float(np.abs(array).max()) for array in before.values())
    change = max(float(np.abs(before[name] - after[name]).max()) for name in before)
    return f"{change / largest:.1e} of the largest output"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for tool in TOOLS:
        torch.manual_seed(0)
        try:
            files = list(tool(folder))
        except ImportError as error:
            print(f"{tool.__name__} is skipped: {error}")
            continue
        for file in files:
            model = onnx_io.load(file)
            feeds = random_inputs(onnx_io.inputs(model), 4, seed=0)
            run = lambda graph, feeds=feeds: open_cpu(graph)(feeds)  # noqa: E731
            trained = read_qdq(clean_model(model, 20, (), run).model)
            print(f"{file.stem}: {trained.quantizers} quantizers, repaired {trained.repairs}")
            for backend in ("cpu", "tensorrt"):
                print(f"    {backend}: {describe(model, trained, backend)}")


if __name__ == "__main__":
    main()
