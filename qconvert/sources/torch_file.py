"""Load files that torch wrote: exported programs, pickled modules, and the weights in checkpoints.

Code in them runs only with trust.
"""

import pickle
import sys
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError, first_line
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import fixed_batch, parse_spec, resolve_specs
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
    return from_module(path.stem, content, [parse_spec(text) for text in export.inputs], export)


def add_working_folder_to_path() -> None:
    """Let Python import the user's own modules from the working folder."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


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
            f"`{path}` needs safetensors, which is not installed",
            hint=pip_install("torch"),
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
    """Find the weights in the content that a training script saved."""
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
