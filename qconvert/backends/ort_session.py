"""An engine that ONNX Runtime runs, on whichever provider."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from qconvert import drafts
from qconvert.backends.base import Coverage
from qconvert.backends.kernels import by_precision
from qconvert.backends.ort import SILENT, cannot_run, message, runtime
from qconvert.backends.ort_binding import Bound, bind, bind_fixed
from qconvert.errors import QConvertError
from qconvert.feeds import Feeds

Providers = Sequence[str | tuple[str, Mapping[str, str]]]
ALL = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
EXTENDED = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
NONE = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL


@dataclass(frozen=True)
class OrtSession:
    """A session that runs on `device`.

    With `captured` its runs are replays of the first one, a CUDA graph, which reads and writes the
    same memory each time: `held` keeps that.
    """

    session: Any
    told: Callable[[], Coverage]
    device: str = "cpu"
    device_id: int = 0
    captured: bool = False
    held: list[Bound] = field(default_factory=list, repr=False, compare=False)

    def run(self, feeds: Feeds) -> Feeds:
        """Run once, with all copies that takes."""
        if self.captured:
            bound = self._replayed(feeds)
            bound.run()
            return bound.answer()
        names = [output.name for output in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, feeds), strict=True))
        except Exception as error:  # its exception classes share no public base
            raise cannot_run(error, feeds) from None

    def bound(self, feeds: Feeds) -> Callable[[], None] | None:
        """Return a call that runs once on inputs already on the device; None on the CPU."""
        if self.device == "cpu":
            return None
        if self.captured:
            return self._replayed(feeds).run
        return bind(self.session, feeds, self.device, self.device_id).run

    def coverage(self) -> Coverage:
        """Say what really runs where."""
        return self.told()

    def _replayed(self, feeds: Feeds) -> Bound:
        if self.held:
            self.held[0].refill(feeds)
        else:
            self.held.append(bind_fixed(self.session, feeds, self.device, self.device_id))
        return self.held[0]


def options(threads: int = 0, entries: Mapping[str, str] | None = None, level: Any = ALL) -> Any:
    """Return session options that say which node went to which provider."""
    made = runtime.SessionOptions()
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
        session = runtime.InferenceSession(str(path), chosen, providers=list(providers))
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
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def assigned(session: Any) -> dict[str, list[str]]:
    """Return the nodes that each provider took, each as its operator and its name."""
    taken: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        taken.setdefault(part.ep_name, []).extend(names)
    return taken


def compiled(path: Path, chosen: Any, providers: Providers) -> ir.Model:
    """Return the graph into which ONNX Runtime rewrites a file on these providers."""
    with drafts.temporary() as folder:
        chosen.optimized_model_filepath = str(folder / "optimized.onnx")
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
