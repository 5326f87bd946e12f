"""TensorRT for RTX: engines are built anywhere, and run on RTX GPUs."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qconvert import onnx_io
from qconvert.backends import nvinfer, nvinfer_apart
from qconvert.backends.base import (
    Availability,
    BuildSpec,
    Engine,
    Heard,
    Profile,
    Session,
    Wants,
)
from qconvert.backends.ep_context import wrap
from qconvert.backends.folder import GRAPH, keep, writing
from qconvert.backends.installed import Installed, look
from qconvert.backends.outside import Loading, Served
from qconvert.backends.settings import settings, told
from qconvert.backends.tensorrt import scheme
from qconvert.backends.tensorrt_options import CONTEXT
from qconvert.backends.versions import is_rtx
from qconvert.errors import Unavailable, UsageError

PROVIDER = "NvTensorRTRTXExecutionProvider"
ENGINE = "model.engine"
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
EXTRA = 'pip install "qconvert[tensorrt-rtx]"'

_TRY = """
import tensorrt_rtx
assert tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
"""


def probe(installed: Installed) -> Availability:
    """Say whether engines can be built here (no GPU needed), and whether they run here."""
    version = installed.libraries("tensorrt-rtx")
    if not version:
        reason = "tensorrt-rtx-cu13 is not installed"
        return Availability(False, False, reason=reason, cure=EXTRA)
    version = f"tensorrt-rtx {version}"
    if trouble := _why_not():
        cure = "pip install --force-reinstall tensorrt-rtx-cu13"
        return Availability(False, False, version, trouble, cure)
    reason, cure = _why_not_run(installed)
    return Availability(True, not reason, version, reason, cure)


def _why_not_run(installed: Installed) -> tuple[str, str]:
    if installed.no_driver:
        return f"{installed.no_driver}; engines run on RTX GPUs", ""
    if not any(is_rtx(gpu.capability) for gpu in installed.gpus):
        names = ", ".join(f"{gpu.name} ({_dotted(gpu.capability)})" for gpu in installed.gpus)
        return f"no RTX GPU of compute capability 8.6, 8.9 or 12: {names}", ""
    if PLUGIN not in installed.packages:
        return "the provider plugin is not installed", EXTRA
    if "onnxruntime-gpu" in installed.packages:
        cure = f"pip uninstall -y onnxruntime-gpu && {EXTRA}"
        return "the provider plugin needs plain onnxruntime, not onnxruntime-gpu", cure
    return "", ""


def _why_not() -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRY], capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"code {done.returncode}")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def wants() -> Wants:
    """Say what graphs TensorRT for RTX takes: the same as TensorRT."""
    note = "the support matrix of TensorRT for RTX names no INT8 convolution: measure before use"
    return Wants(scheme("tensorrt-rtx"), ("fp32", "fp16", "bf16"), build_rest="fp16", notes=(note,))


@dataclass(frozen=True)
class Settings:
    """What a build for TensorRT for RTX can be told.

    `more_profiles` has further batch sizes that the engine is tuned for beside `--profile`, such as
    `1,1,1 8,8,8`. `workspace` is in MiB, 0 for all there is.
    """

    more_profiles: str = ""
    workspace: int = 0

    def __post_init__(self) -> None:
        if self.workspace < 0:
            raise ValueError("`workspace` is not negative")
        self.profiles()

    def profiles(self) -> tuple[Profile, ...]:
        """Return the further profiles."""
        sizes = [[int(size) for size in each.split(",")] for each in self.more_profiles.split()]
        if any(len(each) != 3 for each in sizes):
            raise ValueError("a profile of `more-profiles` has three batch sizes, such as 1,8,32")
        return tuple(Profile(*each) for each in sizes)


def recipe(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model; made ahead of time, no machine does."""
    profile = spec.profile
    return {
        "backend": "tensorrt-rtx",
        "precision": spec.precision,
        "profile": f"{profile.least},{profile.best},{profile.most}",
        "builder": f"tensorrt-rtx {look().libraries('tensorrt-rtx')}",
        **told(settings(Settings, spec, "tensorrt-rtx")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph with an operator that TensorRT for RTX does not have."""
    nvinfer_apart.parse("tensorrt_rtx", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
    """Build an engine ahead of time for all RTX GPUs, with or without one here.

    Two builds of one graph need not give the same bytes, those of INT8 hardly ever do.
    """
    chosen = settings(Settings, spec, "tensorrt-rtx")
    if find_spec("tensorrt_rtx") is None:
        raise Unavailable("tensorrt-rtx-cu13 is not installed", hint=EXTRA)
    kept = keep(graph, folder)
    wishes = nvinfer.Wishes((spec.profile, *chosen.profiles()), chosen.workspace)
    with writing(folder):
        nvinfer_apart.build("tensorrt_rtx", kept, wishes, folder / ENGINE, heard)
        onnx_io.save(wrap(kept.model, ENGINE, PROVIDER), folder / CONTEXT)
    made_with = dict(recipe(spec))
    return Engine("tensorrt-rtx", spec.precision, folder, GRAPH, (CONTEXT, ENGINE), made_with)


def open(engine: Engine) -> Session:
    """Load an engine through the provider plugin, where there is an RTX GPU."""
    reason, cure = _why_not_run(look())
    if reason:
        raise Unavailable(
            f"engines of tensorrt-rtx do not run here: {reason}",
            hint=cure or "run it on a machine with an RTX GPU: `qconvert bench` adds what it finds",
        )
    from qconvert.backends import tensorrt_rtx_plugin

    return tensorrt_rtx_plugin.load(engine, loading(engine))


def loading(engine: Engine) -> Loading:
    """Say how ONNX Runtime loads an engine: with the provider of a plugin, and nothing else."""
    many = {"nv_multi_profile_enable": "1"} if engine.made_with.get("more-profiles") else {}
    return Loading(
        providers=((PROVIDER, many),),
        packages=("onnxruntime", PLUGIN),
        entries={"session.disable_cpu_ep_fallback": "1"},
        plugin=MODULE,
    )


def served(engine: Engine) -> Served:
    """Refuse it: Triton has no part that runs such engines."""
    raise UsageError(
        "Triton has no backend for engines of TensorRT for RTX",
        hint="package an engine of another backend: `--engine NAME`, or `--format onnxruntime`",
    )
