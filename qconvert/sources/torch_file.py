"""Files torch wrote: exported programs and checkpoints, read without running what is in them."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from qconvert.config import Export
from qconvert.errors import QConvertError, Unavailable, UsageError, reason
from qconvert.feeds import parse
from qconvert.sources.onnx_file import reshape, with_batch
from qconvert.sources.source import Source
from qconvert.sources.torch_program import from_module, from_program

# Where training scripts put the weights inside a checkpoint.
NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema", "net", "weights")
SHOWN = 3


def load_program(source: str, export: Export, trust: bool) -> Source:
    """Read a `torch.export` file."""
    path = _existing(source)
    if export.weights is not None or export.inputs:
        raise UsageError(
            f"`{source}` brings its weights and shapes", hint="leave out `--weights` and `--input`"
        )
    if not trust:
        _refuse_code(path)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise QConvertError(
            f"`{path}` is not a torch.export program this torch can read: {reason(error)}",
            hint=f"save it with `torch.export.save(program, path)`; here is torch {torch.__version__}",
        ) from None
    found = from_program(path.stem, program, export)
    return _with_batch(found, export)


def load_pickle(source: str, export: Export, trust: bool) -> Source:
    """Read a whole pickled module, which runs code: only with `--trust`."""
    path = _existing(source)
    content = read(path, trust=trust)
    if not isinstance(content, torch.nn.Module):
        raise UsageError(
            f"`{source}` holds weights, not a network",
            hint=f"name the code too: `package.module:factory --weights {source}`",
        )
    if not export.inputs:
        raise UsageError(
            f"`{source}` does not say what goes in", hint="add `--input NAME:1x3x224x224`"
        )
    return from_module(path.stem, content, [parse(given) for given in export.inputs], export)


def load_weights(module: torch.nn.Module, weights: str, *, trust: bool) -> None:
    """Put a checkpoint's weights into a module; every name and shape must match."""
    path = _existing(weights)
    content = _safetensors(path) if path.suffix == ".safetensors" else read(path, trust=trust)
    state = _state(content, path)
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    other = sorted(
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    )
    # Old checkpoints lack this counter, which inference never reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or extra or other:
        raise QConvertError(
            f"`{path}` does not fit this network",
            details=[
                *_some("missing", missing),
                *_some("not in the network", extra),
                *other[:SHOWN],
            ],
            hint="is it the checkpoint of this very architecture, with the same number of classes?",
        )
    module.load_state_dict(state, strict=False)


def read(path: Path, *, trust: bool) -> Any:
    """Unpickle tensors only; with `trust`, anything."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust or not _is_pickle(path):
            raise _unreadable(path, error) from None
        raise QConvertError(
            f"`{path}` holds more than tensors, and reading it would run code it brings",
            details=[_global(error)],
            hint="if you made it yourself, add `--trust`; better, save `module.state_dict()`",
        ) from None
    except Exception as error:  # torch raises whatever the broken bytes happen to hit
        raise _unreadable(path, error) from None


def _with_batch(found: Source, export: Export) -> Source:
    specs = with_batch(found.inputs, export.batch)
    if specs == found.inputs:
        return found
    if export.batch == "dynamic":
        raise QConvertError(
            f"`{found.name}` was exported with a batch of {found.inputs[0].shape[0]}",
            hint="leave out `--batch`, or export it again with a dynamic first dimension",
        )
    return Source(found.name, reshape(found.model, specs), specs, found.run, found.notes)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"`{path}` {what}", hint="check the path; it starts at the current folder")
    if path.stat().st_size == 0:
        raise QConvertError(f"`{path}` is empty", hint="save or copy it again")
    return path


def _refuse_code(path: Path) -> None:
    """Refuse archives whose constants are pickled objects; plain tensors never are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
            configs = [name for name in entries if name.endswith("_config.json")]
            texts = [json.loads(archive.read(name)) for name in configs]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _unreadable(path, error) from None
    payloads = [item for text in texts for item in dict(text.get("config", {})).values()]
    pickled = any(item.get("use_pickle") for item in payloads)
    objects = [name for name in entries if "custom_obj_" in name or "opaque_obj_" in name]
    if pickled or objects:
        raise QConvertError(
            f"`{path}` holds pickled objects, and reading it would run code it brings",
            hint="if you made it yourself, add `--trust`",
        )


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise Unavailable(
            f"`{path}` needs safetensors, which is not installed",
            hint='pip install "qconvert[torch]"',
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # the library's own error type is not public everywhere
        raise _unreadable(path, error) from None


def _state(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the weights in what a training script saved."""
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), (dict, torch.nn.Module)):
            return _state(content[nest], path)
    tensors = isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )
    if not tensors or not content:
        raise QConvertError(
            f"`{path}` holds no weights: {_described(content)}",
            hint="save `module.state_dict()` with torch.save or safetensors",
        )
    if all(key.startswith("module.") for key in content):  # saved from DataParallel
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return "a dict with the keys " + ", ".join(f"`{key}`" for key in list(content)[:5])
    return f"a {type(content).__name__}"


def _some(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what}: " + ", ".join(f"`{name}`" for name in names[:SHOWN]) + more]


def _global(error: Exception) -> str:
    """Return the name of the code the pickle wants, from torch's long explanation."""
    for line in str(error).splitlines():
        if "GLOBAL" in line:
            return (
                line.strip()
                .split(" was not an allowed")[0]
                .removeprefix("WeightsUnpickler error: ")
            )
    return reason(error)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")


def _unreadable(path: Path, error: Exception) -> QConvertError:
    return QConvertError(
        f"`{path}` is not a file torch can read: {reason(error)}",
        hint="is it complete? a download cut short says the same",
    )
