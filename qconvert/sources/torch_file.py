"""Load files that torch wrote: exported programs (`.pt2`) and pickled modules, only with trust."""

from dataclasses import replace

import torch

from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import fixed_batch, parse_spec, resolve_specs
from qconvert.sources import Source, factory
from qconvert.sources.onnx_file import set_batch, set_input_shapes
from qconvert.sources.torch_export import from_module, from_program, silenced
from qconvert.sources.torch_weights import RANDOM, existing_file, load_weights, read_checkpoint


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
            hint="if you made it yourself, or trust who did, add `--trust`",
        )
    try:
        with silenced():
            program = torch.export.load(path)
    except (Exception, SystemExit) as error:
        raise QConvertError(
            f"`{path}` is not a torch.export program this torch can read: {first_line(error)}",
            hint=f"save it with `torch.export.save`; here is torch {torch.__version__}",
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
        factory.add_working_folder_to_path()  # a pickle names the user's classes
    content = read_checkpoint(path, trust=trust)
    if not isinstance(content, torch.nn.Module):
        raise UsageError(
            f"`{source}` holds weights, not a network",
            hint=f"name the code too: `package.module:factory --weights {source}`",
        )
    if not export.inputs:
        raise UsageError(
            f"`{source}` does not describe its inputs", hint="add `--input NAME:1x3x224x224`"
        )
    if export.weights is not None:
        load_weights(content, export.weights, trust=trust)
    return from_module(path.stem, content, [parse_spec(text) for text in export.inputs], export)
