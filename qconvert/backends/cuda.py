"""ONNX Runtime's CUDA provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    read_settings,
    settings_as_text,
)
from qconvert.backends.engine_folder import GRAPH, copy_graph
from qconvert.backends.system_probe import Installed, detect, provider_error
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec

PROVIDER = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"
DRIVER = "install the NVIDIA driver; in a container, start it with `--gpus all`"


def probe(installed: Installed) -> Availability:
    """Say whether the CUDA provider runs here."""
    missing = missing_requirement(installed, "cuda")
    if missing is not None:
        return missing
    version = f"{PACKAGE} {installed.packages[PACKAGE]}, {installed.driver}"
    if trouble := provider_error(PROVIDER):
        return Availability(
            False, False, version, trouble, 'pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
    return Availability(True, True, version)


def missing_requirement(installed: Installed, extra: str) -> Availability | None:
    """Say what every provider of onnxruntime-gpu needs and this machine lacks, if anything."""
    if PACKAGE not in installed.packages:
        others = [name for name in installed.runtimes if name != PACKAGE]
        first = f"pip uninstall -y {' '.join(others)} && " if others else ""
        reason = f"{PACKAGE} is not installed"
        cure = f'{first}pip install "qconvert[{extra}]"'
        return Availability(False, False, reason=reason, cure=cure)
    version = f"{PACKAGE} {installed.packages[PACKAGE]}"
    if installed.driver_error:
        return Availability(False, False, version, installed.driver_error, DRIVER)
    return None


def requirements() -> BackendRequirements:
    """Say what graphs the CUDA provider takes."""
    why = "ONNX Runtime computes INT8 on CUDA in float, with the rounding as extra work"
    return BackendRequirements(None, unsupported={"int8": why})


@dataclass(frozen=True)
class CudaSettings:
    """What a build for CUDA can be told."""

    device: int = 0
    cuda_graph: bool = False
    allow_fallback: bool = False


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model: little, as the engine is the model."""
    installed = detect()
    return {
        "backend": "cuda",
        "precision": spec.precision,
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        **settings_as_text(read_settings(CudaSettings, spec, "cuda")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Take it: which kernels there are is known only where there is a GPU."""


def build(graph: Path, spec: BuildSpec, folder: Path, heard: BuildProgressCallback) -> Engine:
    """Copy the model, which is what the CUDA provider loads, and note the device.

    Nothing is compiled ahead, so this needs no GPU.
    """
    chosen = read_settings(CudaSettings, spec, "cuda")
    heard("copying the model", None)
    kept = copy_graph(graph, folder)
    if chosen.cuda_graph:
        require_fixed_shapes(kept.inputs)
    names = {str(number): gpu.name for number, gpu in enumerate(detect().gpus)}
    gpu = names.get(str(chosen.device), "none here")
    made_with = {**cache_key(spec), "gpu": gpu}
    return Engine("cuda", spec.precision, folder, GRAPH, kept.files, made_with)


def open(engine: Engine) -> Session:
    """Load an engine, all of it on the GPU unless `allow-fallback` was set.

    This relies on ONNX Runtime's documents for I/O binding and CUDA graphs; it runs only where
    there is a GPU.
    """
    from qconvert.backends import ort

    path, found = engine.folder / engine.files[0], load_spec(engine)
    entries, providers = found.config_entries, found.provider_list
    ort.preload_cuda_libraries()
    session = ort.create_session(path, ort.session_options(entries=entries), providers)

    def covered() -> Coverage:
        taken = ort.nodes_by_provider(session)
        if set(taken) == {PROVIDER}:
            return ort.kernel_coverage(path, ort.session_options(entries=entries), providers)
        return Coverage(ort.count_nodes(taken), None, "nodes run on more than one provider")

    device = int(engine.made_with["device"])
    return ort.OrtSession(session, covered, "cuda", device, found.cuda_graph)


def load_spec(engine: Engine) -> LoadSpec:
    """Say how ONNX Runtime loads an engine: all of it on the GPU unless a fallback was allowed."""
    made = engine.made_with
    captured, fallback = made["cuda-graph"] == "True", made["allow-fallback"] == "True"
    own = {"device_id": made["device"], **({"enable_cuda_graph": "1"} if captured else {})}
    return LoadSpec(
        providers=((PROVIDER, own), *((("CPUExecutionProvider", {}),) if fallback else ())),
        packages=(f"{PACKAGE}[cuda,cudnn]",),
        config_entries={} if fallback else {"session.disable_cpu_ep_fallback": "1"},
        cuda_graph=captured,
    )


def triton_spec(engine: Engine) -> TritonSpec:
    """Say how Triton serves an engine: its ONNX Runtime takes CUDA wherever there is a GPU."""
    return TritonSpec("onnxruntime_onnx", engine.graph, "GPU")


def require_fixed_shapes(inputs: Sequence[TensorSpec]) -> None:
    """Refuse a CUDA graph, which is one recorded run, for inputs whose shapes change."""
    for spec in inputs:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(
                f"a CUDA graph needs fixed shapes, the model takes `{spec}`",
                hint="export with `--batch 1`, or leave out `cuda-graph`",
            )
