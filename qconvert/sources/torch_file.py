"""Files torch wrote: exported programs and checkpoints, read without running what is in them."""

from dataclasses import replace

import torch

from qconvert.config import Export
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import TensorSpec, fixed_batch, parse, settle
from qconvert.sources import factory, torch_archive
from qconvert.sources.onnx_file import reshape, with_batch
from qconvert.sources.source import Source
from qconvert.sources.torch_program import from_module, from_program
from qconvert.sources.torch_weights import RANDOM, existing, load_weights, read


def load_program(source: str, export: Export, trust: bool) -> Source:
    """Read a `torch.export` file; `inputs` fill in the sizes that it leaves open."""
    path = existing(source)
    if export.weights is not None:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights`")
    found = from_program(path.stem, torch_archive.load(path, trust=trust), export)
    specs = settle(found.inputs, [parse(given) for given in export.inputs])
    return _reshaped(found, _with_batch(found, specs, export))


def load_pickle(source: str, export: Export, trust: bool) -> Source:
    """Read a whole pickled module, which runs code: only with `--trust`."""
    path = existing(source)
    if export.weights == RANDOM:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights random`")
    if trust:
        factory.find_modules_here()  # a pickle names the classes it is made of
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
    if export.weights is not None:
        load_weights(content, export.weights, trust=trust)
    return from_module(path.stem, content, [parse(given) for given in export.inputs], export)


def _with_batch(
    found: Source, specs: tuple[TensorSpec, ...], export: Export
) -> tuple[TensorSpec, ...]:
    """Fix an open batch; one that the program itself fixes cannot become another."""
    wanted = with_batch(specs, export.batch)
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
    return replace(found, model=reshape(found.model, specs), inputs=specs)
