"""The CUDA backend: ONNX Runtime's CUDA provider on the ONNX file itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qconvert.backends.base import (
    GRAPH,
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Session,
    TritonSpec,
    copy_graph,
    read_settings,
    settings_as_text,
)
from qconvert.backends.system_probe import Installed, detect, provider_error
from qconvert.core import onnx_io
from qconvert.core.config import CudaConfig
from qconvert.core.errors import UsageError
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import TensorSpec

PROVIDER = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"


def probe(installed: Installed) -> Availability:
    """Find out whether the CUDA provider runs here."""
    if missing := missing_requirement(installed, "cuda"):
        return missing
    version = f"{PACKAGE} {installed.packages[PACKAGE]}, {installed.driver}"
    error = provider_error(PROVIDER)
    cure = 'pip install "onnxruntime-gpu[cuda,cudnn]"' if error else ""
    return Availability(not error, not error, version, error, cure)


def missing_requirement(installed: Installed, extra: str) -> Availability | None:
    """Return what this machine lacks for the providers of onnxruntime-gpu, or None."""
    if PACKAGE not in installed.packages:
        others = [name for name in installed.runtimes if name != PACKAGE]
        uninstall = f"pip uninstall -y {' '.join(others)} && " if others else ""
        cure = uninstall + pip_install(extra)
        return Availability(False, False, reason=f"{PACKAGE} is not installed", cure=cure)
    if installed.driver_error:
        version = f"{PACKAGE} {installed.packages[PACKAGE]}"
        cure = "install the NVIDIA driver; in a container, start it with `--gpus all`"
        return Availability(False, False, version, installed.driver_error, cure)
    return None


def requirements() -> BackendRequirements:
    """Return the graphs that the CUDA provider accepts: float graphs."""
    reason = "ONNX Runtime computes INT8 on CUDA in float, and quantizes on top of it"
    return BackendRequirements(None, unsupported={"int8": reason})


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model: little, as nothing is compiled."""
    return {
        "backend": "cuda",
        "precision": spec.precision,
        "runtime": f"{PACKAGE} {detect().packages.get(PACKAGE, '')}".strip(),
        **settings_as_text(read_settings(CudaConfig, spec, "cuda")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Accept the graph: only a machine with a GPU knows which kernels there are."""


def build(graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback) -> Engine:
    """Copy the model, which the provider loads as it is, and record the device; needs no GPU."""
    settings = read_settings(CudaConfig, spec, "cuda")
    progress("copying the model", None)
    model, files = copy_graph(graph, folder)
    if settings.cuda_graph:
        require_fixed_shapes(onnx_io.inputs(model))
    gpus = detect().gpus
    gpu = gpus[settings.device].name if settings.device < len(gpus) else "none here"
    made_with = {**cache_key(spec), "gpu": gpu}
    return Engine("cuda", spec.precision, folder, GRAPH, files, made_with)


def open(engine: Engine) -> Session:
    """Load an engine, all of it on the GPU unless `allow-fallback` is set.

    Follows ONNX Runtime's documentation of I/O binding and CUDA graphs; it runs only on a GPU.
    """
    from qconvert.backends import ort

    path, spec = engine.folder / engine.files[0], load_spec(engine)
    ort.preload_cuda_libraries()
    session = ort.create_session(path, spec)

    def coverage() -> Coverage:
        nodes = ort.nodes_by_provider(session)
        if set(nodes) == {PROVIDER}:
            return ort.kernel_coverage(path, spec)
        counts = {provider: len(names) for provider, names in nodes.items()}
        return Coverage(counts, None, "nodes run on more than one provider")

    settings = read_settings(CudaConfig, engine, "cuda")
    return ort.OrtSession(session, coverage, "cuda", settings.device, settings.cuda_graph)


def load_spec(engine: Engine) -> LoadSpec:
    """Return how ONNX Runtime loads an engine."""
    settings = read_settings(CudaConfig, engine, "cuda")
    options = {"device_id": str(settings.device)}
    if settings.cuda_graph:
        options["enable_cuda_graph"] = "1"
    fallbacks = ["CPUExecutionProvider"] if settings.allow_fallback else []
    return LoadSpec(
        providers=((PROVIDER, options), *((name, {}) for name in fallbacks)),
        packages=(f"{PACKAGE}[cuda,cudnn]",),
        config_entries={} if fallbacks else {"session.disable_cpu_ep_fallback": "1"},
        cuda_graph=settings.cuda_graph,
    )


def triton_spec(engine: Engine) -> TritonSpec:
    """Return how Triton serves an engine: its ONNX Runtime uses CUDA wherever there is a GPU."""
    return TritonSpec("onnxruntime_onnx", engine.graph, "GPU")


def require_fixed_shapes(inputs: Sequence[TensorSpec]) -> None:
    """Refuse a CUDA graph, a recording of one run, for inputs of varying shape."""
    for spec in inputs:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(
                f"a CUDA graph needs fixed shapes, but the model takes `{spec}`",
                hint="export with `--batch 1`, or leave out `cuda-graph`",
            )
