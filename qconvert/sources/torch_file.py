"""Files torch wrote: exported programs and checkpoints, read without running what is in them."""

import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import TensorSpec, fixed_batch, parse_spec, resolve_specs
from qconvert.sources import Source, factory
from qconvert.sources.onnx_file import set_batch, set_input_shapes
from qconvert.sources.program_text import suspicious
from qconvert.sources.torch_export import from_module, from_program, silenced
from qconvert.sources.torch_weights import (
    RANDOM,
    existing_file,
    load_weights,
    read_checkpoint,
    unreadable_file,
)

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


def load_archive(path: Path, *, trust: bool) -> torch.export.ExportedProgram:
    """Read a program; without `trust`, refuse a file that could run code while it is read."""
    if not trust:
        _refuse_code(path)
    try:
        with silenced(), contextlib.nullcontext() if trust else _only_tensors():
            return torch.export.load(path)
    except pickle.UnpicklingError as error:
        if trust:
            raise _not_a_program(path, first_line(error)) from None
        raise _brings_code(path, "example inputs that are more than tensors") from None
    except (Exception, SystemExit) as error:
        raise _not_a_program(path, first_line(error)) from None


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
        raise _not_a_program(path, "it is another archive")
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
        raise unreadable_file(path, error) from None


def _check(path: Path, name: str, content: bytes) -> None:
    try:
        document = json.loads(content)
        text = suspicious(document)
    except (ValueError, RecursionError) as error:
        raise unreadable_file(path, error) from None
    if _is_pickled(document):
        raise _brings_code(path, f"pickled objects: `{name}`")
    if text is not None:
        raise _brings_code(path, f"text that torch would run: `{text[:60]}`")


def _is_pickled(document: Any) -> bool:
    """Whether the list of tensors says that one of them is a pickle."""
    config = document.get("config") if isinstance(document, dict) else None
    items = config.values() if isinstance(config, dict) else ()
    return any(isinstance(item, dict) and bool(item.get("use_pickle")) for item in items)


def _not_a_program(path: Path, why: str) -> QConvertError:
    return QConvertError(
        f"`{path}` is not a torch.export program this torch can read: {why}",
        hint=f"save it with `torch.export.save`; here is torch {torch.__version__}",
    )


def _brings_code(path: Path, what: str) -> QConvertError:
    return QConvertError(
        f"`{path}` holds {what}, and reading it would run code it brings", hint=TRUST
    )


def load_program(source: str, export: ExportConfig, trust: bool) -> Source:
    """Read a `torch.export` file; `inputs` fill in the sizes that it leaves open."""
    path = existing_file(source)
    if export.weights is not None:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights`")
    found = from_program(path.stem, load_archive(path, trust=trust), export)
    specs = resolve_specs(found.inputs, [parse_spec(given) for given in export.inputs])
    return _reshaped(found, _with_batch(found, specs, export))


def load_pickle(source: str, export: ExportConfig, trust: bool) -> Source:
    """Read a whole pickled module, which runs code: only with `--trust`."""
    path = existing_file(source)
    if export.weights == RANDOM:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights random`")
    if trust:
        factory.add_working_folder_to_path()  # a pickle names the classes it is made of
    content = read_checkpoint(path, trust=trust)
    if not isinstance(content, torch.nn.Module):
        raise UsageError(
            f"`{source}` holds weights, not a network",
            hint=f"name the code too: `package.module:factory --weights {source}`",
        )
    if not export.inputs:
        raise UsageError(
            f"`{source}` does not say what goes in", hint="add `--input NAME:1x3x224x224`"
        )
    if export.weights is not None:
        load_weights(content, export.weights, trust=trust)
    return from_module(path.stem, content, [parse_spec(given) for given in export.inputs], export)


def _with_batch(
    found: Source, specs: tuple[TensorSpec, ...], export: ExportConfig
) -> tuple[TensorSpec, ...]:
    """Fix an open batch; one that the program itself fixes cannot become another."""
    wanted = set_batch(specs, export.batch)
    fixed = fixed_batch(specs)
    if wanted != specs and fixed is not None:
        raise QConvertError(
            f"`{found.name}` was exported with a batch of {fixed}",
            hint="leave out `--batch`, or export it again with a dynamic first dimension",
        )
    return wanted


def _reshaped(found: Source, specs: tuple[TensorSpec, ...]) -> Source:
    if specs == found.inputs:
        return found
    return replace(found, model=set_input_shapes(found.model, specs), inputs=specs)
