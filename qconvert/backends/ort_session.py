"""An engine that ONNX Runtime runs, on whichever provider."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from qconvert.backends.base import Coverage
from qconvert.backends.kernels import by_precision
from qconvert.backends.ort import SILENT, cannot_run, message
from qconvert.errors import QConvertError
from qconvert.feeds import Feeds

Providers = Sequence[str | tuple[str, Mapping[str, str]]]
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
EXTENDED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@dataclass(frozen=True)
class OrtSession:
    """A session whose graph lies on `device`; with `captured` its runs are replays of one.

    A captured run reads and writes the memory of the first one, so all runs go through there.
    """

    session: Any
    told: Callable[[], Coverage]
    device: str = "cpu"
    device_id: int = 0
    captured: bool = False

    def run(self, feeds: Feeds) -> Feeds:
        """Run once, with all copies that takes."""
        names = [output.name for output in self.session.get_outputs()]
        try:
            if self.captured:
                return self._captured(names, feeds)
            return dict(zip(names, self.session.run(names, feeds), strict=True))
        except Exception as error:  # its exception classes share no public base
            raise cannot_run(error, feeds) from None

    def bound(self, feeds: Feeds) -> Callable[[], None] | None:
        """Return a call that runs once on inputs already on the device; None on the CPU."""
        return None if self.device == "cpu" else bind(self, feeds)[0]

    def coverage(self) -> Coverage:
        """Say what really runs where."""
        return self.told()

    def _captured(self, names: list[str], feeds: Feeds) -> Feeds:
        call, binding = bind(self, feeds)
        call()
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


def bind(opened: OrtSession, feeds: Feeds) -> tuple[Callable[[], None], Any]:
    """Put inputs on the device, and outputs where the first run left them; return the call.

    ONNX Runtime waits for the device at the end of each run.
    """
    session, device, number = opened.session, opened.device, opened.device_id
    binding = session.io_binding()
    for name, array in feeds.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, number)
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device, number)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise cannot_run(error, feeds) from None
    made = binding.get_outputs()
    binding.clear_binding_outputs()
    for name, value in zip(names, made, strict=True):
        binding.bind_ortvalue_output(name, value)

    def call() -> None:
        session.run_with_iobinding(binding)

    return call, binding


def options(threads: int = 0, entries: Mapping[str, str] | None = None, level: Any = ALL) -> Any:
    """Return session options that say which node went to which provider."""
    made = onnxruntime.SessionOptions()
    made.log_severity_level = SILENT
    made.intra_op_num_threads = threads
    made.graph_optimization_level = level
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in (entries or {}).items():
        made.add_session_config_entry(key, value)
    return made


def start(path: Path, chosen: Any, providers: Providers) -> Any:
    """Load a file on these providers, or say why not; it never turns to others by itself."""
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    try:
        session = onnxruntime.InferenceSession(str(path), chosen, providers=list(providers))
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"{first} cannot load `{path.name}`: {message(error)}",
            hint="`qconvert inspect` shows its operators; `qconvert doctor` what works here",
        ) from None
    session.disable_fallback()
    if first not in session.get_providers():
        # Python's InferenceSession turns to the CPU when a provider does not start.
        raise QConvertError(
            f"ONNX Runtime did not start {first}", hint="`qconvert doctor` says what is missing"
        )
    return session


def preload() -> None:
    """Load the CUDA and cuDNN libraries of Python packages, where the runtime knows of such."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def assigned(session: Any) -> dict[str, list[str]]:
    """Return the nodes that each provider took, each as its operator and its name."""
    taken: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        taken.setdefault(part.ep_name, []).extend(names)
    return taken


def compiled(path: Path, chosen: Any, providers: Providers) -> ir.Model:
    """Return the graph into which ONNX Runtime rewrites a file on these providers."""
    with tempfile.TemporaryDirectory(prefix="qconvert-") as folder:
        chosen.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # Weights apart: they are not read here, and above 2 GB they do not fit inside.
        apart = "session.optimized_model_external_initializers_"
        chosen.add_session_config_entry(apart + "file_name", "weights")
        chosen.add_session_config_entry(apart + "min_size_in_bytes", "1024")
        start(path, chosen, providers)
        return ir.from_proto(onnx.load(chosen.optimized_model_filepath, load_external_data=False))


def kernels(path: Path, chosen: Any, providers: Providers) -> Coverage:
    """Count the kernels of a file that one provider runs whole, by precision."""
    graph = compiled(path, chosen, providers)
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    return Coverage({first: len(list(graph.graph))}, by_precision(graph))


def counted(taken: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many nodes each provider took."""
    return dict(Counter({name: len(nodes) for name, nodes in taken.items()}))
