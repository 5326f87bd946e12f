"""Networks found by name: the user's own factory, timm's and torchvision's zoos."""

from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError, did_you_mean, first_line
from qconvert.core.tensors import TensorSpec, parse_spec
from qconvert.images.preprocess import Interpolation, Preprocess
from qconvert.sources import Source, factory
from qconvert.sources.torch_export import from_module
from qconvert.sources.torch_weights import RANDOM, load_weights

# The types that PyTorch, NumPy and ONNX Runtime share.
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


def load_factory(source: str, export: ExportConfig, trust: bool) -> Source:
    """Call `package.module:factory` and export the module it returns."""
    found = factory.call(source)
    module, examples = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, torch.nn.Module):
        raise QConvertError(
            f"`{source}()` returned a {type(found).__name__}, not a torch.nn.Module",
            hint="return the module, or (module, example_inputs)",
        )
    _weights(module, export, trust)
    specs = [parse_spec(given) for given in export.inputs] or _specs(source, examples)
    if not specs:
        raise UsageError(
            f"`{source}` does not say what goes in",
            hint="add `--input NAME:1x3x224x224`, or return (module, example_inputs)",
        )
    note = f"ran the code of `{source}`"
    made = from_module(source.rpartition(":")[2], module, specs, export)
    return replace(made, notes=(note, *made.notes))


def load_timm(source: str, export: ExportConfig, trust: bool) -> Source:
    """Create one of timm's networks; without `--weights`, with the weights timm itself finds."""
    timm = _library("timm")
    name = source.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown(name, "timm", timm.list_models())
    pretrained = export.weights is None
    module = _create(source, lambda: timm.create_model(name, pretrained=pretrained))
    _weights(module, export, trust)
    data = timm.data.resolve_model_data_config(module)
    made = from_module(name, module, _given_or(export, data["input_size"]), export)
    return replace(made, preprocess=_from_timm(data))


def load_torchvision(source: str, export: ExportConfig, trust: bool) -> Source:
    """Create one of torchvision's networks; without `--weights`, with its default weights."""
    models = _library("torchvision").models
    name = source.partition(":")[2]
    if name not in models.list_models():
        raise _unknown(name, "torchvision", models.list_models())
    default = models.get_model_weights(name).DEFAULT
    weights = default if export.weights is None else None
    module = _create(source, lambda: models.get_model(name, weights=weights))
    _weights(module, export, trust)
    transforms = default.transforms()
    crop = getattr(transforms, "crop_size", [224])[0]
    made = from_module(name, module, _given_or(export, (3, crop, crop)), export)
    return replace(made, preprocess=_from_torchvision(transforms))


def _from_timm(data: dict[str, Any]) -> Preprocess:
    return Preprocess(
        crop_share=float(data["crop_pct"]),
        interpolation=_filter(str(data["interpolation"])),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _from_torchvision(transforms: Any) -> Preprocess | None:
    """Read a classification preset; the others resize inside the network."""
    if not hasattr(transforms, "crop_size"):
        return None
    return Preprocess(
        resize=int(transforms.resize_size[0]),
        crop=int(transforms.crop_size[0]),
        interpolation=_filter(str(transforms.interpolation.value)),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _filter(name: str) -> Interpolation:
    """Return the filter of this name; one we do not have becomes the usual one."""
    return "bicubic" if name == "bicubic" else "bilinear"


def _weights(module: torch.nn.Module, export: ExportConfig, trust: bool) -> None:
    if export.weights not in (None, RANDOM):
        load_weights(module, str(export.weights), trust=trust)


def _given_or(export: ExportConfig, size: Any) -> list[TensorSpec]:
    return [parse_spec(given) for given in export.inputs] or [
        parse_spec("input:1x" + "x".join(str(each) for each in size))
    ]


def _specs(source: str, examples: Any) -> list[TensorSpec]:
    """Read shapes off the example inputs a factory returned: one tensor, or several, or named."""
    if examples is None:
        return []
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, dict):
        return [_spec(source, str(name), value) for name, value in examples.items()]
    if isinstance(examples, (tuple, list)):
        return [_spec(source, "", value) for value in examples]
    raise UsageError(
        f"the example inputs of `{source}` are of type {type(examples).__name__}, not tensors",
        hint="return (module, tensor), (module, (tensor, tensor)) or (module, {name: tensor})",
    )


def _spec(source: str, name: str, value: Any) -> TensorSpec:
    which = f"example input `{name}`" if name else "an example input"
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"{which} of `{source}` is of type {type(value).__name__}, not a tensor",
            hint="wrap the network in a module that takes tensors only, one argument each",
        )
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise UsageError(
            f"{which} of `{source}` is {kind}, which ONNX Runtime does not take",
            hint="give float32 examples; `module.float()` makes the network fit them",
        )
    return TensorSpec(name, np.dtype(kind), tuple(value.shape))


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        extra = "timm" if name == "timm" else "torch"
        more = "" if name == "timm" else " torchvision"
        raise Unavailable(
            f"{name} is not installed", hint=f'pip install "qconvert[{extra}]"{more}'
        ) from None
    except Exception as error:  # a torchvision built for another torch fails inside its import
        raise Unavailable(
            f"{name} does not load beside torch {torch.__version__}: {first_line(error)}",
            hint="install the torchvision release made for this torch",
        ) from None


def _create(source: str, make: Any) -> torch.nn.Module:
    try:
        module = make()
    except Exception as error:  # hubs raise their own kinds
        raise QConvertError(
            f"the weights of `{source}` could not be had: {type(error).__name__}: {first_line(error)}",
            hint="fetch them where there is a network and pass `--weights FILE`; "
            "`--weights random` goes on without",
        ) from None
    assert isinstance(module, torch.nn.Module)
    return module


def _unknown(name: str, library: str, names: list[str]) -> UsageError:
    return UsageError(
        f"{library} has no model `{name}`{did_you_mean(name, names)}",
        hint=f"`{library}.{'models.' if library == 'torchvision' else ''}list_models()` "
        "has all names",
    )
