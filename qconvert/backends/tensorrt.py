"""ONNX Runtime's TensorRT provider."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from qconvert.backends import nvinfer_apart
from qconvert.backends.base import (
    Availability,
    BuildSpec,
    Engine,
    Heard,
    Precision,
    Session,
    Wants,
)
from qconvert.backends.cuda import PACKAGE, lacking, require_fixed
from qconvert.backends.folder import GRAPH, keep
from qconvert.backends.installed import Installed, look
from qconvert.backends.outside import Loading, Served
from qconvert.backends.settings import settings, told
from qconvert.backends.tensorrt_options import PROVIDER, REST, Settings, chosen_for, opening
from qconvert.backends.trial import why_not
from qconvert.backends.versions import NetworkTypes, needs, network_types, numbers
from qconvert.errors import Unavailable, UsageError
from qconvert.quantize import rounded_inputs
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid


def probe(installed: Installed) -> Availability:
    """Say whether the TensorRT provider runs here, and first whether its libraries fit together."""
    if PACKAGE in installed.packages and (unfit := _unfit(installed)):
        return unfit
    missing = lacking(installed, "tensorrt")
    if missing is not None:
        return missing
    version = _version(installed)
    if trouble := why_not(PROVIDER):
        return Availability(False, False, version, trouble, 'pip install "qconvert[tensorrt]"')
    return Availability(True, True, version)


def _unfit(installed: Installed) -> Availability | None:
    runtime, found = installed.packages[PACKAGE], installed.libraries("tensorrt")
    wanted = needs(runtime)
    if wanted is None:
        reason, cure = f"onnxruntime-gpu {runtime} is too old", 'pip install "qconvert[tensorrt]"'
    elif not found:
        reason = (
            f"onnxruntime-gpu {runtime} needs TensorRT {wanted.tensorrt}, and none is installed"
        )
        cure = _install(wanted.cuda, wanted.tensorrt)
    elif numbers(found)[0] != wanted.tensorrt:
        reason = f"onnxruntime-gpu {runtime} needs TensorRT {wanted.tensorrt}; found {found}"
        cure = _install(wanted.cuda, wanted.tensorrt)
    else:
        return None
    return Availability(False, False, _version(installed), reason, cure)


def _install(cuda: int, tensorrt: int) -> str:
    return f'pip install "tensorrt-cu{cuda}>={tensorrt},<{tensorrt + 1}"'


def _version(installed: Installed) -> str:
    found = installed.libraries("tensorrt")
    runtime = f"{PACKAGE} {installed.packages[PACKAGE]}"
    return f"{runtime}, TensorRT {found}" if found else runtime


def wants() -> Wants:
    """Say what graphs TensorRT takes: all zero points 0, biases in float."""
    typed = graph_precision("int8", look()) == "typed"
    return Wants(scheme("tensorrt"), ("fp32", "fp16", "bf16"), build_rest=REST, typed=typed)


def scheme(name: str) -> Scheme:
    """Return the scheme of TensorRT's builders."""
    return Scheme(
        name,
        activations=Grid(8),
        weights=Grid(8),
        integer_bias=False,
        rules=rounded_inputs.RULES,
        shared=frozenset({"Concat"}),
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


def recipe(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model: an engine fits one GPU and one release."""
    installed = look()
    chosen = settings(Settings, spec, "tensorrt")
    gpu = dict(enumerate(installed.gpus)).get(chosen.device)
    profile = spec.profile
    return {
        "backend": "tensorrt",
        "precision": spec.precision,
        "rest": spec.rest or REST,
        "profile": f"{profile.least},{profile.best},{profile.most}",
        "runtime": f"{PACKAGE} {installed.packages.get(PACKAGE, '')}".strip(),
        "tensorrt": installed.libraries("tensorrt"),
        "driver": installed.driver,
        "gpu": f"{gpu.name} {gpu.capability[0]}.{gpu.capability[1]}" if gpu else "",
        **told(chosen, "timing_cache"),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph that the native builder cannot read; the provider takes what it can."""
    if settings(Settings, spec, "tensorrt").builder == "native":
        nvinfer_apart.parse("tensorrt", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
    """Build an engine, and a small ONNX file that loads it without building again."""
    from qconvert.backends import tensorrt_engine

    chosen, installed = settings(Settings, spec, "tensorrt"), look()
    kept = keep(graph, folder)
    if chosen.cuda_graph:
        require_fixed(kept.inputs)
    if chosen.builder == "native":
        files, notes = tensorrt_engine.native(kept, spec, heard)
    else:
        runtime = _types(installed)
        if runtime is None:
            raise Unavailable(
                "this onnxruntime-gpu and this TensorRT are not known to work together",
                hint="`qconvert doctor` says which release of TensorRT it needs",
            )
        files, notes = tensorrt_engine.provided(kept, spec, runtime, heard)
    made_with = dict(recipe(spec))
    return Engine("tensorrt", spec.precision, folder, GRAPH, files, made_with, notes=notes)


def open(engine: Engine) -> Session:
    """Load an engine through the provider, without building it again."""
    from qconvert.backends import tensorrt_engine

    return tensorrt_engine.load(engine)


def loading(engine: Engine) -> Loading:
    """Say how ONNX Runtime loads an engine."""
    return opening(engine)


def served(engine: Engine) -> Served:
    """Say how Triton serves an engine: whoever built it, it is a plan that TensorRT loads."""
    made, chosen = engine.made_with, chosen_for(engine.made_with)
    plans = [name for name in engine.files if name.endswith(".engine")]
    if chosen.allow_fallback or chosen.weight_stripped or len(plans) != 1:
        odd = "parts of it run elsewhere" if chosen.allow_fallback else "it has no weights inside"
        raise UsageError(
            f"Triton serves engines that are whole, and of `{engine.folder.name}` {odd}",
            hint="build it again without `allow-fallback` and `weight-stripped`",
        )
    least, best, most = (int(size) for size in made["profile"].split(","))
    notes = (f"the server needs TensorRT {made['tensorrt']} and a GPU like {made['gpu']}",)
    return Served("tensorrt_plan", plans[0], "GPU", (least, best, most), notes=notes)


def _types(installed: Installed) -> NetworkTypes | None:
    runtime, found = installed.packages.get(PACKAGE, ""), installed.libraries("tensorrt")
    return network_types(runtime, found) if runtime and found else None
