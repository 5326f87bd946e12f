"""Read checkpoints without running code in them, and load their weights into a network."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from qconvert.core.errors import QConvertError, Unavailable, UsageError, first_line

# Where training scripts put the weights inside a checkpoint.
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema", "net", "weights")
COUNTER = "num_batches_tracked"
MAX_LISTED = 3
# Compressed weights shrink to a half; all zeros to a thousandth.
MAX_COMPRESSION = 20
PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")

# The value of `--weights` for a network that keeps its random weights.
RANDOM = "random"


def load_weights(module: torch.nn.Module, weights: str, *, trust: bool) -> None:
    """Load a checkpoint into a module; every name, shape and kind of type must match."""
    path = existing_file(weights)
    is_safetensors = path.suffix == ".safetensors"
    content = _read_safetensors(path) if is_safetensors else read_checkpoint(path, trust=trust)
    state, own = _find_weights(content, path), module.state_dict()
    details = [
        # Old checkpoints lack this counter, which inference never reads.
        *_list("missing", [key for key in own.keys() - state.keys() if not key.endswith(COUNTER)]),
        *_list("not in the network", state.keys() - own.keys()),
        *_differences(state, own)[:MAX_LISTED],
    ]
    if details:
        raise QConvertError(
            f"`{path}` does not fit this network",
            details=details,
            hint="is it the checkpoint of this very architecture, with the same number of classes, "
            "saved before it was quantized?",
        )
    module.load_state_dict(state, strict=False)


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Unpickle tensors only; with `trust`, any object."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            is_pickle = file.read(2) in PICKLE_STARTS
        if trust or not is_pickle:
            raise unreadable_file(path, error) from None
        raise QConvertError(
            f"`{path}` holds more than tensors, and reading it would run code it contains",
            details=[_refused_global(error)],
            hint="if you made it yourself, add `--trust`; better, save `module.state_dict()`",
        ) from None
    except (Exception, SystemExit) as error:  # broken bytes can raise anything
        raise unreadable_file(path, error) from None


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
        raise unreadable_file(path, error) from None
    if unpacked > MAX_COMPRESSION * size + 2**20:
        raise QConvertError(
            f"`{path}` unpacks to {unpacked / 1e6:,.0f} MB from {size / 1e6:,.1f} MB",
            hint="save it again with `torch.save`, which compresses nothing",
        )
    return path


def unreadable_file(path: Path, error: BaseException) -> QConvertError:
    """Return the error for a file that is broken or of another format."""
    return QConvertError(
        f"`{path}` is not a file torch can read: {first_line(error)}",
        hint="is it complete? an interrupted download fails in the same way",
    )


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise Unavailable(
            f"`{path}` needs safetensors, which is not installed",
            hint='pip install "qconvert[torch]"',
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # its exception class is not public in every release
        raise unreadable_file(path, error) from None


def _find_weights(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the weights in whatever a training script saved."""
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if isinstance(content, dict):
        for key in NESTED_KEYS:
            if isinstance(content.get(key), (dict, torch.nn.Module)):
                return _find_weights(content[key], path)
    if not _is_state_dict(content):
        names = (
            ", ".join(f"`{key}`" for key in list(content)[:5]) if isinstance(content, dict) else ""
        )
        kind = f"a dict with the keys {names}" if names else f"a {type(content).__name__}"
        raise QConvertError(
            f"`{path}` holds no weights: {kind}",
            hint="save `module.state_dict()` with torch.save or safetensors",
        )
    if all(key.startswith("module.") for key in content):  # saved from DataParallel
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            for key, value in content.items()
        )
    )


def _differences(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """Describe the tensors whose shape or kind of type differs from the network's."""
    differences = []
    for key in sorted(own.keys() & state.keys()):
        stored, expected = state[key], own[key]
        if stored.shape != expected.shape:
            differences.append(f"{key} is {tuple(stored.shape)}, not {tuple(expected.shape)}")
        elif _kind(stored) != _kind(expected) and not key.endswith(COUNTER):
            types = [str(tensor.dtype).removeprefix("torch.") for tensor in (stored, expected)]
            differences.append(f"{key} is {types[0]}, not {types[1]}")
    return differences


def _kind(tensor: torch.Tensor) -> str:
    """Group types that convert to each other; integers and 8-bit floats need a scale."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float" if tensor.itemsize > 1 else "float8"
    return "integer"


def _list(title: str, names: Any) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return [f"{title}: " + ", ".join(f"`{name}`" for name in names[:MAX_LISTED]) + more]


def _refused_global(error: Exception) -> str:
    """Return the name of the code that a pickle wants, from torch's long explanation."""
    for line in str(error).splitlines():
        if "GLOBAL" in line:
            text = line.strip().split(" was not an allowed")[0]
            return text.removeprefix("WeightsUnpickler error: ")
    return first_line(error)
