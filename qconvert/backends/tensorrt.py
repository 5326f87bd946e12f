"""The TensorRT backend: engines built by ONNX Runtime's TensorRT provider or by TensorRT itself.

The provider loads both. Written from its documentation and source: building and loading need a GPU.
Whatever can be decided without one is in `tensorrt_options`, `engine_folder` and `nvinfer`.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from qconvert.backends import nvinfer, tensorrt_options
from qconvert.backends.base import (
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Session,
    TritonSpec,
    settings_as_text,
)
from qconvert.backends.cuda import PACKAGE, missing_requirement, require_fixed_shapes
from qconvert.backends.engine_folder import (
    GRAPH,
    EngineGraph,
    copy_graph,
    explain_write_errors,
    wrap_engine,
)
from qconvert.backends.precision_coverage import layer_precisions
from qconvert.backends.system_probe import Installed, detect, provider_error
from qconvert.backends.tensorrt_options import (
    CONTEXT,
    DEFAULT_REST,
    PROVIDER,
    engine_files,
    load_options,
    provider_options,
    read_options,
    settings_of_build,
)
from qconvert.backends.versions import NetworkTypes, linked_libraries, major_minor, network_types
from qconvert.core import onnx_io
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.scales import Grid
from qconvert.quantize import rules_tensorrt
from qconvert.quantize.scheme import Scheme

ENGINE = "model.engine"
STRIPPED_ENGINE = "model.stripped.engine"
TIMING_CACHE_FILE = "native.timing"
NODES_FILE = "nodes.json"  # the nodes that each provider took: a loaded engine is one node
INSTALL = 'pip install "qconvert[tensorrt]"'


def probe(installed: Installed) -> Availability:
    """Find out whether the TensorRT provider runs here; first, whether its libraries match."""
    if PACKAGE in installed.packages and (mismatch := _mismatch(installed)):
        return mismatch
    if missing := missing_requirement(installed, "tensorrt"):
        return missing
    version = _version(installed)
    if error := provider_error(PROVIDER):
        return Availability(False, False, version, error, INSTALL)
    return Availability(True, True, version)


def requirements() -> BackendRequirements:
    """Return which graphs TensorRT takes: all zero points 0, biases in float."""
    return BackendRequirements(
        quantization_scheme("tensorrt"),
        ("fp32", "fp16", "bf16"),
        default_rest=DEFAULT_REST,
        strongly_typed=is_strongly_typed(detect()),
    )


def is_strongly_typed(installed: Installed) -> bool:
    """Whether the provider builds networks in the types of the graph.

    If not, a graph must be in float32, with Q/DQ nodes for INT8, and precisions become flags. If
    nothing is installed, the answer is yes, as for the native builder.
    """
    types = _network_types(installed)
    return types is None or not types.flags


def quantization_scheme(name: str) -> Scheme:
    """Return the scheme of TensorRT's builders."""
    return Scheme(
        name,
        activations=Grid(8),
        weights=Grid(8),
        integer_bias=False,
        rules=rules_tensorrt.RULES,
        shared_scale=frozenset({"Concat"}),
    )


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model: engines fit one GPU and release."""
    installed = detect()
    settings = read_options(spec)
    gpus = installed.gpus
    return {
        "backend": "tensorrt",
        "precision": spec.precision,
        "rest": spec.rest or DEFAULT_REST,
        "profile": str(spec.profile),
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        "tensorrt": installed.library_version("tensorrt"),
        "driver": installed.driver,
        "gpu": str(gpus[settings.device]) if settings.device < len(gpus) else "",
        **settings_as_text(settings, "timing_cache"),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph that the native builder cannot read; the provider takes what it can."""
    if read_options(spec).builder == "native":
        nvinfer.parse_in_subprocess("tensorrt", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback) -> Engine:
    """Build an engine, and a small ONNX file that loads it without a rebuild."""
    settings = read_options(spec)
    copied = copy_graph(graph, folder)
    if settings.cuda_graph:
        require_fixed_shapes(copied.inputs)
    if settings.builder == "native":
        nodes = _build_native(copied, spec, settings, progress)
    else:
        nodes = _build_with_provider(copied, spec, settings, progress)
    files = engine_files(folder, settings, copied.files)
    if not files:
        raise QConvertError(
            "the TensorRT provider left no engine that loads without a rebuild",
            details=sorted(path.name for path in folder.iterdir()),
            hint="`tensorrt.builder` = native builds with TensorRT itself",
        )
    with explain_write_errors(folder):
        (folder / NODES_FILE).write_text(json.dumps(nodes, indent=1), encoding="utf-8")
    made_with = dict(cache_key(spec))
    notes = fallback_notes(nodes)
    return Engine("tensorrt", spec.precision, folder, GRAPH, files, made_with, notes=notes)


def open(engine: Engine) -> Session:
    """Load an engine with the TensorRT provider, without a rebuild."""
    from qconvert.backends import ort

    trt = _import_tensorrt()
    settings, spec = settings_of_build(engine.made_with), load_spec(engine)
    session = ort.create_session(engine.folder / engine.files[0], spec)
    return ort.OrtSession(
        session,
        lambda: _coverage(engine, settings, trt),
        "cuda",
        settings.device,
        settings.cuda_graph,
    )


def load_spec(engine: Engine) -> LoadSpec:
    """Return how ONNX Runtime loads an engine."""
    settings = settings_of_build(engine.made_with)
    options = load_options(settings, engine.folder)
    return tensorrt_options.load_spec(settings, options, engine.made_with["tensorrt"])


def triton_spec(engine: Engine) -> TritonSpec:
    """Return how Triton serves an engine: as a plan that TensorRT loads, whoever built it."""
    settings = settings_of_build(engine.made_with)
    plans = [name for name in engine.files if name.endswith(".engine")]
    if settings.allow_fallback or settings.weight_stripped or len(plans) != 1:
        why = "runs in parts elsewhere" if settings.allow_fallback else "has no weights inside"
        raise UsageError(
            f"Triton needs one complete engine; `{engine.folder.name}` {why}",
            hint="build it again without `allow-fallback` and `weight-stripped`",
        )
    minimum, optimum, maximum = map(int, engine.made_with["profile"].split(","))
    version, gpu = engine.made_with["tensorrt"], engine.made_with["gpu"]
    return TritonSpec(
        "tensorrt_plan",
        plans[0],
        "GPU",
        (minimum, optimum, maximum),
        notes=(f"the server needs TensorRT {version} and a GPU like {gpu}",),
    )


def fallback_notes(nodes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a note for every provider but TensorRT that took nodes."""
    return tuple(
        f"{len(names)} nodes run on {provider}: {', '.join(names)}"
        for provider, names in sorted(nodes.items())
        if provider != PROVIDER and names
    )


def _build_with_provider(
    graph: EngineGraph,
    spec: BuildSpec,
    settings: TensorrtConfig,
    progress: BuildProgressCallback,
) -> dict[str, list[str]]:
    """Let the provider build; return the nodes that each provider took.

    The provider reports no progress, and Ctrl-C waits until it is done.
    """
    installed = detect()
    types = _network_types(installed)
    if types is None:
        raise Unavailable(
            "this onnxruntime-gpu and this TensorRT are not known to work together",
            hint="`qconvert doctor` shows which release of TensorRT it needs",
        )
    from qconvert.backends import ort

    _import_tensorrt()
    progress("TensorRT builds the engine and reports no progress", None)
    options = provider_options(spec, graph.folder, types, graph.inputs)
    load_spec = tensorrt_options.load_spec(settings, options, installed.library_version("tensorrt"))
    # The session is freed on return, and the provider writes what it still holds.
    return ort.nodes_by_provider(ort.create_session(graph.path, load_spec))


def _build_native(
    graph: EngineGraph,
    spec: BuildSpec,
    settings: TensorrtConfig,
    progress: BuildProgressCallback,
) -> dict[str, list[str]]:
    """Build with TensorRT itself, strongly typed, and wrap the engine for the provider."""
    _import_tensorrt()
    cache = settings.timing_cache
    options = nvinfer.NativeBuildOptions(
        (spec.profile,),
        settings.workspace,
        settings.level,
        settings.hardware_compatible,
        settings.weight_stripped,
        Path(cache) / TIMING_CACHE_FILE if cache else None,
    )
    name = STRIPPED_ENGINE if settings.weight_stripped else ENGINE
    with explain_write_errors(graph.folder):
        nvinfer.build_in_subprocess("tensorrt", graph, options, graph.folder / name, progress)
        onnx_io.save(wrap_engine(graph.model, name, PROVIDER), graph.folder / CONTEXT)
    return {PROVIDER: [f"{node.op_type} {node.name}" for node in graph.model.graph]}


def _import_tensorrt() -> ModuleType:
    """Import TensorRT, which loads the library that the provider needs."""
    from qconvert.backends import ort

    ort.preload_cuda_libraries()
    try:
        return import_module("tensorrt")
    except ImportError:
        raise Unavailable("TensorRT is not installed", hint=INSTALL) from None


def _coverage(engine: Engine, settings: TensorrtConfig, trt: ModuleType) -> Coverage:
    if settings.builder == "native" and not settings.weight_stripped:
        text = nvinfer.inspect_engine(trt, (engine.folder / ENGINE).read_bytes())
        if (counts := layer_precisions(text)) is not None:
            return Coverage({PROVIDER: sum(counts.values())}, counts)
    nodes = json.loads((engine.folder / NODES_FILE).read_text(encoding="utf-8"))
    counts = {provider: len(names) for provider, names in nodes.items()}
    reason = "the provider's engines do not tell; some built with `tensorrt.builder` = native do"
    return Coverage(counts, None, reason)


def _mismatch(installed: Installed) -> Availability | None:
    """Return why ONNX Runtime and TensorRT do not fit together, None if they do."""
    runtime, tensorrt = installed.packages[PACKAGE], installed.library_version("tensorrt")
    linked = linked_libraries(runtime)
    if linked is None:
        reason, cure = f"{PACKAGE} {runtime} is too old", INSTALL
    elif major_minor(tensorrt)[0] == linked.tensorrt:
        return None
    else:
        needed = linked.tensorrt
        problem = f"found {tensorrt}" if tensorrt else "none is installed"
        reason = f"{PACKAGE} {runtime} needs TensorRT {needed}; {problem}"
        cure = f'pip install "tensorrt-cu{linked.cuda}>={needed},<{needed + 1}"'
    return Availability(False, False, _version(installed), reason, cure)


def _version(installed: Installed) -> str:
    tensorrt = installed.library_version("tensorrt")
    runtime = f"{PACKAGE} {installed.packages[PACKAGE]}"
    return f"{runtime}, TensorRT {tensorrt}" if tensorrt else runtime


def _network_types(installed: Installed) -> NetworkTypes | None:
    runtime, tensorrt = installed.packages.get(PACKAGE, ""), installed.library_version("tensorrt")
    return network_types(runtime, tensorrt) if runtime and tensorrt else None
