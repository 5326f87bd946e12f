"""ONNX Runtime's TensorRT provider."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from qconvert.backends import nvinfer, ort
from qconvert.backends.base import (
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Precision,
    Session,
    TritonSpec,
    read_settings,
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
    TensorrtSettings,
    config_entries,
    engine_files,
    engine_load_spec,
    provider_options,
    providers_with_fallbacks,
    settings_of_build,
)
from qconvert.backends.versions import NetworkTypes, linked_libraries, major_minor, network_types
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.scales import Grid
from qconvert.quantize import rules_tensorrt
from qconvert.quantize.scheme import Scheme

ENGINE = "model.engine"
TIMING_CACHE_FILE = "native.timing"
NODES_FILE = "nodes.json"  # which provider took which nodes: the loaded engine is a single node

BuildResult = tuple[tuple[str, ...], tuple[str, ...]]


def build_with_provider(
    kept: EngineGraph, spec: BuildSpec, runtime: NetworkTypes, heard: BuildProgressCallback
) -> BuildResult:
    """Let the provider build; return the files to load, and notes on nodes it did not take.

    The provider tells no progress, and hears of Ctrl-C when it is done.
    """
    _library()
    heard("TensorRT builds the engine, without telling how far it is", None)
    chosen = read_settings(TensorrtSettings, spec, "tensorrt")
    made = provider_options(spec, kept.folder, runtime, kept.inputs)
    session = ort.create_session(
        kept.path, _session_options(chosen), providers_with_fallbacks(made, chosen)
    )
    taken = ort.nodes_by_provider(session)
    del session  # what the provider still holds back is written now
    files = engine_files(kept.folder, chosen, kept.files)
    if not files:
        raise QConvertError(
            "the TensorRT provider left no engine that loads without a rebuild",
            details=sorted(path.name for path in kept.folder.iterdir()),
            hint="`tensorrt.builder` = native builds with TensorRT itself",
        )
    _note_taken(kept.folder, taken)
    return files, fallback_notes(taken)


def build_native(kept: EngineGraph, spec: BuildSpec, heard: BuildProgressCallback) -> BuildResult:
    """Build with TensorRT itself, strongly typed, and wrap the engine for the provider."""
    chosen = read_settings(TensorrtSettings, spec, "tensorrt")
    cache = Path(chosen.timing_cache) / TIMING_CACHE_FILE if chosen.timing_cache else None
    wishes = nvinfer.NativeBuildOptions(
        (spec.profile,),
        chosen.workspace,
        chosen.level,
        chosen.hardware_compatible,
        chosen.weight_stripped,
        cache,
    )
    _library()
    name = ENGINE.replace(".engine", ".stripped.engine") if chosen.weight_stripped else ENGINE
    with explain_write_errors(kept.folder):
        nvinfer.build_in_subprocess("tensorrt", kept, wishes, kept.folder / name, heard)
        onnx_io.save(wrap_engine(kept.model, name, PROVIDER), kept.folder / CONTEXT)
    nodes = [f"{node.op_type} {node.name}" for node in kept.model.graph]
    _note_taken(kept.folder, {PROVIDER: nodes})
    return engine_files(kept.folder, chosen, kept.files), ()


def load_engine(engine: Engine) -> ort.OrtSession:
    """Open an engine with the provider alone, unless it was built with others to fall back on."""
    trt = _library()
    chosen, found = settings_of_build(engine.made_with), engine_load_spec(engine)
    path = engine.folder / engine.files[0]
    session = ort.create_session(path, _session_options(chosen), found.provider_list)

    def covered() -> Coverage:
        return _coverage(engine, chosen, trt)

    return ort.OrtSession(session, covered, "cuda", chosen.device, found.cuda_graph)


def fallback_notes(taken: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a note for every provider but TensorRT that took nodes, with their names."""
    return tuple(
        f"{len(nodes)} nodes run on {name}: {', '.join(nodes)}"
        for name, nodes in sorted(taken.items())
        if name != PROVIDER and nodes
    )


def _session_options(chosen: TensorrtSettings) -> Any:
    """Return options that leave the graph to TensorRT.

    ONNX Runtime's own rewrites would take Q/DQ pairs apart before TensorRT sees them.
    """
    return ort.session_options(entries=config_entries(chosen), level=ort.OPTIMIZE_NONE)


def _coverage(engine: Engine, chosen: TensorrtSettings, trt: ModuleType) -> Coverage:
    if chosen.builder == "native" and not chosen.weight_stripped:
        text = nvinfer.inspect_engine(trt, (engine.folder / ENGINE).read_bytes())
        if (counts := layer_precisions(text)) is not None:
            return Coverage({PROVIDER: sum(counts.values())}, counts)
    taken = json.loads((engine.folder / NODES_FILE).read_text(encoding="utf-8"))
    why = "ONNX Runtime builds engines that do not tell; `tensorrt.builder` = native makes some do"
    return Coverage(ort.count_nodes(taken), None, why)


def _note_taken(folder: Path, taken: Mapping[str, Sequence[str]]) -> None:
    with explain_write_errors(folder):
        (folder / NODES_FILE).write_text(json.dumps(taken, indent=1), encoding="utf-8")


def _library() -> ModuleType:
    """Return TensorRT's module, which loads the library that the provider looks for."""
    ort.preload_cuda_libraries()
    try:
        return import_module("tensorrt")
    except ImportError:
        raise Unavailable(
            "TensorRT is not installed", hint='pip install "qconvert[tensorrt]"'
        ) from None


def probe(installed: Installed) -> Availability:
    """Say whether the TensorRT provider runs here, and first whether its libraries fit together."""
    if PACKAGE in installed.packages and (unfit := _unfit(installed)):
        return unfit
    missing = missing_requirement(installed, "tensorrt")
    if missing is not None:
        return missing
    version = _version(installed)
    if trouble := provider_error(PROVIDER):
        return Availability(False, False, version, trouble, 'pip install "qconvert[tensorrt]"')
    return Availability(True, True, version)


def _unfit(installed: Installed) -> Availability | None:
    runtime, found = installed.packages[PACKAGE], installed.library_version("tensorrt")
    wanted = linked_libraries(runtime)
    if wanted is None:
        reason, cure = f"onnxruntime-gpu {runtime} is too old", 'pip install "qconvert[tensorrt]"'
    elif not found:
        reason = (
            f"onnxruntime-gpu {runtime} needs TensorRT {wanted.tensorrt}, and none is installed"
        )
        cure = _install(wanted.cuda, wanted.tensorrt)
    elif major_minor(found)[0] != wanted.tensorrt:
        reason = f"onnxruntime-gpu {runtime} needs TensorRT {wanted.tensorrt}; found {found}"
        cure = _install(wanted.cuda, wanted.tensorrt)
    else:
        return None
    return Availability(False, False, _version(installed), reason, cure)


def _install(cuda: int, tensorrt: int) -> str:
    return f'pip install "tensorrt-cu{cuda}>={tensorrt},<{tensorrt + 1}"'


def _version(installed: Installed) -> str:
    found = installed.library_version("tensorrt")
    runtime = f"{PACKAGE} {installed.packages[PACKAGE]}"
    return f"{runtime}, TensorRT {found}" if found else runtime


def requirements() -> BackendRequirements:
    """Say what graphs TensorRT takes: all zero points 0, biases in float."""
    typed = graph_precision("int8", detect()) == "typed"
    return BackendRequirements(
        quantization_scheme("tensorrt"),
        ("fp32", "fp16", "bf16"),
        default_rest=DEFAULT_REST,
        strongly_typed=typed,
    )


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


def graph_precision(
    precision: Precision, installed: Installed, builder: str = "provider"
) -> Literal["typed", "float32"]:
    """Say which graph a build wants for a precision, before there is one.

    `typed` is a graph that carries the precision in its tensors. `float32` is one that has all but
    its integers in float32, and gets the precision by flags: FP32 for fp16 and bf16, Q/DQ with
    float32 scales and rest for int8. Which of the two a release takes is in the table of versions.
    Where nothing is installed, and for the native builder, it is the typed one.
    """
    runtime = _types(installed)
    weak = runtime is not None and runtime.flags and builder == "provider"
    return "float32" if weak and precision != "fp32" else "typed"


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model: an engine fits one GPU and one release."""
    installed = detect()
    chosen = read_settings(TensorrtSettings, spec, "tensorrt")
    gpu = dict(enumerate(installed.gpus)).get(chosen.device)
    profile = spec.profile
    return {
        "backend": "tensorrt",
        "precision": spec.precision,
        "rest": spec.rest or DEFAULT_REST,
        "profile": f"{profile.min_batch},{profile.opt_batch},{profile.max_batch}",
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        "tensorrt": installed.library_version("tensorrt"),
        "driver": installed.driver,
        "gpu": f"{gpu.name} {gpu.capability[0]}.{gpu.capability[1]}" if gpu else "",
        **settings_as_text(chosen, "timing_cache"),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph that the native builder cannot read; the provider takes what it can."""
    if read_settings(TensorrtSettings, spec, "tensorrt").builder == "native":
        nvinfer.parse_in_subprocess("tensorrt", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, heard: BuildProgressCallback) -> Engine:
    """Build an engine, and a small ONNX file that loads it without building again."""

    chosen, installed = read_settings(TensorrtSettings, spec, "tensorrt"), detect()
    kept = copy_graph(graph, folder)
    if chosen.cuda_graph:
        require_fixed_shapes(kept.inputs)
    if chosen.builder == "native":
        files, notes = build_native(kept, spec, heard)
    else:
        runtime = _types(installed)
        if runtime is None:
            raise Unavailable(
                "this onnxruntime-gpu and this TensorRT are not known to work together",
                hint="`qconvert doctor` says which release of TensorRT it needs",
            )
        files, notes = build_with_provider(kept, spec, runtime, heard)
    made_with = dict(cache_key(spec))
    return Engine("tensorrt", spec.precision, folder, GRAPH, files, made_with, notes=notes)


def open(engine: Engine) -> Session:
    """Load an engine through the provider, without building it again."""

    return load_engine(engine)


def load_spec(engine: Engine) -> LoadSpec:
    """Say how ONNX Runtime loads an engine."""
    return engine_load_spec(engine)


def triton_spec(engine: Engine) -> TritonSpec:
    """Say how Triton serves an engine: whoever built it, it is a plan that TensorRT loads."""
    made, chosen = engine.made_with, settings_of_build(engine.made_with)
    plans = [name for name in engine.files if name.endswith(".engine")]
    if chosen.allow_fallback or chosen.weight_stripped or len(plans) != 1:
        odd = "parts of it run elsewhere" if chosen.allow_fallback else "it has no weights inside"
        raise UsageError(
            f"Triton serves engines that are whole, and of `{engine.folder.name}` {odd}",
            hint="build it again without `allow-fallback` and `weight-stripped`",
        )
    least, best, most = (int(size) for size in made["profile"].split(","))
    notes = (f"the server needs TensorRT {made['tensorrt']} and a GPU like {made['gpu']}",)
    return TritonSpec("tensorrt_plan", plans[0], "GPU", (least, best, most), notes=notes)


def _types(installed: Installed) -> NetworkTypes | None:
    runtime, found = installed.packages.get(PACKAGE, ""), installed.library_version("tensorrt")
    return network_types(runtime, found) if runtime and found else None
