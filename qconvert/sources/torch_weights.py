"""Checkpoints: weights read without running what is in the file, and put into a network."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from qconvert.core.errors import QConvertError, Unavailable, UsageError, first_line

# Where training scripts put the weights inside a checkpoint.
NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "ema", "net", "weights")
COUNTER = "num_batches_tracked"
SHOWN = 3
# Weights that somebody compressed shrink to a half, all zeros to a thousandth.
MOST_UNPACKED = 20

# What `--weights` says for a network whose weights stay as they are drawn.
RANDOM = "random"


def load_weights(module: torch.nn.Module, weights: str, *, trust: bool) -> None:
    """Put a checkpoint's weights into a module; every name and shape must match."""
    path = existing_file(weights)
    content = (
        _safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path, trust=trust)
    )
    state = _state(content, path)
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    # Old checkpoints lack this counter, which inference never reads.
    missing = [key for key in missing if not key.endswith(COUNTER)]
    shared = sorted(own.keys() & state.keys())
    other = [found for key in shared if (found := _other(key, state[key], own[key]))]
    if missing or extra or other:
        raise QConvertError(
            f"`{path}` does not fit this network",
            details=[
                *_some("missing", missing),
                *_some("not in the network", extra),
                *other[:SHOWN],
            ],
            hint="is it the checkpoint of this very architecture, with the same number of classes, "
            "saved before it was quantized?",
        )
    module.load_state_dict(state, strict=False)


def _other(key: str, given: torch.Tensor, own: torch.Tensor) -> str | None:
    """Say how a tensor differs from the one it would replace, in shape or in kind."""
    if given.shape != own.shape:
        return f"{key} is {tuple(given.shape)}, not {tuple(own.shape)}"
    if _kind(given) != _kind(own) and not key.endswith(COUNTER):
        return f"{key} is {_type(given)}, not {_type(own)}"
    return None


def _kind(tensor: torch.Tensor) -> str:
    """Group the types that stand for each other; integers and 8 bit floats need a scale."""
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1):
        return "complex" if tensor.is_complex() else "float"
    return "float8" if tensor.is_floating_point() else "integer"


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Unpickle tensors only; with `trust`, anything."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust or not _is_pickle(path):
            raise unreadable_file(path, error) from None
        raise QConvertError(
            f"`{path}` holds more than tensors, and reading it would run code it brings",
            details=[_global(error)],
            hint="if you made it yourself, add `--trust`; better, save `module.state_dict()`",
        ) from None
    except (Exception, SystemExit) as error:  # whatever the broken bytes happen to hit
        raise unreadable_file(path, error) from None


def existing_file(source: str) -> Path:
    """Return the path of a file that is there and holds something."""
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"`{path}` {what}", hint="check the path; it starts at the current folder")
    if path.stat().st_size == 0:
        raise QConvertError(f"`{path}` is empty", hint="save or copy it again")
    _require_honest(path)
    return path


def _require_honest(path: Path) -> None:
    """Refuse an archive whose few bytes unpack to many; torch itself compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise unreadable_file(path, error) from None
    packed = path.stat().st_size
    if unpacked > MOST_UNPACKED * packed + 2**20:
        raise QConvertError(
            f"`{path}` unpacks to {unpacked / 1e6:,.0f} MB from {packed / 1e6:,.1f} MB",
            hint="save it again with `torch.save`, which compresses nothing",
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
        raise unreadable_file(path, error) from None


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
    return first_line(error)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")


def unreadable_file(path: Path, error: BaseException) -> QConvertError:
    """Say that a file is broken or not what its name says."""
    return QConvertError(
        f"`{path}` is not a file torch can read: {first_line(error)}",
        hint="is it complete? a download cut short says the same",
    )
