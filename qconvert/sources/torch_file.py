"""Files torch wrote: exported programs and checkpoints, read without running what is in them."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from qconvert.config import Export
from qconvert.errors import QConvertError, UsageError, reason
from qconvert.feeds import parse
from qconvert.sources.onnx_file import reshape, with_batch
from qconvert.sources.source import Source
from qconvert.sources.torch_program import from_module, from_program
from qconvert.sources.torch_weights import existing, read, unreadable


def load_program(source: str, export: Export, trust: bool) -> Source:
    """Read a `torch.export` file."""
    path = existing(source)
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
            hint=f"save it with `torch.export.save`; here is torch {torch.__version__}",
        ) from None
    found = from_program(path.stem, program, export)
    return _with_batch(found, export)


def load_pickle(source: str, export: Export, trust: bool) -> Source:
    """Read a whole pickled module, which runs code: only with `--trust`."""
    path = existing(source)
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


def _with_batch(found: Source, export: Export) -> Source:
    specs = with_batch(found.inputs, export.batch)
    if specs == found.inputs:
        return found
    if export.batch == "dynamic":
        raise QConvertError(
            f"`{found.name}` was exported with a batch of {found.inputs[0].shape[0]}",
            hint="leave out `--batch`, or export it again with a dynamic first dimension",
        )
    return replace(found, model=reshape(found.model, specs), inputs=specs)


def _refuse_code(path: Path) -> None:
    """Refuse archives whose constants are pickled objects; plain tensors never are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
            configs = [name for name in entries if name.endswith("_config.json")]
            texts = [json.loads(archive.read(name)) for name in configs]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise unreadable(path, error) from None
    payloads = [item for text in texts for item in dict(text.get("config", {})).values()]
    pickled = any(item.get("use_pickle") for item in payloads)
    objects = [name for name in entries if "custom_obj_" in name or "opaque_obj_" in name]
    if pickled or objects:
        raise QConvertError(
            f"`{path}` holds pickled objects, and reading it would run code it brings",
            hint="if you made it yourself, add `--trust`",
        )
