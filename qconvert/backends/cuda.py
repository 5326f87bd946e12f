"""ONNX Runtime's CUDA provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends.base import (
    Availability,
    BuildSpec,
    Coverage,
    Engine,
    Heard,
    Session,
    Wants,
)
from qconvert.backends.folder import GRAPH, keep
from qconvert.backends.installed import Installed, look
from qconvert.backends.outside import Loading, Served
from qconvert.backends.settings import settings, told
from qconvert.backends.trial import why_not
from qconvert.errors import UsageError
from qconvert.feeds import TensorSpec

PROVIDER = "CUDAExecutionProvider"
PACKAGE = "onnxruntime-gpu"
DRIVER = "install the NVIDIA driver; in a container, start it with `--gpus all`"


def probe(installed: Installed) -> Availability:
    """Say whether the CUDA provider runs here."""
    missing = lacking(installed, "cuda")
    if missing is not None:
        return missing
    version = f"{PACKAGE} {installed.packages[PACKAGE]}, {installed.driver}"
    if trouble := why_not(PROVIDER):
        return Availability(
            False, False, version, trouble, 'pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
    return Availability(True, True, version)


def lacking(installed: Installed, extra: str) -> Availability | None:
    """Say what every provider of onnxruntime-gpu needs and this machine lacks, if anything."""
    if PACKAGE not in installed.packages:
        others = [name for name in installed.runtimes if name != PACKAGE]
        first = f"pip uninstall -y {' '.join(others)} && " if others else ""
        reason = f"{PACKAGE} is not installed"
        cure = f'{first}pip install "qconvert[{extra}]"'
        return Availability(False, False, reason=reason, cure=cure)
    version = f"{PACKAGE} {installed.packages[PACKAGE]}"
    if installed.no_driver:
        return Availability(False, False, version, installed.no_driver, DRIVER)
    return None


def wants() -> Wants:
    """Say what graphs the CUDA provider takes."""
    why = "ONNX Runtime computes INT8 on CUDA in float, with the rounding as extra work"
    return Wants(None, refused={"int8": why})


@dataclass(frozen=True)
class Settings:
    """What a build for CUDA can be told."""

    device: int = 0
    cuda_graph: bool = False
    allow_fallback: bool = False


def recipe(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model: little, as the engine is the model."""
    installed = look()
    return {
        "backend": "cuda",
        "precision": spec.precision,
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        **told(settings(Settings, spec, "cuda")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Take it: which kernels there are is known only where there is a GPU."""


def build(graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
    """Copy the model, which is what the CUDA provider loads, and note the device.

    Nothing is compiled ahead, so this needs no GPU.
    """
    chosen = settings(Settings, spec, "cuda")
    heard("copying the model", None)
    kept = keep(graph, folder)
    if chosen.cuda_graph:
        require_fixed(kept.inputs)
    names = {str(number): gpu.name for number, gpu in enumerate(look().gpus)}
    gpu = names.get(str(chosen.device), "none here")
    made_with = {**recipe(spec), "gpu": gpu}
    return Engine("cuda", spec.precision, folder, GRAPH, kept.files, made_with)


def open(engine: Engine) -> Session:
    """Load an engine, all of it on the GPU unless `allow-fallback` was set.

    This relies on ONNX Runtime's documents for I/O binding and CUDA graphs; it runs only where
    there is a GPU.
    """
    from qconvert.backends import ort_session

    path, found = engine.folder / engine.files[0], loading(engine)
    entries, providers = found.entries, found.listed
    ort_session.preload()
    session = ort_session.start(path, ort_session.options(entries=entries), providers)

    def covered() -> Coverage:
        taken = ort_session.assigned(session)
        if set(taken) == {PROVIDER}:
            return ort_session.kernels(path, ort_session.options(entries=entries), providers)
        return Coverage(ort_session.counted(taken), None, "nodes run on more than one provider")

    device = int(engine.made_with["device"])
    return ort_session.OrtSession(session, covered, "cuda", device, found.captured)


def loading(engine: Engine) -> Loading:
    """Say how ONNX Runtime loads an engine: all of it on the GPU unless a fallback was allowed."""
    made = engine.made_with
    captured, fallback = made["cuda-graph"] == "True", made["allow-fallback"] == "True"
    own = {"device_id": made["device"], **({"enable_cuda_graph": "1"} if captured else {})}
    return Loading(
        providers=((PROVIDER, own), *((("CPUExecutionProvider", {}),) if fallback else ())),
        packages=(f"{PACKAGE}[cuda,cudnn]",),
        entries={} if fallback else {"session.disable_cpu_ep_fallback": "1"},
        captured=captured,
    )


def served(engine: Engine) -> Served:
    """Say how Triton serves an engine: its ONNX Runtime takes CUDA wherever there is a GPU."""
    return Served("onnxruntime_onnx", engine.graph, "GPU")


def require_fixed(inputs: Sequence[TensorSpec]) -> None:
    """Refuse a CUDA graph, which is one recorded run, for inputs whose shapes change."""
    for spec in inputs:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(
                f"a CUDA graph needs fixed shapes, the model takes `{spec}`",
                hint="export with `--batch 1`, or leave out `cuda-graph`",
            )
