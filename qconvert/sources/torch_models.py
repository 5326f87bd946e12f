"""Load networks of PyTorch; code in files that torch wrote runs only with trust."""

import importlib
import pickle
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError, did_you_mean, first_line
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import DTYPES, TensorSpec, fixed_batch, parse_spec, resolve_specs
from qconvert.core.user_code import add_working_folder_to_path, call_function, import_function
from qconvert.images.preprocess import Preprocess
from qconvert.sources import Source
from qconvert.sources.onnx_file import set_batch, set_input_shapes
from qconvert.sources.torch_export import from_module, from_program, silenced

# Where training scripts put the weights inside a checkpoint.
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema", "net", "weights")
COUNTER = "num_batches_tracked"
MAX_LISTED = 3

# The value of `--weights` for a network that keeps its random weights.
RANDOM = "random"


def load_program(source: str, export: ExportConfig, trust: bool) -> Source:
    """Load a `torch.export` file; `inputs` set the sizes that it leaves open.

    torch turns names, expressions and guards of the file into Python code, and unpickles objects.
    """
    path = existing_file(source)
    if export.weights is not None:
        raise UsageError(f"`{source}` contains its weights", hint="leave out `--weights`")
    if not trust:
        raise QConvertError(
            f"`{path}` is an exported program, and reading it can run code it contains",
            hint="if you trust its origin, add `--trust`",
        )
    try:
        with silenced():
            program = torch.export.load(path)
    except (Exception, SystemExit) as error:
        raise QConvertError(
            f"`{path}` is not a torch.export program this torch can read: {first_line(error)}",
            hint=f"save it with `torch.export.save`; the installed torch is {torch.__version__}",
        ) from None
    exported = from_program(path.stem, program, export)
    specs = resolve_specs(exported.inputs, [parse_spec(text) for text in export.inputs])
    inputs = set_batch(specs, export.batch)
    batch = fixed_batch(specs)
    if inputs != specs and batch is not None:
        raise QConvertError(
            f"`{path.stem}` was exported with a batch of {batch}",
            hint="leave out `--batch`, or export it again with a dynamic first dimension",
        )
    if inputs == exported.inputs:
        return exported
    return replace(exported, model=set_input_shapes(exported.model, inputs), inputs=inputs)


def load_pickle(source: str, export: ExportConfig, trust: bool) -> Source:
    """Load a pickled module; reading one runs code."""
    path = existing_file(source)
    if export.weights == RANDOM:
        raise UsageError(f"`{source}` contains its weights", hint="leave out `--weights random`")
    if trust:
        add_working_folder_to_path()  # a pickle names the user's classes
    content = read_checkpoint(path, trust=trust)
    if not isinstance(content, torch.nn.Module):
        raise UsageError(
            f"`{source}` holds weights, not a network",
            hint=f"name the network's code too: `package.module:factory --weights {source}`",
        )
    if not export.inputs:
        raise UsageError(
            f"`{source}` does not describe its inputs", hint="add `--input NAME:1x3x224x224`"
        )
    load_weights(content, export.weights, trust=trust)
    return from_module(path.stem, content, (), export)


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
    specs = () if export.inputs else _example_specs(source, examples)
    if not (specs or export.inputs):
        raise UsageError(
            f"`{source}` does not describe its inputs",
            hint="add `--input NAME:1x3x224x224`, or return (module, example_inputs)",
        )
    exported = from_module(source.rpartition(":")[2], module, specs, export)
    return replace(exported, notes=(f"ran the code of `{source}`", *exported.notes))


def call_factory(source: str) -> object:
    """Import `package.module`, the working folder first, and return the result of `factory()`."""
    return call_function(source, import_function(source, "function() returns the model"))


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
        # Filters that are not supported here become bilinear.
        interpolation="bicubic" if data["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    image = TensorSpec("input", np.dtype("float32"), (1, *data["input_size"]))
    return replace(from_module(name, module, [image], export), preprocess=preprocess)


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
            interpolation="bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
    image = TensorSpec("input", np.dtype("float32"), (1, 3, crop, crop))
    return replace(from_module(name, module, [image], export), preprocess=preprocess)


def _example_specs(source: str, examples: Any) -> list[TensorSpec]:
    """Read shapes off the example inputs of a factory: one tensor, several, or named ones."""
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, (tuple, list)):
        named = [("", value) for value in examples]
    elif isinstance(examples, dict):
        named = [(str(name), value) for name, value in examples.items()]
    elif examples is None:
        return []
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


# --- files and weights ---


def load_weights(module: torch.nn.Module, weights: str | None, *, trust: bool) -> None:
    """Load a checkpoint into a module, if one is named; names, shapes and types must match."""
    if weights in (None, RANDOM):
        return
    path = existing_file(str(weights))
    is_safetensors = path.suffix == ".safetensors"
    content = _read_safetensors(path) if is_safetensors else read_checkpoint(path, trust=trust)
    state, own = _find_weights(content, path), module.state_dict()
    differences = []
    for key in sorted(own.keys() & state.keys()):
        stored, expected = state[key], own[key]
        if stored.shape != expected.shape:
            differences.append(f"{key} is {tuple(stored.shape)}, not {tuple(expected.shape)}")
        elif _kind(stored) != _kind(expected) and not key.endswith(COUNTER):
            types = [str(tensor.dtype).removeprefix("torch.") for tensor in (stored, expected)]
            differences.append(f"{key} is {types[0]}, not {types[1]}")
    details = [
        # Old checkpoints lack this counter, which inference never reads.
        *_list("missing", [key for key in own.keys() - state.keys() if not key.endswith(COUNTER)]),
        *_list("not in the network", state.keys() - own.keys()),
        *differences[:MAX_LISTED],
    ]
    if details:
        raise QConvertError(
            f"`{path}` does not fit this network",
            details=details,
            hint="check that it is of this architecture, with the same number of classes, "
            "and not quantized",
        )
    module.load_state_dict(state, strict=False)


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Unpickle tensors only, or any object with `trust`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            is_pickle = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
        if trust or not is_pickle:
            raise _unreadable_file(path, error) from None
        # The name of the code that the pickle wants is in torch's long explanation.
        lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        text = lines[0].split(" was not an allowed")[0] if lines else first_line(error)
        raise QConvertError(
            f"`{path}` holds more than tensors, and reading it would run code it contains",
            details=[text.removeprefix("WeightsUnpickler error: ")],
            hint="save `module.state_dict()` instead or, if you trust its origin, add `--trust`",
        ) from None
    except (Exception, SystemExit) as error:  # broken bytes can raise anything
        raise _unreadable_file(path, error) from None


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise Unavailable(
            f"`{path}` needs safetensors, which is not installed", hint=pip_install("torch")
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # its exception class is not public in every release
        raise _unreadable_file(path, error) from None


def existing_file(source: str) -> Path:
    """Return the path of a file; refuse a missing, empty or suspiciously compressed one."""
    path = Path(source)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        hint = "check the path; it starts at the current folder"
        raise UsageError(f"`{path}` {problem}", hint=hint)
    size = path.stat().st_size
    if size == 0:
        raise QConvertError(f"`{path}` is empty", hint="save or copy it again")
    if not zipfile.is_zipfile(path):
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _unreadable_file(path, error) from None
    # Compressed weights shrink to a half; all zeros to a thousandth.
    if unpacked > 20 * size + 2**20:
        raise QConvertError(
            f"`{path}` unpacks to {unpacked / 1e6:,.0f} MB from {size / 1e6:,.1f} MB",
            hint="save it again with `torch.save`, which does not compress",
        )
    return path


def _unreadable_file(path: Path, error: BaseException) -> QConvertError:
    return QConvertError(
        f"`{path}` is not a file torch can read: {first_line(error)}",
        hint="check that it is complete; an interrupted download causes the same error",
    )


def _find_weights(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    entries = content if isinstance(content, dict) else {}
    for key in NESTED_KEYS:
        if isinstance(entries.get(key), (dict, torch.nn.Module)):
            return _find_weights(entries[key], path)
    if not entries or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in entries.items()
    ):
        names = ", ".join(f"`{key}`" for key in list(entries)[:5])
        kind = f"a dict with the keys {names}" if names else f"a {type(content).__name__}"
        raise QConvertError(
            f"`{path}` holds no weights: {kind}",
            hint="save `module.state_dict()` with torch.save or safetensors",
        )
    if all(key.startswith("module.") for key in entries):  # saved from DataParallel
        return {key.removeprefix("module."): value for key, value in entries.items()}
    return dict(entries)


def _kind(tensor: torch.Tensor) -> str:
    """Group types that convert to each other; integers and 8-bit floats need a scale."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float" if tensor.itemsize > 1 else "float8"
    return "integer"


def _list(title: str, names: Collection[str]) -> list[str]:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    listed = ", ".join(f"`{name}`" for name in sorted(names)[:MAX_LISTED])
    return [f"{title}: {listed}{more}"] if names else []
