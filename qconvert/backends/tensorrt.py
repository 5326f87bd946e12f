"""The TensorRT backend: engines built by TensorRT itself or by ONNX Runtime's TensorRT provider.

The provider loads both, if it links this release of TensorRT; else TensorRT's own runtime loads
them. Building and loading need a GPU. Which options are used is decided without one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import onnx_ir as ir

from qconvert.backends import base, nvinfer, subprocess_worker, versions
from qconvert.backends.cuda import missing_requirement, require_fixed_shapes, tf32_notes
from qconvert.backends.nvinfer import CONTEXT, NativeBuildOptions
from qconvert.backends.system_probe import Installed, detect, provider_error
from qconvert.backends.versions import PACKAGE, find_release, loads_in_provider
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.formats import QuantizedFormat
from qconvert.core.pip_command import pip_install
from qconvert.core.scales import Grid
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.scheme import OperatorRule, Scheme
from qconvert.quantize.tensorrt_rules import TENSORRT_RULES
from qconvert.quantize.weight_only import weight_only_scheme

PROVIDER = "TensorrtExecutionProvider"
ENGINE, STRIPPED = "model.engine", "model.stripped.engine"
NODES_FILE = "nodes.json"  # the nodes that each provider runs: a loaded engine is one node
INSTALL = pip_install("tensorrt")

# The precision beside INT8 where a build does not set one.
DEFAULT_REST: RestPrecision = "fp16"
FIXED_SCALES = "TensorRT fixes the scales of INT8 when it builds, and computes none at run time"


def probe(installed: Installed) -> base.Availability:
    """Find out whether TensorRT works here: in ONNX Runtime's provider, else in its own runtime."""
    release, tensorrt = find_release(installed), installed.library_version("tensorrt")
    runtime = installed.packages.get(PACKAGE, "")
    version = ", ".join(
        filter(None, (runtime and f"{PACKAGE} {runtime}", tensorrt and f"TensorRT {tensorrt}"))
    )
    if runtime and release is None:
        return base.Availability(False, False, version, f"{PACKAGE} {runtime} is too old", INSTALL)
    newer = versions.numbers(tensorrt)[:1] > (release.tensorrt[:1] if release else ())
    if newer and installed.runtimes:
        return _probe_native(installed, f"{version}, in its own runtime")
    if release is not None and not loads_in_provider(installed):
        oldest = ".".join(map(str, release.tensorrt))
        problem = f"found {tensorrt}" if tensorrt else "none is installed"
        reason = f"{PACKAGE} {runtime} needs TensorRT {oldest}; {problem}"
        cure = f'pip install "{versions.tensorrt_requirement(release)}"'
        return base.Availability(False, False, version, reason, cure)
    if missing := missing_requirement(installed, "tensorrt"):
        return missing
    error, cure = provider_error(PROVIDER, INSTALL)
    return base.Availability(not error, not error, version, error, cure)


def _probe_native(installed: Installed, version: str) -> base.Availability:
    """Find out whether TensorRT builds, beside an ONNX Runtime that does not link it."""
    reason, cure = installed.driver_error, "install the NVIDIA driver; in a container, `--gpus all`"
    if not reason:
        cuda = versions.cuda_of_tensorrt(installed.packages)
        reason, cure = versions.why_too_old(installed, cuda)
    if not reason:
        job = "qconvert.backends.nvinfer:prove_job"
        reason, cure = subprocess_worker.why_it_fails(job, "tensorrt", product="TensorRT")
    return base.Availability(not reason, not reason, version, reason, cure if reason else "")


def weight_only_schemes(name: str, *others: str) -> dict[QuantizedFormat, Scheme]:
    """Return the schemes of integer weights, of products and of `others`, without zero points."""
    operators = ("MatMul", "Gemm", *others)
    return {
        "int8-weights": weight_only_scheme(name, Grid(8), operators, "onnx"),
        "int4-weights": weight_only_scheme(name, Grid(4), operators, "onnx"),
    }


def requirements() -> base.BackendRequirements:
    """Return the graphs that TensorRT accepts: all zero points 0, biases in float.

    Its own builder takes the precision from the types of the graph; the provider may not.
    """
    release = find_release(detect())
    return base.BackendRequirements(
        {
            "int8": quantization_scheme("tensorrt", TENSORRT_RULES),
            **weight_only_schemes("tensorrt"),
        },
        ("fp32", "fp16", "bf16"),
        default_rest=DEFAULT_REST,
        strongly_typed=release is None or not release.takes_flags,
        unsupported={"int8-dynamic": FIXED_SCALES},
    )


def quantization_scheme(name: str, rules: tuple[OperatorRule, ...]) -> Scheme:
    """Return the scheme of one of TensorRT's builders."""
    return Scheme(
        name,
        activations=Grid(8),
        weights=Grid(8),
        integer_bias=False,
        rules=rules,
        shared_scale=frozenset({"Concat"}),
    )


def cache_key(spec: base.BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model: engines fit one GPU and release."""
    installed = detect()
    settings = read_options(spec)
    return {
        "backend": "tensorrt",
        "precision": spec.precision,
        "rest": spec.rest or DEFAULT_REST,
        "profile": str(spec.profile),
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        "tensorrt": installed.library_version("tensorrt"),
        "cuda": ".".join(map(str, installed.cuda)),
        "gpu": str(installed.gpu(settings.device) or ""),
        **base.settings_as_text(settings, "timing_cache"),
    }


def require_readable(graph: Path, spec: base.BuildSpec) -> None:
    """Refuse a graph that the native builder cannot read; the provider claims what it supports."""
    settings, inputs = read_options(spec), onnx_io.inputs(onnx_io.load(graph))
    if settings.cuda_graph:
        require_fixed_shapes(inputs)
    if settings.builder == "native":
        nvinfer.require_parsable("tensorrt", graph, _only_gpu(settings.device))
    else:
        profile_options(spec.profile, inputs)


def build(
    graph: Path, spec: base.BuildSpec, folder: Path, progress: base.BuildProgressCallback
) -> base.Engine:
    """Build an engine in a child process, and a small ONNX file that loads it without a rebuild."""
    settings, installed = read_options(spec), detect()
    if not installed.library_version("tensorrt"):
        raise Unavailable("TensorRT is not installed", hint=INSTALL)
    model, graph_files = base.copy_graph(graph, folder)
    inputs = onnx_io.inputs(model)
    if settings.cuda_graph:
        require_fixed_shapes(inputs)
        if settings.weight_stripped or not loads_in_provider(installed):
            raise UsageError(
                "`tensorrt.cuda-graph` needs an engine that ONNX Runtime's provider loads",
                hint="leave out `cuda-graph`",
            )
    made_with = dict(cache_key(spec))
    timings = _timing_cache(settings, installed)
    if settings.builder == "native":
        options = NativeBuildOptions(
            inputs,
            (spec.profile,),
            settings.workspace,
            settings.level,
            settings.hardware_compatible,
            settings.weight_stripped,
            settings.use_tf32,
            timings,
        )
        output = folder / (STRIPPED if settings.weight_stripped else ENGINE)
        variables = _only_gpu(settings.device)
        nvinfer.build_and_wrap("tensorrt", model, output, options, PROVIDER, progress, variables)
        nodes = {PROVIDER: [f"{node.op_type} {node.name}" for node in model.graph]}
    else:
        made_with["flags"] = str(_takes_flags(installed))
        tensors = profiled_tensors(model)
        nodes = _build_in_provider(made_with, folder, tensors, timings, progress)
    files = engine_files(folder, settings, graph_files)
    if not files:
        raise QConvertError(
            "the TensorRT provider left no engine that loads without a rebuild",
            details=sorted(path.name for path in folder.iterdir()),
            hint="`--set tensorrt.builder=native` builds with TensorRT itself",
        )
    with base.explain_write_errors(folder):
        (folder / NODES_FILE).write_text(json.dumps(nodes, indent=1), encoding="utf-8")
    gpu = installed.gpu(settings.device) if settings.use_tf32 else None
    rest = (spec.rest or DEFAULT_REST) if spec.precision in base.INTEGER else spec.precision
    notes = (*fallback_notes(nodes), *tf32_notes("tensorrt", rest, gpu))
    return base.Engine(
        "tensorrt", spec.precision, folder, base.GRAPH, files, made_with, notes=notes
    )


def _build_in_provider(
    made_with: dict[str, str],
    folder: Path,
    tensors: Sequence[TensorSpec],
    timings: Path | None,
    progress: base.BuildProgressCallback,
) -> dict[str, list[str]]:
    """Let ONNX Runtime's provider build the engine; return the nodes that each provider runs."""
    made_with["graph"] = file_sha256(folder / base.GRAPH)[:12]
    engine = base.Engine("tensorrt", "fp32", folder, base.GRAPH, (), made_with)
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    spec = _load_spec(engine, build_options(engine, tensors, timings))
    if timings:
        timings.parent.mkdir(parents=True, exist_ok=True)
    progress("TensorRT builds the engine and reports no progress", None)
    nodes: dict[str, list[str]] = subprocess_worker.call(
        "qconvert.backends.ort:load_with_log",
        (folder / base.GRAPH).absolute(),
        replace(spec, config_entries={}),
        product="ONNX Runtime's TensorRT provider",
        report=progress,
        # The provider has no option for it; CUDA's libraries read this.
        variables={} if settings.use_tf32 else {"NVIDIA_TF32_OVERRIDE": "0"},
    )
    others = [name for provider, names in nodes.items() if provider != PROVIDER for name in names]
    if others and not settings.allow_fallback:
        raise QConvertError(
            f"the TensorRT provider does not run {others[0]}",
            details=others[1:5],
            hint="`--allow-fallback` lets other providers run such nodes",
        )
    return nodes


def open(engine: base.Engine) -> base.Session:
    """Load an engine without a rebuild: with the TensorRT provider, else with TensorRT's runtime."""
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    path, weights = engine.folder / engine.files[0], engine.folder / engine.graph
    if settings.weight_stripped or not loads_in_provider(detect()):
        from qconvert.backends import native_session

        plan = engine.folder / next(name for name in engine.files if name.endswith(".engine"))
        outputs = onnx_io.outputs(onnx_io.load(weights))
        return native_session.open_session(
            plan, outputs, settings.device, weights if settings.weight_stripped else None
        )
    from qconvert.backends import cuda_runtime, ort

    trt = nvinfer.import_tensorrt("tensorrt")
    stream = cuda_runtime.make_stream(settings.device)
    session = ort.create_session(path, load_spec(engine), stream=stream)

    def coverage() -> base.Coverage:
        if settings.builder == "native":
            loaded = nvinfer.open_engine(trt, engine.folder / ENGINE)
            if (counts := nvinfer.layer_precisions(trt, loaded)) is not None:
                return base.Coverage({PROVIDER: sum(counts.values())}, counts)
        nodes = json.loads((engine.folder / NODES_FILE).read_text(encoding="utf-8"))
        counts = {provider: len(names) for provider, names in nodes.items()}
        reason = "the provider's engines do not report it; those of `tensorrt.builder` = native do"
        return base.Coverage(counts, None, reason)

    return ort.OrtSession(session, coverage, "cuda", settings.device, settings.cuda_graph, stream)


def load_spec(engine: base.Engine) -> base.LoadSpec:
    """Return how ONNX Runtime loads an engine."""
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    if settings.weight_stripped:
        raise UsageError(
            f"ONNX Runtime cannot load `{engine.folder.name}`: the engine has no weights",
            hint="build it again without `weight-stripped`",
        )
    if versions.numbers(engine.made_with["tensorrt"])[:1] > versions.NEWEST.tensorrt[:1]:
        raise UsageError(
            f"ONNX Runtime cannot load `{engine.folder.name}`: it has TensorRT "
            f"{versions.NEWEST.tensorrt[0]}, not {engine.made_with['tensorrt']}",
            hint="package it for Triton: `--format triton`",
        )
    return _load_spec(engine, load_options(engine))


def triton_spec(engine: base.Engine) -> base.TritonSpec:
    """Return how Triton serves an engine: as a plan that TensorRT loads, whoever built it."""
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    plans = [name for name in engine.files if name.endswith(".engine")]
    if settings.allow_fallback or settings.weight_stripped or len(plans) != 1:
        why = (
            "runs partly on other providers"
            if settings.allow_fallback
            else "does not contain its weights"
        )
        raise UsageError(
            f"Triton needs one complete engine; `{engine.folder.name}` {why}",
            hint="build it again without `allow-fallback` and `weight-stripped`",
        )
    minimum, optimum, maximum = map(int, engine.made_with["profile"].split(","))
    version, gpu = engine.made_with["tensorrt"], engine.made_with["gpu"]
    return base.TritonSpec(
        "tensorrt_plan",
        plans[0],
        "GPU",
        (minimum, optimum, maximum),
        notes=(f"the server needs TensorRT {version} and a GPU like {gpu}",),
    )


def fallback_notes(nodes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a note for every other provider that runs nodes."""
    return tuple(
        f"{'1 node runs' if len(names) == 1 else f'{len(names)} nodes run'} on {provider}: "
        f"{', '.join(names)}"
        for provider, names in sorted(nodes.items())
        if provider != PROVIDER and names
    )


def _only_gpu(device: int) -> dict[str, str]:
    """Return the environment in which one GPU is the first: TensorRT builds on the current one."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    name = visible[device] if device < len(visible) else str(device)
    return {"CUDA_VISIBLE_DEVICES": name}


def _timing_cache(settings: TensorrtConfig, installed: Installed) -> Path | None:
    """Return the file of the native builder's timings, which fit one GPU and release.

    The provider names its own file after the compute capability, in the same folder.
    """
    if not settings.timing_cache:
        return None
    version, gpu = installed.library_version("tensorrt"), installed.gpu(settings.device)
    file = f"native_sm{''.join(map(str, gpu.capability if gpu else ()))}.timing"
    return Path(settings.timing_cache).absolute() / f"tensorrt-{version}" / file


# --- options of the provider: switches are `True` and `False`, the only words its binding takes ---


def read_options(spec: base.BuildSpec) -> TensorrtConfig:
    """Read the settings of a build."""
    settings = base.read_settings(TensorrtConfig, spec, "tensorrt")
    if settings.builder == "native" and settings.allow_fallback:
        raise UsageError(
            "`tensorrt`: `allow-fallback` has no effect with the native builder",
            hint="add `--set tensorrt.builder=provider`; for `cuda` alone, `--set cuda.allow-fallback=true`",
        )
    if settings.builder == "provider" and settings.weight_stripped:
        raise UsageError(
            "`tensorrt`: the provider looks for the weights of a stripped engine in other files",
            hint="leave out `weight-stripped`, or add `--set tensorrt.builder=native`",
        )
    return settings


def load_options(engine: base.Engine) -> dict[str, str]:
    """Return the options with which the provider builds an engine, and loads it without a rebuild.

    The provider writes a context model, which names the engine and loads it. It can do so for
    whole graphs only; if other providers may take nodes, a cache of engines in the same folder
    takes its place. The names in the cache tell the options of the build: loading needs all of them.
    """
    settings, made_with = base.read_settings(TensorrtConfig, engine, "tensorrt"), engine.made_with
    options: dict[str, bool | int | str] = {"device_id": settings.device}
    if settings.cuda_graph:
        options["trt_cuda_graph_enable"] = True
    if settings.builder == "provider":
        options["trt_builder_optimization_level"] = settings.level
        if made_with["flags"] == "True":
            options |= precision_flags(made_with["precision"], made_with["rest"])
        if settings.workspace:
            options["trt_max_workspace_size"] = settings.workspace * 2**20
        if settings.hardware_compatible:
            options["trt_engine_hw_compatible"] = True
    if settings.allow_fallback:
        options["trt_engine_cache_path"] = str(engine.folder.absolute())
        options |= _cache_options(engine)
    return {name: str(value) for name, value in options.items()}


def build_options(
    engine: base.Engine, tensors: Sequence[TensorSpec], timings: Path | None = None
) -> dict[str, str]:
    """Return the options of `load_options` and those that only a build needs.

    Profiles are among these: the provider compares them with those of every cached engine, and
    rebuilds one that has fewer inputs.
    """
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    profile = base.Profile(*map(int, engine.made_with["profile"].split(",")))
    options: dict[str, bool | int | str] = {**profile_options(profile, tensors)}
    if timings:
        options["trt_timing_cache_enable"] = True
        options["trt_timing_cache_path"] = str(timings.parent)
    if not settings.allow_fallback:
        # Without a cache path, engines lie beside the context model: it can name no other folder.
        options |= _cache_options(engine)
        options["trt_dump_ep_context_model"] = True
        options["trt_ep_context_file_path"] = str(engine.folder.absolute() / CONTEXT)
        options["trt_ep_context_embed_mode"] = 0
    return load_options(engine) | {name: str(value) for name, value in options.items()}


def _cache_options(engine: base.Engine) -> dict[str, bool | str]:
    """Return what makes the provider store engines; its own names tell nothing of the weights."""
    prefix = f"model-{engine.made_with['graph']}"
    return {"trt_engine_cache_enable": True, "trt_engine_cache_prefix": prefix}


def precision_flags(precision: str, rest: str) -> dict[str, bool]:
    """Return the precisions of a weakly typed network, whose graph is in float32."""
    # INT8 without a second flag would leave all other layers in float32.
    precisions = (rest, "int8") if precision in base.INTEGER else (precision,)
    flags = {f"trt_{name}_enable": True for name in precisions if name != "fp32"}
    if "trt_fp16_enable" in flags:
        flags["trt_layer_norm_fp32_fallback"] = True  # sums of squares overflow in fp16
    return flags


def profiled_tensors(model: ir.Model) -> list[TensorSpec]:
    """Return the tensors that an engine may take: all, as other providers may take nodes between."""
    values = (
        value for node in model.graph for value in node.outputs if value.shape and value.dtype
    )
    inner = (onnx_io.tensor_spec(value) for value in values)
    readable = (spec for spec in inner if not spec.has_dynamic_shape and not {*":,"} & {*spec.name})
    return [*onnx_io.inputs(model), *readable]


def profile_options(profile: base.Profile, tensors: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the minimum, optimal and maximum shape of every tensor with a dynamic batch.

    Unless all such inputs of an engine have all three, the provider rebuilds it for every new shape.
    """
    shapes: dict[str, list[str]] = {}
    for spec in nvinfer.dynamic_inputs(tensors):
        if ":" in spec.name or "," in spec.name:
            raise UsageError(
                f"the TensorRT provider cannot read a profile for the input `{spec.name}`: it "
                "separates names with `:` and `,`",
                hint="rename the input, or leave out `tensorrt.builder` = provider",
            )
        for name, batch in zip(("min", "opt", "max"), astuple(profile), strict=True):
            sizes = "x".join(map(str, (batch, *spec.shape[1:])))
            shapes.setdefault(f"trt_profile_{name}_shapes", []).append(f"{spec.name}:{sizes}")
    return {option: ",".join(texts) for option, texts in shapes.items()}


def _takes_flags(installed: Installed) -> bool:
    release = find_release(installed)
    if release is None or not loads_in_provider(installed):
        raise Unavailable(
            "this onnxruntime-gpu and this TensorRT do not work together",
            hint="leave out `tensorrt.builder` = provider; `qconvert doctor` shows the release it needs",
        )
    return release.takes_flags


def _load_spec(engine: base.Engine, options: Mapping[str, str]) -> base.LoadSpec:
    """Return how ONNX Runtime builds or loads an engine with these options of the provider.

    ONNX Runtime's own rewrites would split Q/DQ pairs before TensorRT sees them.
    """
    settings = base.read_settings(TensorrtConfig, engine, "tensorrt")
    cuda = {"device_id": str(settings.device), "use_tf32": str(int(settings.use_tf32))}
    fallbacks: tuple[tuple[str, dict[str, str]], ...] = (
        ("CUDAExecutionProvider", cuda),
        ("CPUExecutionProvider", {}),
    )
    return base.LoadSpec(
        providers=((PROVIDER, options), *(fallbacks if settings.allow_fallback else ())),
        packages=("onnxruntime-gpu[cuda,cudnn]", f"tensorrt-cu13=={engine.made_with['tensorrt']}"),
        config_entries={} if settings.allow_fallback else {"session.disable_cpu_ep_fallback": "1"},
        modules=("tensorrt",),
        optimize_graph=False,
        cuda_graph=settings.cuda_graph,
    )


def engine_files(
    folder: Path, settings: TensorrtConfig, graph_files: Sequence[str]
) -> tuple[str, ...]:
    """Return the files loaded at run time, the one to open first; none if they are incomplete.

    Weight-stripped engines take their weights from the graph, which is then loaded as well.
    """
    suffixes = (".stripped.engine",) if settings.weight_stripped else (".engine", ".profile")
    engines = sorted(path.name for path in folder.iterdir() if path.name.endswith(suffixes))
    if engines and settings.allow_fallback:
        return (*graph_files, *engines)
    if not engines or not (folder / CONTEXT).is_file():
        return ()
    return (CONTEXT, *engines, *(graph_files if settings.weight_stripped else ()))
