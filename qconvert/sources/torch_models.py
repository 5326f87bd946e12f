"""Load networks that code creates: the user's own factory, or the zoos of timm and torchvision."""

import contextlib
import importlib
import io
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError, did_you_mean, first_line
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import TensorSpec, parse_spec
from qconvert.images.preprocess import Interpolation, Preprocess
from qconvert.sources import Source
from qconvert.sources.torch_export import from_module, user_line
from qconvert.sources.torch_file import add_working_folder_to_path, load_weights

# The types that PyTorch, NumPy and ONNX Runtime share.
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


def load_factory(source: str, export: ExportConfig, trust: bool) -> Source:
    """Call `package.module:factory` and export the module it returns."""
    result = call_factory(source)
    module, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, torch.nn.Module):
        raise QConvertError(
            f"`{source}()` returned a {type(result).__name__}, not a torch.nn.Module",
            hint="return the module, or (module, example_inputs)",
        )
    load_weights(module, export.weights, trust=trust)
    specs = [parse_spec(text) for text in export.inputs] or _example_specs(source, examples)
    if not specs:
        raise UsageError(
            f"`{source}` does not describe its inputs",
            hint="add `--input NAME:1x3x224x224`, or return (module, example_inputs)",
        )
    exported = from_module(source.rpartition(":")[2], module, specs, export)
    return replace(exported, notes=(f"ran the code of `{source}`", *exported.notes))


def call_factory(source: str) -> object:
    """Import `package.module`, the working folder first, and return the result of `factory()`."""
    module_name, _, name = source.partition(":")
    add_working_folder_to_path()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module `{module_name}` here",
                hint="modules are looked up in the current folder and among installed packages",
            ) from None
        raise QConvertError(
            f"importing `{module_name}` failed: {first_line(error)}",
            details=user_line(error),
            hint=f"install `{error.name}`, or run in the folder that contains it",
        ) from None
    except (Exception, SystemExit) as error:
        raise _user_error(f"importing `{module_name}`", error) from None
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [item for item in vars(module) if not item.startswith("_")]
        missing = f"`{module_name}` has no `{name}`{did_you_mean(name, names)}"
        raise UsageError(
            missing if factory is None else f"`{source}` is not a function",
            hint="write `package.module:function`, where function() returns the model",
        )
    try:
        # stdout is for results; the output of a factory goes to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            return factory()
    except (Exception, SystemExit) as error:
        raise _user_error(f"`{source}()`", error) from None


def _user_error(action: str, error: BaseException) -> QConvertError:
    hint = "fix the code named above; it fails in Python in the same way"
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = "the function must run without arguments"
    return QConvertError(
        f"{action} raised {type(error).__name__}: {first_line(error)}",
        details=user_line(error),
        hint=hint,
    )


def load_timm(source: str, export: ExportConfig, trust: bool) -> Source:
    """Create a network of timm, with timm's weights unless `weights` names others."""
    timm = _import_library("timm", pip_install("timm"))
    name = source.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown_model(name, "timm", timm.list_models(), "timm.list_models()")
    module = _create(source, timm.create_model, name, pretrained=export.weights is None)
    load_weights(module, export.weights, trust=trust)
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
    models = _import_library("torchvision", pip_install("torch", "torchvision")).models
    name = source.partition(":")[2]
    if name not in (names := models.list_models()):
        raise _unknown_model(name, "torchvision", names, "torchvision.models.list_models()")
    default = models.get_model_weights(name).DEFAULT
    weights = default if export.weights is None else None
    module = _create(source, models.get_model, name, weights=weights)
    load_weights(module, export.weights, trust=trust)
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
        named = [("", value) for value in examples]
    elif isinstance(examples, dict):
        named = [(str(name), value) for name, value in examples.items()]
    else:
        raise UsageError(
            f"the example inputs of `{source}` are of type {type(examples).__name__}, not tensors",
            hint="return (module, tensor), (module, (tensor, tensor)) or (module, {name: tensor})",
        )
    specs = []
    for name, value in named:
        text = f"example input `{name}`" if name else "an example input"
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                f"{text} of `{source}` is of type {type(value).__name__}, not a tensor",
                hint="wrap the network in a module that takes tensors only, one argument each",
            )
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise UsageError(
                f"{text} of `{source}` is {dtype}, which ONNX Runtime does not support",
                hint="give float32 examples; `module.float()` converts the network to match",
            )
        specs.append(TensorSpec(name, np.dtype(dtype), tuple(value.shape)))
    return specs


def _import_library(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Unavailable(f"{name} is not installed", hint=install) from None
    except Exception as error:  # a torchvision built for another torch fails inside its import
        raise Unavailable(
            f"{name} does not load beside torch {torch.__version__}: {first_line(error)}",
            hint="install the torchvision release made for this torch",
        ) from None


def _create(source: str, create: Any, name: str, **options: Any) -> torch.nn.Module:
    try:
        module = create(name, **options)
    except Exception as error:  # hubs have exceptions of their own
        raise QConvertError(
            f"cannot download the weights of `{source}`: "
            f"{type(error).__name__}: {first_line(error)}",
            hint="download them on a machine with network access and pass `--weights FILE`; "
            "`--weights random` continues without pretrained weights",
        ) from None
    assert isinstance(module, torch.nn.Module)
    return module


def _unknown_model(name: str, library: str, names: list[str], listing: str) -> UsageError:
    return UsageError(
        f"{library} has no model `{name}`{did_you_mean(name, names)}",
        hint=f"`{listing}` lists all names",
    )
