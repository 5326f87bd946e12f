"""Exported programs (`.pt2`): read without running code that somebody else put into them."""

import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qconvert.errors import QConvertError, reason
from qconvert.sources.program_text import suspicious
from qconvert.sources.torch_quiet import quiet
from qconvert.sources.torch_weights import unreadable

TRUST = "if you made it yourself, add `--trust`"

# All that `torch.export.save` writes for tensors alone; of any other member torch may run code.
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/(weights/\w+_weights|constants/\w+_constants)_config\.json"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|extra/.*"
)
OLD = re.compile(r"serialized_\w+\.(pt|json)|data/(weights|constants)/\w+\.pt")

ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load(path: Path, *, trust: bool) -> torch.export.ExportedProgram:
    """Read a program; without `trust`, refuse a file that could run code while it is read."""
    if not trust:
        _refuse_code(path)
    try:
        with quiet(), contextlib.nullcontext() if trust else _only_tensors():
            return torch.export.load(path)
    except pickle.UnpicklingError as error:
        if trust:
            raise _other(path, reason(error)) from None
        raise _brings_code(path, "example inputs that are more than tensors") from None
    except (Exception, SystemExit) as error:
        raise _other(path, reason(error)) from None


@contextlib.contextmanager
def _only_tensors() -> Iterator[None]:
    """Keep torch from unpickling anything else, as it does where a first try fails."""
    before = {name: os.environ.pop(name, None) for name in (ONLY_TENSORS, ANYTHING)}
    os.environ[ONLY_TENSORS] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _refuse_code(path: Path) -> None:
    reader, names = _opened(path)
    if old := [name for name in names if OLD.fullmatch(name)]:
        raise QConvertError(
            f"`{path}` is in an older format, which can run code while it is read: `{old[0]}`",
            hint="save it again with this torch's `torch.export.save`; " + TRUST,
        )
    if "archive_format" not in names:
        raise _other(path, "it is another archive")
    if strange := [name for name in names if not MEMBERS.fullmatch(name)]:
        raise _brings_code(path, f"pickled objects or compiled code: `{strange[0]}`")
    for name in names:
        if name.endswith(".json") and not name.startswith("extra/"):
            _check(path, name, reader.get_record(name))


def _opened(path: Path) -> tuple[Any, list[str]]:
    """Open the archive as torch itself does, so that both see the same members.

    The old format, which torch falls back to, is an ordinary zip; torch's reader refuses it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            old = [name for name in archive.namelist() if "/" not in name]
        if old:
            return None, old
        reader = torch._C.PyTorchFileReader(str(path))
        return reader, reader.get_all_records()
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise unreadable(path, error) from None


def _check(path: Path, name: str, content: bytes) -> None:
    try:
        document = json.loads(content)
        text = suspicious(document)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from None
    if _is_pickled(document):
        raise _brings_code(path, f"pickled objects: `{name}`")
    if text is not None:
        raise _brings_code(path, f"text that torch would run: `{text[:60]}`")


def _is_pickled(document: Any) -> bool:
    """Whether the list of tensors says that one of them is a pickle."""
    config = document.get("config") if isinstance(document, dict) else None
    items = config.values() if isinstance(config, dict) else ()
    return any(isinstance(item, dict) and bool(item.get("use_pickle")) for item in items)


def _other(path: Path, why: str) -> QConvertError:
    return QConvertError(
        f"`{path}` is not a torch.export program this torch can read: {why}",
        hint=f"save it with `torch.export.save`; here is torch {torch.__version__}",
    )


def _brings_code(path: Path, what: str) -> QConvertError:
    return QConvertError(
        f"`{path}` holds {what}, and reading it would run code it brings", hint=TRUST
    )
