"""ONNX Runtime's CUDA provider."""

from qconvert.backends.base import Availability, Wants
from qconvert.backends.installed import Installed
from qconvert.backends.trial import why_not

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
