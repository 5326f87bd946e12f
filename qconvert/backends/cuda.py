"""The CUDA backend: ONNX Runtime's CUDA provider on the ONNX file itself."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from qconvert.backends import base
from qconvert.backends.system_probe import Gpu, Installed, detect, provider_error
from qconvert.backends.versions import PACKAGE, find_release, numbers, why_too_old
from qconvert.core import onnx_io
from qconvert.core.config import CudaConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import Precision
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import TensorSpec
from qconvert.graph.fp16.convert import BFLOAT16_MIN_OPSET

PROVIDER = "CUDAExecutionProvider"
TF32_CAPABILITY = (8, 0)
ALLOW_FALLBACK = "`--set cuda.allow-fallback=true`"

# The kernels of a release of onnxruntime-gpu, read from its registry: an operator, the opsets for
# which it is registered, and the precisions by type constraint. `make gpu-lab-kernels` writes it.
KERNELS = Path(__file__).with_name("cuda_kernels.txt")

# From opset 22 on, many operators have no CUDA kernel because their schemas, which gained types
# alone, got a new version. 21 is the newest opset before.
LOWER_OPSET = 21

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FLOATS = {dtype: name for name, dtype in DTYPES.items()}


def probe(installed: Installed) -> base.Availability:
    """Find out whether the CUDA provider runs here."""
    if missing := missing_requirement(installed, "cuda"):
        return missing
    version = f"{PACKAGE} {installed.packages[PACKAGE]}, driver {installed.driver}"
    error, cure = provider_error(PROVIDER, 'pip install "onnxruntime-gpu[cuda,cudnn]"')
    return base.Availability(not error, not error, version, error, cure)


def missing_requirement(installed: Installed, extra: str) -> base.Availability | None:
    """Return what this machine lacks for the providers of onnxruntime-gpu, or None."""
    if PACKAGE not in installed.packages:
        others = [name for name in installed.runtimes if name != PACKAGE]
        uninstall = f"pip uninstall -y {' '.join(others)} && " if others else ""
        cure = uninstall + pip_install(extra)
        return base.Availability(False, False, reason=f"{PACKAGE} is not installed", cure=cure)
    version = f"{PACKAGE} {installed.packages[PACKAGE]}"
    if installed.driver_error:
        cure = "install the NVIDIA driver; in a container, start it with `--gpus all`"
        return base.Availability(False, False, version, installed.driver_error, cure)
    release = find_release(installed)
    reason, cure = why_too_old(installed, release.cuda) if release else ("", "")
    return base.Availability(False, False, version, reason, cure) if reason else None


def requirements() -> base.BackendRequirements:
    """Return the graphs that the CUDA provider accepts: float graphs."""
    reason = "ONNX Runtime computes INT8 on CUDA in float, and quantizes on top of it"
    dynamic = "ONNX Runtime has no kernel on CUDA that quantizes activations at run time"
    untried = "integer weights have not been run on CUDA yet"
    unsupported = {"int8": reason, "int8-dynamic": dynamic}
    unsupported |= {"int8-weights": untried, "int4-weights": untried}
    return base.BackendRequirements({}, unsupported=unsupported)


def cache_key(spec: base.BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model: little, as nothing is compiled."""
    return {
        "backend": "cuda",
        "precision": spec.precision,
        "runtime": f"{PACKAGE} {detect().packages.get(PACKAGE, '')}".strip(),
        **base.settings_as_text(base.read_settings(CudaConfig, spec, "cuda")),
    }


def require_readable(graph: Path, spec: base.BuildSpec) -> None:
    """Refuse a graph with operators that have no CUDA kernel in the precision of `spec`.

    Another release than that of the table may have other kernels: it tells when it loads the engine.
    """
    installed = numbers(detect().packages.get(PACKAGE, ""))[:2]
    tabulated = numbers(KERNELS.read_text(encoding="utf-8").split()[2])[:2]
    settings, model = base.read_settings(CudaConfig, spec, "cuda"), onnx_io.load(graph)
    if settings.cuda_graph:
        require_fixed_shapes(onnx_io.inputs(model))
    if settings.allow_fallback or installed not in ((), tabulated):
        return
    if missing := best_opset(model, spec.precision)[1]:
        raise UsageError(
            f"ONNX Runtime has no CUDA kernel in {spec.precision} for {missing[0]}",
            details=missing[1:5],
            hint=f"use another precision, or run such nodes on the CPU: {ALLOW_FALLBACK}",
        )


def build(
    graph: Path, spec: base.BuildSpec, folder: Path, progress: base.BuildProgressCallback
) -> base.Engine:
    """Copy the model, which the provider loads as it is, and record the device; needs no GPU."""
    settings = base.read_settings(CudaConfig, spec, "cuda")
    progress("copying the model", None)
    model, files = base.copy_graph(graph, folder)
    if settings.cuda_graph:
        require_fixed_shapes(onnx_io.inputs(model))
    gpu = detect().gpu(settings.device)
    notes = list(tf32_notes("cuda", spec.precision, gpu if settings.use_tf32 else None))
    opset = model.opset_imports.get("", 0)
    if (lower := best_opset(model, "fp32")[0]) < opset and spec.precision != "bf16":
        model.opset_imports[""] = lower
        with base.explain_write_errors(folder):
            onnx_io.save(model, folder / base.GRAPH)
        files = tuple(file.name for file in onnx_io.model_files(folder / base.GRAPH))
        notes.append(f"stored with opset {lower}: CUDA has no kernels for some nodes of {opset}")
    made_with = {**cache_key(spec), "gpu": gpu.name if gpu else "none here"}
    return base.Engine(
        "cuda", spec.precision, folder, base.GRAPH, files, made_with, notes=tuple(notes)
    )


def tf32_notes(backend: str, precision: str, gpu: Gpu | None) -> tuple[str, ...]:
    """Return what float32 layers compute with, if that is TF32 on this GPU."""
    if precision != "fp32" or gpu is None or gpu.capability < TF32_CAPABILITY:
        return ()
    return (
        "convolutions and matrix products of fp32 compute in TF32, with 10-bit mantissas: "
        f"`--set {backend}.use-tf32=false` keeps all 23 bits",
    )


def open(engine: base.Engine) -> base.Session:
    """Load an engine; unless `allow-fallback` is set, the CPU runs arithmetic on shapes alone.

    ONNX Runtime leaves such arithmetic on the CPU on purpose: the sizes are needed there.
    """
    from qconvert.backends import cuda_runtime, ort, ort_coverage

    path, spec = engine.folder / engine.files[0], load_spec(engine)
    settings = base.read_settings(CudaConfig, engine, "cuda")
    stream = cuda_runtime.make_stream(settings.device)
    session = ort.create_session(path, spec, stream=stream)
    nodes = ort.nodes_by_provider(session)
    others = [name for provider, names in nodes.items() if provider != PROVIDER for name in names]
    if others and not settings.allow_fallback:
        # The names of nodes are those at this level, when ONNX Runtime chooses the providers.
        graph = ort_coverage.optimized_graph(path, spec, "ORT_ENABLE_BASIC")
        shape_nodes = {label(node) for node in graph} - nodes_that_read_values(graph)
        if computing := [name for name in others if name not in shape_nodes]:
            raise QConvertError(
                f"the CPU would run {computing[0]}, for which CUDA has no kernel",
                details=computing[1:5],
                hint=f"use another precision, or accept it: {ALLOW_FALLBACK}",
            )

    def coverage() -> base.Coverage:
        return ort_coverage.kernel_coverage(path, spec, nodes)

    return ort.OrtSession(session, coverage, "cuda", settings.device, settings.cuda_graph, stream)


def label(node: ir.Node) -> str:
    """Return the operator and name of a node."""
    return f"{node.op_type} {node.name or ''}".strip()


def nodes_that_read_values(graph: ir.Graph) -> set[str]:
    """Return the nodes whose outputs depend on what the inputs hold, not on their shapes alone."""
    values: set[ir.Value | None] = set(graph.inputs)
    labels = set()
    for node in graph:  # sorted
        if node.op_type not in ("Shape", "Size") and not values.isdisjoint(node.inputs):
            values.update(node.outputs)
            labels.add(label(node))
    return labels


def best_opset(model: ir.Model, precision: Precision) -> tuple[int, list[str]]:
    """Return the opset in which CUDA has the most kernels for a model, and the nodes without one.

    The model's own, or 21 if that is lower and the nodes are the same in it. float32 tensors are
    taken to have `precision`.
    """
    opset = model.opset_imports.get("", 0)
    if precision == "bf16":
        # The conversion refuses a lower opset, with its own hint.
        opset = max(opset, BFLOAT16_MIN_OPSET)
    missing = nodes_without_kernel(model, precision, opset)
    if missing and opset > LOWER_OPSET:
        lower = nodes_without_kernel(model, precision, LOWER_OPSET)
        if len(lower) < len(missing) and _is_valid(model, LOWER_OPSET):
            return LOWER_OPSET, lower
    return opset, missing


def nodes_without_kernel(model: ir.Model, precision: Precision, opset: int) -> list[str]:
    """Return the nodes for which CUDA has no kernel if all float32 tensors have `precision`.

    Arithmetic on shapes needs none.
    """
    missing = []
    computing = nodes_that_read_values(model.graph)
    for node in model.graph:
        if node.domain or label(node) not in computing:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            missing.append(f"{label(node)}, which opset {opset} does not have")
            continue
        if not _has_kernel(node, schema, precision):
            missing.append(f"{label(node)} (opset {opset})")
    return missing


def _has_kernel(node: ir.Node, schema: onnx.defs.OpSchema, precision: Precision) -> bool:
    """Whether CUDA has a kernel for the version of an operator and the types of a node.

    A kernel that is registered without a last opset fits the version of its first opset alone. An
    operator without any kernel that is a function of others is replaced by these.
    """
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    types: dict[str, str] = {}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for value, formal in zip(values, formals, strict=False):
            dtype = value.dtype if value is not None else None
            if dtype not in FLOATS or formal.type_str not in allowed:
                continue
            name = precision if dtype is ir.DataType.FLOAT else FLOATS[dtype]
            if f"tensor({DTYPES[name].name.lower()})" not in allowed[formal.type_str]:
                return False
            types[formal.type_str] = name
    since = schema.since_version
    fitting = [
        constraints
        for first, last, constraints in kernels()[node.op_type]
        if first == since or first < since <= last
    ]
    if not fitting:
        return any(getattr(schema, f"has_{kind}function") for kind in ("", "context_dependent_"))
    return any(
        all(name in constraints.get(key, (name,)) for key, name in types.items())
        for constraints in fitting
    )


@cache
def kernels() -> Mapping[str, Sequence[tuple[int, int, Mapping[str, Sequence[str]]]]]:
    """Return the first and last opset and the precisions of the kernels of each operator.

    The last opset is 0 for a kernel that fits the version of its first opset alone.
    """
    table: dict[str, list[tuple[int, int, Mapping[str, Sequence[str]]]]] = defaultdict(list)
    for line in KERNELS.read_text(encoding="utf-8").splitlines()[1:]:
        operator, opsets, *columns = line.split()
        first, _, last = opsets.partition("-")
        pairs = (column.partition("=") for column in columns)
        constraints = {name: names.split(",") for name, _, names in pairs}
        table[operator].append((int(first), int(last or 0), constraints))
    return table


def _is_valid(model: ir.Model, opset: int) -> bool:
    """Whether the nodes of a model have the same attributes and types in another opset."""
    if onnx_io.weight_bytes(model) >= onnx_io.SINGLE_FILE_BYTES:
        return False  # it cannot be checked
    model = model.clone()
    model.opset_imports[""] = opset
    try:
        onnx.checker.check_model(onnx_io.serialize(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def load_spec(engine: base.Engine) -> base.LoadSpec:
    """Return how ONNX Runtime loads an engine."""
    settings = base.read_settings(CudaConfig, engine, "cuda")
    options = {"device_id": str(settings.device)}
    if settings.cuda_graph:
        options["enable_cuda_graph"] = "1"
    if settings.prefer_nhwc:
        options["prefer_nhwc"] = "1"
    if not settings.use_tf32:
        options["use_tf32"] = "0"
    if settings.gpu_mem_limit:
        options["gpu_mem_limit"] = str(settings.gpu_mem_limit * 2**20)
    return base.LoadSpec(
        providers=((PROVIDER, options),),
        packages=(f"{PACKAGE}[cuda,cudnn]",),
        cuda_graph=settings.cuda_graph,
    )


def triton_spec(engine: base.Engine) -> base.TritonSpec:
    """Return how Triton serves an engine: its ONNX Runtime uses CUDA wherever there is a GPU."""
    return base.TritonSpec("onnxruntime_onnx", engine.graph, "GPU")


def require_fixed_shapes(inputs: Sequence[TensorSpec]) -> None:
    """Refuse a CUDA graph, a recording of one run, for inputs of varying shape."""
    for spec in inputs:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(
                f"a CUDA graph needs fixed shapes, but the model takes `{spec}`",
                hint="export with `--batch 1`, or leave out `cuda-graph`",
            )
