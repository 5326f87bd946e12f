"""The float network of a quantized module: where it comes from, and the structure it returns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qconvert import sources
from qconvert.backends.ort import open_cpu
from qconvert.core import atomic, config_file, onnx_io
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.run_files import MODEL, SETTINGS
from qconvert.core.tensors import parse_spec, random_inputs
from qconvert.graph.clean import clean_model
from qconvert.sources import Source, torch_export
from qconvert.sources.onnx_file import PREPROCESS_KEY
from qconvert.sources.torch_export import Forward


@dataclass(frozen=True)
class Structure:
    """What a network returns: tensors by name, in any nest of tuples, lists and dicts."""

    names: tuple[str, ...]
    spec: pytree.TreeSpec | None = None
    leaves: tuple[Any, ...] = ()

    def build(self, outputs: Mapping[str, Tensor]) -> Any:
        """Return the outputs as the network does; those of an ONNX file by name if there are more."""
        if self.spec is None:
            return outputs[self.names[0]] if len(self.names) == 1 else dict(outputs)
        tensors = iter(outputs[name] for name in self.names)
        leaves = [next(tensors) if leaf is Tensor else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class FloatNetwork:
    """The clean float model and its settings; `run` is the folder of the run it is from."""

    model: ir.Model
    settings: Config
    structure: Structure
    run: Path | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> "FloatNetwork":
        return self  # nothing changes it


def load_network(
    model: str | Path | nn.Module,
    inputs: Sequence[str],
    settings: Mapping[str, object],
    *,
    trust: bool,
) -> FloatNetwork:
    """Read a network from whatever a build reads, a torch module, or the folder of a run."""
    overrides = {**settings, **({"export.inputs": list(inputs)} if inputs else {})}
    if not isinstance(model, nn.Module) and Path(model).is_dir():
        return _load_run(Path(model), overrides)
    if not isinstance(model, nn.Module):
        overrides["model"] = str(model)
    config = config_file.load(None, overrides, source="settings")
    with _restored_modes(model):
        if isinstance(model, nn.Module):
            if not inputs:
                raise UsageError(
                    "a torch module does not say what it takes",
                    hint='name its inputs, as in `prepare(module, inputs=["image:1x3x224x224"])`',
                )
            specs = [parse_spec(text) for text in inputs]
            source = torch_export.from_module(type(model).__name__, model, specs, config.export)
        else:
            source = sources.load(str(model), config.export, trust=trust)
        structure = _find_structure(source)
    return FloatNetwork(_clean(source, config), config, structure)


def _load_run(folder: Path, overrides: Mapping[str, object]) -> FloatNetwork:
    if not (folder / SETTINGS).is_file():
        raise UsageError(
            f"`{folder}` is not the folder of a run: it has no {SETTINGS}",
            hint="name a folder that `qconvert build -o RUN` wrote, or a model",
        )
    if overrides:
        raise UsageError(
            f"`{folder}` has its own settings: {', '.join(map(repr, overrides))} cannot be set",
            hint="leave them out, or name the model in place of the run",
        )
    config = config_file.load(folder / SETTINGS)
    model = onnx_io.load(folder / MODEL)
    names = tuple(spec.name for spec in onnx_io.outputs(model))
    return FloatNetwork(model, config, Structure(names), folder)


@contextmanager
def _restored_modes(model: object) -> Iterator[None]:
    """Put the parts of a module back into the modes that they were in: an export evaluates them."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _find_structure(source: Source) -> Structure:
    names = tuple(spec.name for spec in onnx_io.outputs(source.model))
    forward = source.run
    if not isinstance(forward, Forward):
        return Structure(names)
    arrays = random_inputs(source.inputs, 2, seed=0)
    with torch.no_grad(), torch_export.silenced():
        outputs = forward.call(*(torch.from_numpy(arrays[name]) for name in forward.inputs))
    leaves, spec = pytree.tree_flatten(outputs)
    marked = tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return Structure(forward.outputs, spec, marked)


def _clean(source: Source, config: Config) -> ir.Model:
    """Return the clean graph as it is read from a file, with the preprocessing of its source."""
    feeds = random_inputs(source.inputs, 2, seed=0)
    result = clean_model(
        source.model, config.export.opset, config.prepare.skip, lambda model: open_cpu(model)(feeds)
    )
    model = result.model.clone()
    model.metadata_props.clear()
    model.metadata_props.update(source.model.metadata_props)
    if source.preprocess is not None:
        text = json.dumps(source.preprocess.to_dict(), sort_keys=True)
        model.metadata_props[PREPROCESS_KEY] = text
    with atomic.temporary_folder() as folder:
        onnx_io.save(model, folder / MODEL)
        return onnx_io.load(folder / MODEL)
