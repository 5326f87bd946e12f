"""ONNX Runtime's provider plugin for TensorRT for RTX.

Written from the plugin's own description; it runs only where there is an RTX GPU.
"""

from functools import cache
from importlib import import_module
from typing import Any

from qconvert.backends import ort_session
from qconvert.backends.base import Coverage, Engine
from qconvert.backends.ort import runtime
from qconvert.backends.outside import Loading
from qconvert.backends.tensorrt_rtx import MODULE, PROVIDER
from qconvert.errors import QConvertError, Unavailable, reason


def load(engine: Engine, found: Loading) -> ort_session.OrtSession:
    """Load the model that names the engine, on the first RTX GPU and nothing else."""
    chosen = ort_session.options(entries=found.entries)
    ((_, own),) = found.providers
    chosen.add_provider_for_devices(_devices()[:1], dict(own))
    path = engine.folder / engine.files[0]
    try:
        session = runtime.InferenceSession(str(path), chosen)
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"{PROVIDER} cannot load `{path.name}`: {reason(error)}",
            hint="build the engine again: plugin and builder must be of one release",
        ) from None
    why = "the plugin does not tell the precisions of an engine's layers"
    # Inputs cannot be bound: the plain onnxruntime beside the plugin has no memory on a GPU.
    return ort_session.OrtSession(
        session, lambda: Coverage(ort_session.counted(ort_session.assigned(session)), None, why)
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
