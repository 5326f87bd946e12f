"""Load networks that code creates: the user's own factory, or the zoos of timm and torchvision."""

from collections.abc import Callable
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
    result = factory.call(source)
    module, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, torch.nn.Module):
        raise QConvertError(
            f"`{source}()` returned a {type(result).__name__}, not a torch.nn.Module",
            hint="return the module, or (module, example_inputs)",
        )
    _load_weights(module, export, trust)
    specs = [parse_spec(text) for text in export.inputs] or _example_specs(source, examples)
    if not specs:
        raise UsageError(
            f"`{source}` does not describe its inputs",
            hint="add `--input NAME:1x3x224x224`, or return (module, example_inputs)",
        )
    exported = from_module(source.rpartition(":")[2], module, specs, export)
    return replace(exported, notes=(f"ran the code of `{source}`", *exported.notes))


def load_timm(source: str, export: ExportConfig, trust: bool) -> Source:
    """Create a network of timm, with timm's weights unless `weights` names others."""
    timm = _import_library("timm", extra="timm")
    name = source.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown_model(name, "timm", timm.list_models(), "timm.list_models()")
    pretrained = export.weights is None
    module = _create(source, lambda: timm.create_model(name, pretrained=pretrained))
    _load_weights(module, export, trust)
    data = timm.data.resolve_model_data_config(module)
    preprocess = Preprocess(
        crop_share=float(data["crop_pct"]),
        interpolation=_interpolation(str(data["interpolation"])),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    exported = from_module(name, module, _input_specs(export, data["input_size"]), export)
    return replace(exported, preprocess=preprocess)


def load_torchvision(source: str, export: ExportConfig, trust: bool) -> Source:
    """Create a network of torchvision, with its default weights unless `weights` names others."""
    models = _import_library("torchvision", extra="torch", more=" torchvision").models
    name = source.partition(":")[2]
    if name not in models.list_models():
        names = models.list_models()
        raise _unknown_model(name, "torchvision", names, "torchvision.models.list_models()")
    default = models.get_model_weights(name).DEFAULT
    weights = default if export.weights is None else None
    module = _create(source, lambda: models.get_model(name, weights=weights))
    _load_weights(module, export, trust)
    transforms = default.transforms()
    preprocess, crop = None, 224
    if hasattr(transforms, "crop_size"):  # a classifier; other networks resize inside
        crop = int(transforms.crop_size[0])
        preprocess = Preprocess(
            resize=int(transforms.resize_size[0]),
            crop=crop,
            interpolation=_interpolation(str(transforms.interpolation.value)),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
    exported = from_module(name, module, _input_specs(export, (3, crop, crop)), export)
    return replace(exported, preprocess=preprocess)


def _interpolation(name: str) -> Interpolation:
    """Return the filter of this name; those not supported here become bilinear."""
    return "bicubic" if name == "bicubic" else "bilinear"


def _load_weights(module: torch.nn.Module, export: ExportConfig, trust: bool) -> None:
    if export.weights not in (None, RANDOM):
        load_weights(module, str(export.weights), trust=trust)


def _input_specs(export: ExportConfig, size: tuple[int, ...]) -> list[TensorSpec]:
    texts = export.inputs or ("input:1x" + "x".join(map(str, size)),)
    return [parse_spec(text) for text in texts]


def _example_specs(source: str, examples: Any) -> list[TensorSpec]:
    """Read shapes off the example inputs of a factory: one tensor, several, or named ones."""
    if examples is None:
        return []
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, (tuple, list)):
        return [_example_spec(source, "", value) for value in examples]
    if isinstance(examples, dict):
        return [_example_spec(source, str(name), value) for name, value in examples.items()]
    raise UsageError(
        f"the example inputs of `{source}` are of type {type(examples).__name__}, not tensors",
        hint="return (module, tensor), (module, (tensor, tensor)) or (module, {name: tensor})",
    )


def _example_spec(source: str, name: str, value: Any) -> TensorSpec:
    text = f"example input `{name}`" if name else "an example input"
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"{text} of `{source}` is of type {type(value).__name__}, not a tensor",
            hint="wrap the network in a module that takes tensors only, one argument each",
        )
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"{text} of `{source}` is {dtype}, which ONNX Runtime does not take",
            hint="give float32 examples; `module.float()` converts the network to match",
        )
    return TensorSpec(name, np.dtype(dtype), tuple(value.shape))


def _import_library(name: str, *, extra: str, more: str = "") -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Unavailable(
            f"{name} is not installed", hint=f'pip install "qconvert[{extra}]"{more}'
        ) from None
    except Exception as error:  # a torchvision built for another torch fails inside its import
        raise Unavailable(
            f"{name} does not load beside torch {torch.__version__}: {first_line(error)}",
            hint="install the torchvision release made for this torch",
        ) from None


def _create(source: str, create: Callable[[], Any]) -> torch.nn.Module:
    try:
        module = create()
    except Exception as error:  # hubs have exceptions of their own
        raise QConvertError(
            f"cannot download the weights of `{source}`: "
            f"{type(error).__name__}: {first_line(error)}",
            hint="download them on a machine with network access and pass `--weights FILE`; "
            "`--weights random` continues without them",
        ) from None
    assert isinstance(module, torch.nn.Module)
    return module


def _unknown_model(name: str, library: str, names: list[str], listing: str) -> UsageError:
    return UsageError(
        f"{library} has no model `{name}`{did_you_mean(name, names)}",
        hint=f"`{listing}` has all names",
    )
