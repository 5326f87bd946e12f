"""The native builder of TensorRT and of TensorRT for RTX: one interface in two Python modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from qconvert import drafts, onnx_io
from qconvert.backends.base import Heard, Profile
from qconvert.backends.build_progress import Progress, watched
from qconvert.backends.folder import writing
from qconvert.backends.tensorrt_options import open_batches
from qconvert.errors import QConvertError
from qconvert.feeds import TensorSpec

PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
CURE = "int8 needs zero points of 0 and float biases: quantize with this backend's own scheme"
FLOAT_CURE = "replace what it names in the network, or leave this backend out: `--backend cpu`"
# The parser takes an operator that it does not know for one of a plugin.
UNKNOWN = "Plugin not found"


@dataclass(frozen=True)
class Wishes:
    """What a native build is told; `workspace` is in MiB, 0 for all there is."""

    profiles: tuple[Profile, ...]
    workspace: int = 0
    level: int | None = None
    hardware_compatible: bool = False
    weight_stripped: bool = False
    timing_cache: Path | None = None


def build(
    trt: ModuleType, graph: Path, inputs: Sequence[TensorSpec], wishes: Wishes, heard: Heard
) -> bytes:
    """Return the engine of an ONNX file, typed as the graph is, built by the module given.

    An exception from `heard`, as Ctrl-C is one, ends the build at its next step. `tensorrt` needs a
    GPU here, `tensorrt_rtx` none.
    """
    log = _log(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = _parsed(trt, builder, graph, log)
    progress = Progress()
    config = _configured(trt, builder, inputs, wishes)
    monitor = _monitor(trt, progress)  # held here: it must outlive what reports to it
    config.progress_monitor = monitor
    engine = watched(lambda: builder.build_serialized_network(network, config), progress, heard)
    if engine is None:
        raise QConvertError(
            f"{_product(trt)} cannot build an engine: {_last(log.errors)}",
            details=log.errors[-5:],
            hint="`qconvert inspect` shows the operators; leave out what it names with `--exclude`",
        )
    if wishes.timing_cache:
        _store_timings(config, wishes.timing_cache)
    heard("built", 1.0)
    return bytes(engine)


def parse(trt: ModuleType, graph: Path) -> None:
    """Refuse an ONNX file that the parser does not read, as a build would."""
    log = _log(trt)
    _parsed(trt, trt.Builder(log), graph, log)


def inspect(trt: ModuleType, engine: bytes) -> str:
    """Return what TensorRT's inspector says of an engine, as JSON; this needs a GPU it runs on."""
    opened = trt.Runtime(_log(trt)).deserialize_cuda_engine(engine)
    if opened is None:
        raise QConvertError(
            f"{_product(trt)} cannot open this engine: {_last(_log(trt).errors)}",
            hint="build it again on this machine: engines fit one GPU and one release",
        )
    inspector = opened.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _parsed(trt: ModuleType, builder: Any, graph: Path, log: Any) -> Any:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return network
    said = [parser.get_error(at) for at in range(parser.num_errors)]
    why = [f"{each.node_name()} ({each.node_operator()}): {_words(each)}" for each in said]
    rounded = any("Quantize" in node.op_type for node in onnx_io.nodes(onnx_io.load(graph)))
    raise QConvertError(
        f"{_product(trt)} cannot read this model: {why[0] if why else 'no reason given'}",
        details=why[1:5],
        hint=CURE if rounded else FLOAT_CURE,
    )


def _words(error: Any) -> str:
    text = str(error.desc())
    return "it has no such operator" if UNKNOWN in text else text


def _configured(trt: ModuleType, builder: Any, inputs: Sequence[TensorSpec], wishes: Wishes) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's types of layers
    if wishes.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wishes.workspace * 2**20)
    if wishes.level is not None:
        config.builder_optimization_level = wishes.level
    if wishes.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if wishes.weight_stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if wishes.timing_cache:
        known = wishes.timing_cache.read_bytes() if wishes.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    dynamic = open_batches(inputs)
    for sizes in wishes.profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            batches = (sizes.least, sizes.best, sizes.most)
            profile.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)
    return config


def _store_timings(config: Any, path: Path) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafts.draft(path.parent) as draft:
            (draft / path.name).write_bytes(bytes(config.get_timing_cache().serialize()))
            (draft / path.name).replace(path)


@cache
def _log(trt: ModuleType) -> Any:
    """Return the one log of a module: it takes the first it is given, and keeps to that."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text)

    return Log()


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.begin(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return progress.step(name)

        def phase_finish(self, name: str) -> None:
            progress.end(name)

    return Monitor()


def _last(errors: Sequence[str]) -> str:
    return errors[-1].splitlines()[0] if errors else "no reason given"


def _product(trt: ModuleType) -> str:
    return PRODUCTS.get(trt.__name__, trt.__name__)
