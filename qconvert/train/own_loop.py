"""Quantization-aware training in the user's own loop: a torch module that becomes a run.

    module = prepare("model.onnx", backend="cpu")
    for images, _ in few: module.observe(images)
    module.fix_ranges()
    ... train `module` like any other ...
    finish(module, "runs/trained")          # then: qconvert build --from runs/trained

The module computes what the Q/DQ graph of its plan computes. `finish` writes that graph.
"""

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qconvert import backends
from qconvert.backends.base import EngineVariant, scheme_for
from qconvert.core import atomic, config_file, onnx_io
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.formats import FORMATS
from qconvert.core.run_files import (
    CALIBRATION,
    ENGINES,
    GRAPH_FILE,
    HEAD_FILE,
    MODEL,
    PLAN_FILE,
    SETTINGS,
)
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors
from qconvert.images.listing import CLASSES_FILE
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import DEFAULT_METHOD, QuantizeOptions, Selection, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.train.float_network import FloatNetwork, load_network
from qconvert.train.range_observer import RangeObserver
from qconvert.train.trainable_graph import TrainableGraph

# What a trained run keeps of the run that it started from.
KEPT_FILES = (CLASSES_FILE, HEAD_FILE)
# A step that grew or shrank by more than this power of e has no range in float32, or no use.
MAX_LOG_STEP = 20.0

StrPath = str | os.PathLike[str]


class QuantizedModule(nn.Module):
    """A network that computes as its Q/DQ graph does; weights, biases and steps are parameters.

    It takes the inputs of the network in their order, or by name, and returns what the network
    returns. Without a plan it computes in float until `fix_ranges`. Its `state_dict` holds the plan
    too, so a module of the same network continues from it.
    """

    def __init__(self, network: FloatNetwork, backend: str, saved: PlanWithWeights | None) -> None:
        super().__init__()
        self.network, self.backend = network, backend
        self.observer: RangeObserver | None = None
        self.graph = self._read_graph(saved or PlanWithWeights(_float_plan(network, backend)))

    @property
    def plan(self) -> Plan:
        """The plan that the module started from; `to_plan` returns that of its parameters."""
        return self.graph.plan

    @property
    def is_quantized(self) -> bool:
        """Whether there is a plan; without one the module is the float network."""
        return self.plan.quantized > 0

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Return the outputs, in the structure in which the network returns them."""
        return self.network.structure.build(self.graph(self._feeds(inputs, named)))

    @torch.no_grad()
    def observe(self, *inputs: Tensor, **named: Tensor) -> None:
        """Measure the ranges of a batch; its images should be like those of the evaluation."""
        self._require_float()
        feeds: Tensors = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in self._feeds(inputs, named).items()
        }
        self.observer = self.observer or RangeObserver(self.network.model)
        self.observer.add(feeds)

    def fix_ranges(self, method: str | None = None) -> None:
        """Make the plan from the observed ranges; make optimizers only after this.

        `method` is a range method of `qconvert quantize`; that of the settings by default, or mse.
        """
        self._require_float()
        settings = self.network.settings.quantize
        observer = self.observer or RangeObserver(self.network.model)
        options = QuantizeOptions(
            method or settings.method or DEFAULT_METHOD,
            weight_method=settings.weight_scales,
            selection=Selection(settings.exclude, settings.only, settings.keep),
        )
        scheme = scheme_for(settings, backends.requirements(self.backend))
        plan = make_plan(self.network.model, scheme, observer.summaries(), options)
        self.graph, self.observer = self._read_graph(PlanWithWeights(plan)), None

    def parameter_groups(self, lr: float, *, step_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return parameters for an optimizer: weights and biases at `lr`, steps at `step_lr`.

        Steps learn relative to their start, so their rate does not depend on the network. Weight
        decay is for weights alone.
        """
        self._require_quantized()
        groups = self.graph.parameter_groups()
        rates = {"weights": lr, "biases": lr, "weight_steps": step_lr, "steps": step_lr}
        return [
            {"params": parameters, "lr": rates[name], "name": name}
            | ({} if name == "weights" else {"weight_decay": 0.0})
            for name, parameters in groups.items()
            if parameters
        ]

    def to_plan(self) -> PlanWithWeights:
        """Return the plan with the ranges and weights as they are now."""
        self._require_quantized()
        return self.graph.to_plan()

    def get_extra_state(self) -> dict[str, str]:
        """Return the plan, for `state_dict`."""
        # What the learned weights were is in the parameters.
        return {"plan": plan_files.format_plan(replace(self.plan, learned=""))}

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Take the plan of a `state_dict`, before its parameters are loaded."""
        plan = plan_files.parse_plan(state["plan"], "the state")
        if plan != replace(self.plan, learned=""):
            self.graph = self._read_graph(PlanWithWeights(plan))

    def _read_graph(self, saved: PlanWithWeights) -> TrainableGraph:
        tensors = itertools.chain(self.parameters(), self.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        graph = TrainableGraph(self.network.model, saved.plan, saved.weights, latent_in_steps=False)
        return graph.to(device)

    def _feeds(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = self.graph.inputs
        feeds = {**dict(zip(names, inputs, strict=False)), **named}
        if len(inputs) > len(names) or set(feeds) != set(names):
            raise TypeError(
                f"the network takes {', '.join(names)}; got {len(inputs)} inputs"
                + (f" and {', '.join(named)}" if named else "")
            )
        return feeds

    def _require_float(self) -> None:
        if self.is_quantized:
            raise UsageError(
                "the ranges of this module are fixed: they are parameters now",
                hint="observe before `fix_ranges`, and without a plan; training adapts the ranges",
            )

    def _require_quantized(self) -> None:
        if not self.is_quantized:
            raise UsageError(
                "this module has no plan yet, so it computes in float and has nothing to train",
                hint="call `observe` with a few batches, then `fix_ranges`; or give `prepare` a plan",
            )


def prepare(
    model: StrPath | nn.Module,
    plan: StrPath | PlanWithWeights | None = None,
    *,
    backend: str | None = None,
    inputs: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    trust: bool = False,
) -> QuantizedModule:
    """Return a quantized network as a torch module, to be trained.

    `model` is a torch module with its `inputs`, as `["image:1x3x224x224"]`; what `qconvert build`
    takes, such as an ONNX file; or the folder of a run, whose plan for the backend it continues.
    `plan` is a `plan.json`. Without a plan the module observes first. `settings` are those of
    qconvert.toml by their dotted keys, such as `{"quantize.weight-bits": 4}`; `finish` keeps them.
    """
    source = model if isinstance(model, nn.Module) else os.fspath(model)
    saved = plan if plan is None or isinstance(plan, PlanWithWeights) else _load(Path(plan))
    network = load_network(source, inputs, settings or {}, trust=trust)
    name = backend or (saved.plan.scheme if saved else _first_backend(network.settings))
    if name not in backends.BACKENDS or "int8" not in backends.requirements(name).schemes:
        names = [key for key in backends.BACKENDS if "int8" in backends.requirements(key).schemes]
        raise UsageError(
            f"`{name}` has no INT8 graphs to train", hint=f"choose one of {', '.join(names)}"
        )
    if saved is None and network.run is not None:
        saved = _load(network.run / ENGINES / EngineVariant(name, "int8").name / PLAN_FILE)
    if saved is not None and not FORMATS[saved.plan.precision].needs_ranges:
        raise UsageError(
            f"the plan is for {saved.plan.precision}, which has no ranges to train",
            hint="give a plan of `--precision int8`, or none",
        )
    if saved is not None and saved.plan.scheme != name:
        raise UsageError(
            f"the plan is for `{saved.plan.scheme}`, not for `{name}`",
            hint=f'`backend="{saved.plan.scheme}"`, or make a plan for `{name}`',
        )
    return QuantizedModule(network, name, saved)


def finish(module: QuantizedModule, out: StrPath) -> Path:
    """Write a trained module as the folder of a run, and return that.

    It has the float model, the plan with the learned weights, and the Q/DQ graph. `qconvert build
    --from OUT` builds its engines, compares them with the float model, and writes the report.
    """
    root, network = Path(out), module.network
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"`{root}` exists", hint="choose another folder")
    _require_finite(module)
    saved = module.to_plan()
    graph = apply_plan(network.model, saved.plan, saved.weights).clone()
    text = json.dumps(plan_files.plan_to_json(saved.plan), ensure_ascii=False)
    graph.metadata_props[plan_files.PLAN_METADATA_KEY] = text
    onnx_io.require_valid(graph)
    root.parent.mkdir(parents=True, exist_ok=True)
    with atomic.temporary_folder(root.parent) as folder:
        draft = folder / "run"
        engine = draft / ENGINES / EngineVariant(module.backend, "int8").name
        engine.mkdir(parents=True)
        onnx_io.save(network.model, draft / MODEL)
        onnx_io.save(graph, engine / GRAPH_FILE)
        plan_files.save_plan(saved, engine / PLAN_FILE)
        config = _settings_of_run(network.settings, module.backend, root / MODEL)
        atomic.write_text(draft / SETTINGS, config_file.dumps(config))
        if network.run is not None:
            _copy_kept_files(network.run, draft)
        atomic.copy_into_place(draft, root)
    return root


def _load(path: Path) -> PlanWithWeights:
    return plan_files.load_plan(path)


def _first_backend(settings: Config) -> str:
    return next(iter(settings.build.backends), "cpu")


def _float_plan(network: FloatNetwork, backend: str) -> Plan:
    """Return a plan that quantizes nothing."""
    scheme = scheme_for(network.settings.quantize, backends.requirements(backend))
    return Plan(
        model=onnx_io.fingerprint(network.model),
        scheme=backend,
        method=DEFAULT_METHOD,
        weight_method="mse",
        activations=scheme.activations,
        weights=Grid(8),
        integer_bias=scheme.integer_bias,
        layers={},
        tensors={},
    )


def _settings_of_run(settings: Config, backend: str, model: Path) -> Config:
    """Return the settings with which `qconvert build --from` continues."""
    changes = {"build.backends": [backend], "model": settings.model or str(model)}
    return config_file.absolute_paths(config_file.load(None, changes, base=settings))


def _copy_kept_files(run: Path, draft: Path) -> None:
    for name in KEPT_FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, draft / name)
    if (run / CALIBRATION).is_dir():
        atomic.copy_into_place(run / CALIBRATION, draft / CALIBRATION)


def _require_finite(module: QuantizedModule) -> None:
    """Refuse parameters that are NaN or infinite, or steps far off, as after a diverged training."""
    for name, parameter in module.graph.named_parameters():
        largest = MAX_LOG_STEP if name.endswith(("log_step", "log_steps")) else float("inf")
        if not bool((parameter.detach().abs() < largest).all()):
            raise UsageError(
                f"the parameters `{name}` are not finite: the training diverged",
                hint="train with a lower rate, from an earlier state",
            )
