"""ONNX Runtime's TensorRT provider."""

from qconvert.backends.base import Availability, Wants
from qconvert.backends.cuda import PACKAGE, lacking
from qconvert.backends.installed import Installed
from qconvert.backends.trial import why_not
from qconvert.backends.versions import needs, numbers
from qconvert.quantize import rounded_inputs
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid

PROVIDER = "TensorrtExecutionProvider"


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
    return Wants(scheme("tensorrt"), ("fp32", "fp16", "bf16"), build_rest="fp16")


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
