"""TensorRT for RTX: engines are built anywhere, and run on RTX GPUs."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qconvert.backends import nvinfer, ort
from qconvert.backends.base import (
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Profile,
    Session,
    TritonSpec,
    read_settings,
    settings_as_text,
)
from qconvert.backends.engine_folder import GRAPH, copy_graph, explain_write_errors, wrap_engine
from qconvert.backends.ort import runtime
from qconvert.backends.system_probe import Installed, detect
from qconvert.backends.tensorrt import quantization_scheme
from qconvert.backends.tensorrt_options import CONTEXT
from qconvert.backends.versions import is_rtx
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, Unavailable, UsageError, first_line

PROVIDER = "NvTensorRTRTXExecutionProvider"
ENGINE = "model.engine"
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
EXTRA = 'pip install "qconvert[tensorrt-rtx]"'

_PROBE_SCRIPT = """
import tensorrt_rtx
assert tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
"""


def probe(installed: Installed) -> Availability:
    """Say whether engines can be built here (no GPU needed), and whether they run here."""
    version = installed.library_version("tensorrt-rtx")
    if not version:
        reason = "tensorrt-rtx-cu13 is not installed"
        return Availability(False, False, reason=reason, cure=EXTRA)
    version = f"tensorrt-rtx {version}"
    if trouble := _builder_error():
        cure = "pip install --force-reinstall tensorrt-rtx-cu13"
        return Availability(False, False, version, trouble, cure)
    reason, cure = _run_error(installed)
    return Availability(True, not reason, version, reason, cure)


def _run_error(installed: Installed) -> tuple[str, str]:
    if installed.driver_error:
        return f"{installed.driver_error}; engines run on RTX GPUs", ""
    if not any(is_rtx(gpu.capability) for gpu in installed.gpus):
        names = ", ".join(f"{gpu.name} ({_dotted(gpu.capability)})" for gpu in installed.gpus)
        return f"no RTX GPU of compute capability 8.6, 8.9 or 12: {names}", ""
    if PLUGIN not in installed.packages:
        return "the provider plugin is not installed", EXTRA
    if "onnxruntime-gpu" in installed.packages:
        cure = f"pip uninstall -y onnxruntime-gpu && {EXTRA}"
        return "the provider plugin needs plain onnxruntime, not onnxruntime-gpu", cure
    return "", ""


def _builder_error() -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE_SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"code {done.returncode}")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def requirements() -> BackendRequirements:
    """Say what graphs TensorRT for RTX takes: the same as TensorRT."""
    note = "the support matrix of TensorRT for RTX names no INT8 convolution: measure before use"
    return BackendRequirements(
        quantization_scheme("tensorrt-rtx"),
        ("fp32", "fp16", "bf16"),
        default_rest="fp16",
        notes=(note,),
    )


@dataclass(frozen=True)
class TensorrtRtxSettings:
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


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model; made ahead of time, no machine does."""
    profile = spec.profile
    return {
        "backend": "tensorrt-rtx",
        "precision": spec.precision,
        "profile": f"{profile.min_batch},{profile.opt_batch},{profile.max_batch}",
        "builder": f"tensorrt-rtx {detect().library_version('tensorrt-rtx')}",
        **settings_as_text(read_settings(TensorrtRtxSettings, spec, "tensorrt-rtx")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph with an operator that TensorRT for RTX does not have."""
    nvinfer.parse_in_subprocess("tensorrt_rtx", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, heard: BuildProgressCallback) -> Engine:
    """Build an engine ahead of time for all RTX GPUs, with or without one here.

    Two builds of one graph need not give the same bytes, those of INT8 hardly ever do.
    """
    chosen = read_settings(TensorrtRtxSettings, spec, "tensorrt-rtx")
    if find_spec("tensorrt_rtx") is None:
        raise Unavailable("tensorrt-rtx-cu13 is not installed", hint=EXTRA)
    kept = copy_graph(graph, folder)
    wishes = nvinfer.NativeBuildOptions((spec.profile, *chosen.profiles()), chosen.workspace)
    with explain_write_errors(folder):
        nvinfer.build_in_subprocess("tensorrt_rtx", kept, wishes, folder / ENGINE, heard)
        onnx_io.save(wrap_engine(kept.model, ENGINE, PROVIDER), folder / CONTEXT)
    made_with = dict(cache_key(spec))
    return Engine("tensorrt-rtx", spec.precision, folder, GRAPH, (CONTEXT, ENGINE), made_with)


def open(engine: Engine) -> Session:
    """Load an engine through the provider plugin, where there is an RTX GPU."""
    reason, cure = _run_error(detect())
    if reason:
        raise Unavailable(
            f"engines of tensorrt-rtx do not run here: {reason}",
            hint=cure or "run it on a machine with an RTX GPU: `qconvert bench` adds what it finds",
        )

    return load_engine(engine, load_spec(engine))


def load_spec(engine: Engine) -> LoadSpec:
    """Say how ONNX Runtime loads an engine: with the provider of a plugin, and nothing else."""
    many = {"nv_multi_profile_enable": "1"} if engine.made_with.get("more-profiles") else {}
    return LoadSpec(
        providers=((PROVIDER, many),),
        packages=("onnxruntime", PLUGIN),
        config_entries={"session.disable_cpu_ep_fallback": "1"},
        plugin=MODULE,
    )


def triton_spec(engine: Engine) -> TritonSpec:
    """Refuse it: Triton has no part that runs such engines."""
    raise UsageError(
        "Triton has no backend for engines of TensorRT for RTX",
        hint="package an engine of another backend: `--engine NAME`, or `--format onnxruntime`",
    )


def load_engine(engine: Engine, found: LoadSpec) -> ort.OrtSession:
    """Load the model that names the engine, on the first RTX GPU and nothing else."""
    chosen = ort.session_options(entries=found.config_entries)
    ((_, own),) = found.providers
    chosen.add_provider_for_devices(_devices()[:1], dict(own))
    path = engine.folder / engine.files[0]
    try:
        session = runtime.InferenceSession(str(path), chosen)
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"{PROVIDER} cannot load `{path.name}`: {first_line(error)}",
            hint="build the engine again: plugin and builder must be of one release",
        ) from None
    why = "the plugin does not tell the precisions of an engine's layers"
    # Inputs cannot be bound: the plain onnxruntime beside the plugin has no memory on a GPU.
    return ort.OrtSession(
        session, lambda: Coverage(ort.count_nodes(ort.nodes_by_provider(session)), None, why)
    )


@cache
def _devices() -> list[Any]:
    """Register the plugin once in this process and return the GPUs that it drives."""
    plugin = import_module(MODULE)
    runtime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    found = [each for each in runtime.get_ep_devices() if each.ep_name == PROVIDER]
    if not found:
        raise Unavailable(
            "the provider plugin found no RTX GPU", hint="`qconvert doctor` says what it needs"
        )
    return found
